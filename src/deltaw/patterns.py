"""The pattern language: from what a user writes to module paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from deltaw.config import Pattern
from deltaw.errors import TargetError, nearest
from deltaw.layers.slices import split_pattern

__all__ = ["Matcher", "block_indices", "describe", "suffixes"]


def describe(pattern: Pattern) -> str:
    """How a pattern is shown in messages and reports.

    Args:
        pattern: any pattern.

    Returns:
        The string itself, or the name of the type or predicate.

    Example:
        >>> describe("q_proj"), describe(nn.Linear)
        ('q_proj', 'type Linear')
    """
    if isinstance(pattern, str):
        return pattern
    return f"{'type' if isinstance(pattern, type) else 'predicate'} {getattr(pattern, '__name__', repr(pattern))}"


@dataclass(frozen=True)
class Matcher:
    """One pattern, compiled.

    Args:
        pattern: as the user wrote it.
    """

    pattern: Pattern

    @property
    def slices(self) -> tuple[str, ...]:
        """Slice names asked for, empty for whole weights."""
        return split_pattern(self.pattern)[1] if isinstance(self.pattern, str) else ()

    @property
    def exact(self) -> bool:
        """Whether every module it matches must be adaptable: globs, regexes and predicates may reach further."""
        if isinstance(self.pattern, str):
            head = split_pattern(self.pattern)[0]
            return not head.startswith("re:") and not any(c in head for c in "*?")
        return isinstance(self.pattern, type)

    def matches(self, path: str, module: nn.Module) -> bool:
        """Whether a module is meant.

        Args:
            path: dotted module path.
            module: the module.

        Returns:
            True if the pattern matches.

        Raises:
            TargetError: if a regular expression is malformed.

        Example:
            >>> Matcher("q_proj").matches("layers.0.q_proj", nn.Linear(1, 1))
            True
        """
        if isinstance(self.pattern, type):
            return isinstance(module, self.pattern)
        if not isinstance(self.pattern, str):
            return bool(self.pattern(path, module))
        head, _ = split_pattern(self.pattern)
        if head.startswith("re:"):
            try:
                return re.fullmatch(head[3:], path) is not None
            except re.error as error:
                raise TargetError(
                    "a target's regular expression is malformed",
                    where=f"target {self.pattern!r}",
                    got=str(error),
                    expected="a Python regular expression after 're:'",
                    hint="it must match the whole path, such as 're:.*\\.q_proj'.",
                ) from None
        if any(c in head for c in "*?"):
            return fnmatch.fnmatchcase(path, head) or fnmatch.fnmatchcase(path, f"*.{head}")
        return path == head or path.endswith(f".{head}")


def suffixes(paths: Iterable[str]) -> list[str]:
    """Last parts of paths, most frequent first: what users usually mean by a target.

    Args:
        paths: dotted paths.

    Returns:
        Distinct last parts.

    Example:
        >>> suffixes(["a.q", "b.q", "c"])
        ['q', 'c']
    """
    leaves = [path.rpartition(".")[2] for path in paths]
    return sorted(set(leaves), key=lambda leaf: (-leaves.count(leaf), leaf))


def _bad_layers(spec: object, got: str, count: int) -> TargetError:
    return TargetError(
        "no such block",
        where=f"layers={spec!r}",
        got=got,
        expected=f"indices from 0 to {count - 1}" if count else "a model with a list of blocks",
        hint='write integers, "0-3,7" or "last:4".',
    )


def _wanted(spec: Sequence[int] | str, count: int) -> set[int]:
    """Indices named by a layers specification, for a model with ``count`` blocks."""
    if not isinstance(spec, str):
        wanted = set(spec)
    elif spec.startswith("last:") and spec[5:].isdigit():
        last = int(spec[5:])
        if not 1 <= last <= count:
            raise _bad_layers(spec, spec, count)
        wanted = set(range(count - last, count))
    else:
        wanted = set()
        for piece in spec.split(","):
            bounds = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
            if bounds is None:
                raise _bad_layers(spec, piece, count)
            wanted |= set(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    outside = sorted(index for index in wanted if not 0 <= index < count)
    if outside or not wanted:
        raise _bad_layers(spec, nearest("", map(str, outside)) if outside else "none", count)
    return wanted


def block_indices(model: nn.Module, spec: Sequence[int] | str) -> list[str]:
    """Path prefixes of the blocks that a ``layers`` specification names.

    Blocks are the entries of the longest ``nn.ModuleList`` that is not inside another block; lists of the same
    length, as in an encoder-decoder, count together.

    Args:
        model: any model.
        spec: indices, ``"0-3,7"`` or ``"last:4"``.

    Returns:
        Prefixes ending in a dot.

    Raises:
        TargetError: if there is no list of blocks or an index is outside.

    Example:
        >>> net = nn.Module(); net.h = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
        >>> block_indices(net, "last:1")
        ['h.2.']
    """
    lists = [(path, len(m)) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    outer = [(p, n) for p, n in lists if not any(p.startswith(f"{q}.") for q, _ in lists if q != p)]
    longest = max((n for _, n in outer), default=0)
    if not longest:
        raise _bad_layers(spec, "no nn.ModuleList in the model", 0)
    wanted = _wanted(spec, longest)
    return [f"{path}.{i}." for path, n in outer if n == longest for i in sorted(wanted)]
