"""The exceptions of deltaw, and the one form of their messages.

::

    DeltawError(ValueError)          exit code 1
    |-- ConfigError                  2   a flag, a field, a configuration file
    |-- DataError                    3   rows, formats, tokens, templates
    |-- ModelError                   4   the base model: loading, shapes, unsupported structure
    |   |-- TargetError              4   a pattern, a slice, a layer that cannot be adapted
    |   `-- TieError                 4   weights shared between modules
    |-- StateError                   4   a verb used at the wrong moment (merged, attached twice, ...)
    |-- CheckpointError              5   adapter files
    |   `-- ResumeError              5   training state on disk
    `-- FaithError                   6   a merge that is not faithful

Every message has four parts: what failed (first line), where, got against expected, and a hint as its last line.
The exit code is the one the command line returns.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeltawError",
    "FaithError",
    "ModelError",
    "ResumeError",
    "StateError",
    "TargetError",
    "TieError",
    "nearest",
]


class DeltawError(ValueError):
    """Base of every error deltaw raises on bad input.

    Args:
        what: what failed, one sentence without a final period.
        where: the place: a path, a key, a file and line, a pattern.
        got: what was found there.
        expected: what would have been right.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, got: str, expected: str, hint: str) -> None:
        self.what, self.where, self.got, self.expected, self.hint = what, where, got, expected, hint
        super().__init__(f"{what}\n  where: {where}\n  got: {got}\n  expected: {expected}\nhint: {hint}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by parts, so that an error crosses process boundaries whole."""
        return _rebuild, (type(self), self.what, self.where, self.got, self.expected, self.hint)


def _rebuild(cls: type[DeltawError], what: str, where: str, got: str, expected: str, hint: str) -> DeltawError:
    return cls(what, where=where, got=got, expected=expected, hint=hint)


class ConfigError(DeltawError):
    """A flag, a field or a configuration file is wrong."""

    exit_code = 2


class DataError(DeltawError):
    """Rows, formats, tokens or a chat template are wrong."""

    exit_code = 3


class ModelError(DeltawError):
    """The base model cannot be loaded or used as asked."""

    exit_code = 4


class TargetError(ModelError):
    """A target pattern matched nothing, or reached a module that cannot be adapted."""


class TieError(ModelError):
    """A target shares its weight with another module and no policy says what to do."""


class StateError(DeltawError):
    """A verb was used at a moment when it cannot be carried out."""

    exit_code = 4


class CheckpointError(DeltawError):
    """Adapter files are broken, incomplete, or belong to another base."""

    exit_code = 5


class ResumeError(CheckpointError):
    """A training state on disk cannot be continued."""


class FaithError(DeltawError):
    """A merged model does not reproduce the model with its adapter on."""

    exit_code = 6


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Name the closest of ``names`` for an error message.

    Args:
        name: what was written.
        names: what exists.
        count: how many to list at most.

    Returns:
        A comma-separated list of quoted names, closest first; the first few names where none is close; ``nothing``
        where there are none.

    Example:
        >>> nearest("q_projj", ["k_proj", "q_proj"], 1)
        "'q_proj'"
    """
    pool = sorted(set(names) - {""})
    close = difflib.get_close_matches(name, pool, n=count, cutoff=0.5)
    close += [other for other in pool if other not in close and name and (name in other or other in name)]
    return ", ".join(repr(other) for other in (close or pool)[:count]) or "nothing"
