"""Tables 16 and 17: training on few examples. The protocol as a list of runs, and the table of their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.result import Analysis, Sheet, spread
from deltaw.paper.analyses.runs import number_of, read_runs, whole_of
from deltaw.paper.analyses.style import look
from deltaw.paper.analyses.turns import require_positive
from deltaw.paper.recipe_tables import SIZES, Row, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXAMPLES", "LowData", "LowRun", "Protocol", "collect", "protocol", "read_low_data"]

EXAMPLES = (100, 1000, 10_000, 392_702)
"""Sizes of the samples; the last is all of MNLI, which the paper rounds to 392K."""

_TITLES = {"full": "FT", "prefix-embedding": "PreEmbed", "prefix-layer": "PreLayer", "lora": "LoRA"}


@dataclass(frozen=True, kw_only=True)
class LowRun:
    """One run of the protocol: AdamW, linear decay, 250,000 tokens of warm-up.

    Args:
        method: FT, PreEmbed, PreLayer or LoRA.
        examples: size of the random sample.
        batch: rows of a step.
        epochs: passes over the sample.
        rate: learning rate.
        size: prefix lengths or ranks, in words.
    """

    method: str
    examples: int
    batch: int
    epochs: int
    rate: float
    size: str

    @property
    def steps(self) -> int:
        """Optimizer steps, the last batch of an epoch counted whole."""
        return self.epochs * -(-self.examples // self.batch)


@dataclass(frozen=True, kw_only=True)
class Protocol(Analysis):
    """The runs that Table 16 needs.

    Args:
        runs: one entry for each method and sample.
    """

    name: ClassVar[str] = "low-data-protocol"

    runs: tuple[LowRun, ...]

    def sheet(self) -> Sheet:
        """A row for each run."""
        columns = ("method", "examples", "batch", "epochs", "steps", "learning rate", "size")
        rows = tuple((r.method, r.examples, r.batch, r.epochs, r.steps, f"{r.rate:g}", r.size) for r in self.runs)
        notes = ("AdamW, linear decay, 250,000 tokens of warm-up; examples drawn at random; seeds vary by +-0.3",)
        return Sheet(title="Tables 16 and 17: runs on parts of MNLI", columns=columns, rows=rows, notes=notes)

    def draw(self, figure: Figure) -> None:
        """Learning rates and steps over the size of the sample.

        Args:
            figure: an empty one of ``size``.
        """
        rates, steps = figure.subplots(1, 2)
        for place, method in enumerate(dict.fromkeys(run.method for run in self.runs)):
            own = [run for run in self.runs if run.method == method]
            rates.plot([run.examples for run in own], [run.rate for run in own], label=method, **look(place))
        first = [run for run in self.runs if run.method == self.runs[0].method]
        steps.plot([run.examples for run in first], [run.steps for run in first], **look(0))
        for axes, word in ((rates, "learning rate"), (steps, "steps, all methods")):
            axes.set(xlabel="training examples", ylabel=word, xscale="log", yscale="log")
            axes.grid(True)
        rates.legend()
        figure.suptitle("Protocol of Tables 16 and 17")


def protocol(total: int = EXAMPLES[-1]) -> Protocol:
    """List the runs of the low-data study.

    Args:
        total: size of the whole training set; samples as large as it are left out.

    Returns:
        The runs; the last column's settings go with the whole set.

    Raises:
        ConfigError: if the whole set is empty.

    Source:
        arXiv:2106.09685, Table 17.

    Example:
        >>> [run.rate for run in protocol().runs if run.method == "PreLayer"]
        [5e-05, 5e-05, 5e-05, 0.0001]
    """
    require_positive(total=total)
    sizes = [*(size for size in EXAMPLES[:-1] if size < total), total]
    columns = (*SIZES[: len(sizes) - 1], SIZES[-1])
    return Protocol(
        runs=tuple(
            _run(title, cells("table17", row, column), size)
            for row, title in _TITLES.items()
            for size, column in zip(sizes, columns, strict=True)
        )
    )


def _run(title: str, cell: Row, examples: int) -> LowRun:
    """One cell of Table 17: a row's settings for the sample in its column."""
    size = f"r_q = r_v = {cell['rank']}" if "rank" in cell else "-"
    size = f"lp {cell['prefix_length']}, li {cell['infix_length']}" if "prefix_length" in cell else size
    return LowRun(
        method=title, examples=examples, batch=cell["batch"], epochs=cell["epochs"], rate=cell["lr"], size=size
    )


