"""What a metric is, what it returns, and the checks that all metrics share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.reports import plural

__all__ = ["Metric", "References", "Result", "Score", "one_of", "packages", "single", "transposed"]

References = Sequence[Sequence[str]]
"""One group of reference texts for every hypothesis."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a metric's function hands back; ``Score`` is made of it.

    Args:
        value: the figure that is reported.
        variant: which of the metric's forms this is: rules, tokenizer, package and version.
        parts: figures that make up the value, or stand beside it.
        segments: the metric of every segment by itself; empty where it is defined for a corpus only.
        notes: what a reader of the value has to know.
    """

    value: float
    variant: str
    parts: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of hypotheses against references.

    Args:
        name: the metric.
        value: the figure that is reported.
        variant: which of the metric's forms this is: rules, tokenizer, package and version.
        num_segments: how many hypotheses there were.
        parts: figures that make up the value, or stand beside it.
        segments: the metric of every segment by itself; empty where it is defined for a corpus only.
        notes: what a reader of the value has to know.
    """

    name: str
    value: float
    variant: str
    num_segments: int
    parts: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The value, its parts and its variant, a line each."""
        lines = [f"{self.name} {self.value:.4f}  ({plural(self.num_segments, 'segment')})"]
        if self.parts:
            lines.append("  " + "  ".join(f"{name} {part:.4f}" for name, part in self.parts.items()))
        lines.append(f"  {self.variant}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the registry.

    Args:
        name: how it is asked for.
        line: what it is, in one line.
        compute: the function; its keyword arguments after the texts are the metric's options.
        single: whether there is exactly one reference (a label, a number, a query) for every hypothesis.
    """

    name: str
    line: str
    compute: Callable[..., Result]
    single: bool = False

    @property
    def options(self) -> dict[str, object]:
        """The options with their defaults."""
        parameters = list(inspect.signature(self.compute).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}


def packages(*names: str) -> str:
    """Name packages with their versions, as every variant does.

    Args:
        *names: names of installed distributions.

    Returns:
        Text such as ``sacrebleu 2.6.0``.

    Example:
        >>> packages("numpy").startswith("numpy ")
        True
    """
    return ", ".join(f"{name} {version(name)}" for name in names)


def one_of(metric: str, option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value of an option that is not one of a few.

    Args:
        metric: the metric.
        option: its option.
        value: what was given.
        allowed: what it may be.

    Raises:
        ConfigError: if the value is not one of them.
    """
    if not any(value is known or (type(value) is type(known) and value == known) for known in allowed):
        raise ConfigError(
            "an option of a metric has no such value",
            where=f"metric {metric}, option {option}",
            got=repr(value),
            expected=" or ".join(repr(known) for known in allowed),
            hint=f"closest: {nearest(str(value), [str(known) for known in allowed], 1)}",
        )


def single(references: References) -> list[str]:
    """Take the one reference of every group.

    Args:
        references: groups of one.

    Returns:
        The references.
    """
    return [group[0] for group in references]


def transposed(references: References) -> list[list[str | None]]:
    """Turn groups of references into the streams sacrebleu wants; a group that is shorter is filled with None.

    Args:
        references: one group for every hypothesis.

    Returns:
        As many streams as the largest group has references.

    Example:
        >>> transposed([["a", "b"], ["c"]])
        [['a', 'c'], ['b', None]]
    """
    width = max(len(group) for group in references)
    return [[group[i] if i < len(group) else None for group in references] for i in range(width)]


def _numbered(found: Sequence[int], count: int) -> str:
    """Name the first few of some segments for an error message."""
    shown = ", ".join(str(number + 1) for number in found[:5]) + (", ..." if len(found) > 5 else "")
    return f"{'segment' if len(found) == 1 else 'segments'} {shown} of {count}"


def checked(hypotheses: Sequence[str], references: References, *, allow_empty: bool) -> None:
    """Refuse texts that cannot be scored: no segments, different counts, empty texts, groups without a text.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        allow_empty: let empty hypotheses be scored as what they are.

    Raises:
        DataError: if one of these is so.
    """
    if isinstance(hypotheses, str) or any(isinstance(group, str) for group in references):
        raise DataError(
            "texts are given where lists of texts belong",
            where="hypotheses" if isinstance(hypotheses, str) else "references",
            got="one text",
            expected="hypotheses: a list of texts; references: a list of lists of texts",
            hint='write score(name, ["a hypothesis"], [["a reference", "another reference"]])',
        )
    if len(hypotheses) != len(references):
        raise DataError(
            "there are not as many hypotheses as groups of references",
            where="hypotheses and references",
            got=f"{plural(len(hypotheses), 'hypothesis').replace('hypothesiss', 'hypotheses')} and "
            f"{plural(len(references), 'group')} of references",
            expected="one group of references for every hypothesis, in the same order",
            hint="look for a missing or an extra line, or for references that stand in another layout",
        )
    if not hypotheses:
        raise DataError(
            "there is nothing to score",
            where="hypotheses",
            got="no segments",
            expected="at least one hypothesis with its references",
            hint="look whether the decoding wrote anything",
        )
    empty = [i for i, text in enumerate(hypotheses) if not text.strip()]
    if empty and not allow_empty:
        raise DataError(
            "a hypothesis is empty",
            where=f"hypotheses, {_numbered(empty, len(hypotheses))}",
            got="no text",
            expected="a text for every segment",
            hint='if the model really wrote nothing there, score it as such: empty_hypotheses="counted"',
        )
    bare = [i for i, group in enumerate(references) if not any(text.strip() for text in group)]
    if bare:
        raise DataError(
            "a group of references is empty",
            where=f"references, {_numbered(bare, len(references))}",
            got="no text",
            expected="at least one reference text for every hypothesis",
            hint="leave these segments out of both files, or add what they are compared with",
        )
