"""What became of the rows: counted, so that nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataReport", "Tally", "length_stats"]


@dataclass
class Tally:
    """Rows something happened to: how many, and the first few.

    Args:
        count: how many.
        first: places of the first ones, such as ``line 12``.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count one row.

        Args:
            place: where it is.
        """
        self.count += 1
        if len(self.first) < 5 and place not in self.first:
            self.first.append(place)

    def __str__(self) -> str:
        """``3 (line 2, line 7, ...)``."""
        shown = ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")
        return f"{self.count:,}" + (f" ({shown})" if self.count else "")


@dataclass(kw_only=True)
class DataReport:
    """What was read, how it was understood, and what it became. ``str()`` is a table.

    Args:
        path: the file.
        kind: its file format.
        rows: rows read.
        format: format of the rows.
        reason: why this format.
        task: ``causal``, ``classification`` or ``regression``.
        template: how a row becomes text.
        end_token: text of the token that ends an answer; empty for none.
        max_length: tokens at most per example.
        truncation: what was done with longer ones.
        examples: how many examples there are.
        tokens: tokens of all examples.
        trained_tokens: tokens with a weight.
        lengths: tokens per example: min, median, p95, max.
        histogram: number of examples per power-of-two length, as (upper bound in tokens, count).
        duplicates: examples whose tokens (and label) occurred before.
        cut: examples that lost trained tokens or text at the end.
        cut_prompts: examples that lost the start of their prompt.
        lost: examples left out because no trained token was left after the cut.
        too_long: examples left out by truncation ``drop``.
        untrained: examples left out because nothing in them is trained.
        bad: broken rows left out because the caller asked for that.
        unrolled: conversations that became one example per assistant turn.
        windows: texts cut into windows of the maximum length.
        across: examples with a token across the border of context and answer.
        begun: texts that already began with the begin token, which was not added twice.
        without_end: assistant turns after which the template puts no end token.
        special: rows whose text contains the text of a special token.
        labels: number of rows per class name.
        notes: further choices the user should see.
        cached: whether the tokens came from the cache.
        cache: the directory that holds them.
    """

    path: str
    kind: str
    rows: int
    format: str
    reason: str
    task: str
    template: str = ""
    end_token: str = ""
    max_length: int = 0
    truncation: str = ""
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    histogram: list[tuple[int, int]] = field(default_factory=list)
    duplicates: int = 0
    cut: Tally = field(default_factory=Tally)
    cut_prompts: Tally = field(default_factory=Tally)
    lost: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)
    untrained: Tally = field(default_factory=Tally)
    bad: Tally = field(default_factory=Tally)
    unrolled: int = 0
    windows: Tally = field(default_factory=Tally)
    across: Tally = field(default_factory=Tally)
    begun: Tally = field(default_factory=Tally)
    without_end: int = 0
    special: Tally = field(default_factory=Tally)
    labels: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cached: bool = False
    cache: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """Read back what ``dataclasses.asdict`` wrote.

        Args:
            values: field by field.

        Returns:
            The report.
        """
        tallies = {name for name, value in cls.__dataclass_fields__.items() if value.default_factory is Tally}
        read: dict[str, Any] = {key: Tally(**value) if key in tallies else value for key, value in values.items()}
        read["histogram"] = [(int(bound), int(count)) for bound, count in values["histogram"]]
        return cls(**read)

    def lines(self) -> Iterable[tuple[str, str]]:
        """Give the table as (name, value); what did not occur is left out.

        Yields:
            tuple[str, str]: name and value.
        """
        yield "data", f"{self.path} ({self.kind}, {self.rows:,} rows)"
        yield "format", f"{self.format}: {self.reason}"
        yield "task", self.task + (f", {_shares(self.labels)}" if self.labels else "")
        if self.task == "causal":
            yield "template", self.template
            yield (
                "end token",
                f"{self.end_token!r}, trained" if self.end_token else "none: a model will not learn to stop",
            )
        yield "examples", f"{self.examples:,}, {self.tokens:,} tokens" + self._trained()
        yield (
            "lengths",
            ", ".join(f"{name} {value:,}" for name, value in self.lengths.items()) + (f"; at most {self.max_length:,}"),
        )
        yield from ((name, str(tally)) for name, tally in self._losses() if tally.count)
        if self.duplicates:
            yield "duplicates", f"{self.duplicates:,} examples repeat an earlier one"
        if self.unrolled:
            yield "unrolled", f"{self.unrolled:,} conversations, because the template rewrites earlier turns"
        if self.without_end:
            yield "no end token", f"after {self.without_end:,} assistant turns: the template puts none there"
        yield from (("note", note) for note in self.notes)
        if self.cached:
            yield "cache", f"tokens read from {self.cache}"

    def _trained(self) -> str:
        if self.task != "causal":
            return ""
        return f", {self.trained_tokens:,} trained ({self.trained_tokens / max(1, self.tokens):.0%})"

    def _losses(self) -> Iterable[tuple[str, Tally]]:
        yield "cut", self.cut
        yield "prompts cut", self.cut_prompts
        yield "answers lost", self.lost
        yield "too long", self.too_long
        yield "untrained", self.untrained
        yield "broken rows", self.bad
        yield "windows", self.windows
        yield "across", self.across
        yield "begin kept", self.begun
        yield "special text", self.special

    def __str__(self) -> str:
        """The table, one line per fact."""
        return "\n".join(f"{name:<13} {value}" for name, value in self.lines())


def _shares(labels: dict[str, int]) -> str:
    total = max(1, sum(labels.values()))
    shown = [f"{name} {count / total:.0%}" for name, count in list(labels.items())[:8]]
    more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return f"{len(labels)} classes: {', '.join(shown)}{more}"


def length_stats(lengths: NDArray[np.int64]) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """Summarize lengths.

    Args:
        lengths: tokens per example, shape (examples,), at least one.

    Returns:
        Min, median, p95 and max; and the histogram over powers of two.
    """
    median, p95 = np.percentile(lengths, [50, 95], method="higher")
    stats = {"min": int(lengths.min()), "median": int(median), "p95": int(p95), "max": int(lengths.max())}
    bounds = 1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    values, counts = np.unique(bounds, return_counts=True)
    return stats, [(int(value), int(count)) for value, count in zip(values, counts, strict=True)]