@dataclass(frozen=True, kw_only=True)
class LowData(Analysis):
    """Scores over the size of the training sample.

    Args:
        scores: method -> examples -> scores of the seeds.
        title: what was scored on what.
        metric: name of the score.
    """

    name: ClassVar[str] = "low-data"

    scores: Mapping[str, Mapping[int, tuple[float, ...]]]
    title: str = "score over training examples"
    metric: str = "score"

    @property
    def examples(self) -> tuple[int, ...]:
        """Sizes of the samples, ascending."""
        return tuple(sorted({size for sizes in self.scores.values() for size in sizes}))

    def sheet(self) -> Sheet:
        """Table 16: a row for each method, a column for each sample; means over seeds."""
        rows = tuple(
            (method, *(fmean(sizes[size]) if size in sizes else None for size in self.examples))
            for method, sizes in self.scores.items()
        )
        most = max(len(seeds) for sizes in self.scores.values() for seeds in sizes.values())
        notes = (f"means of up to {most} seeds",) if most > 1 else ()
        return Sheet(
            title=self.title, columns=("method", *(f"n = {size:,}" for size in self.examples)), rows=rows, notes=notes
        )

    def details(self) -> Mapping[str, Any]:
        """Every seed's score."""
        return {"metric": self.metric, "scores": self.scores}

    def draw(self, figure: Figure) -> None:
        """A line for each method; bars where there are several seeds.

        Args:
            figure: an empty one of ``size``.
        """
        axes = figure.subplots()
        for place, (method, sizes) in enumerate(self.scores.items()):
            points = sorted((size, *spread(seeds)) for size, seeds in sizes.items())
            xs, means, deviations = zip(*points, strict=True)
            bars = deviations if any(deviations) else None
            axes.errorbar(xs, means, yerr=bars, capsize=3, label=method, **look(place))
        axes.set_xscale("log")
        axes.set(xlabel="training examples", ylabel=self.metric, title=self.title)
        axes.grid(True)
        axes.legend()


def collect(
    results: Iterable[tuple[str, int, float]], *, title: str = "score over training examples", metric: str = "score"
) -> LowData:
    """Put results into Table 16.

    Args:
        results: (method, examples, score), one for each run; seeds of one method and size stand beside each other.
        title: what was scored on what.
        metric: name of the score.

    Returns:
        The table.

    Source:
        arXiv:2106.09685, Table 16.

    Example:
        >>> collect([("LoRA", 100, 0.5), ("LoRA", 100, 0.7), ("FT", 1000, 0.8)]).sheet().rows
        (('LoRA', 0.6, None), ('FT', None, 0.8))
    """
    scores: dict[str, dict[int, tuple[float, ...]]] = {}
    for method, examples, score in results:
        own = scores.setdefault(method, {})
        own[examples] = (*own.get(examples, ()), score)
    return LowData(scores=scores, title=title, metric=metric)


def read_low_data(source: str | Path) -> list[tuple[str, int, float]]:
    """Read results from CSV or JSON: method, examples, score.

    Args:
        source: the file.

    Returns:
        (method, examples, score) of each run.

    Raises:
        DataError: if it cannot be read.
    """
    rows = read_runs(source, ("method", "examples", "score"))
    return [(row["method"].strip(), whole_of(row, "examples"), number_of(row, "score")) for row in rows]
