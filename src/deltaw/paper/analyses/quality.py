"""Figure 2: quality over the number of trained parameters, a line for each method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.runs import number_of, read_runs, whole_of
from deltaw.paper.analyses.style import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Quality", "Scored", "quality", "read_quality"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One run.

    Args:
        method: its name.
        parameters: trained.
        score: higher is better.
        task: what it was scored on; empty where there is one task.
    """

    method: str
    parameters: int
    score: float
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality(Analysis):
    """Quality over parameters.

    Args:
        runs: one entry for each method, size and task; seeds are averaged.
        title: what was scored on what.
        metric: name of the score.
    """

    name: ClassVar[str] = "quality"

    runs: tuple[Scored, ...]
    title: str = "quality over trained parameters"
    metric: str = "score"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(dict.fromkeys(run.task for run in self.runs))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(dict.fromkeys(run.method for run in self.runs))

    def sheet(self) -> Sheet:
        """A row for each method and size, a column for each task."""
        rows: dict[tuple[str, int], dict[str, float]] = {}
        for run in self.runs:
            rows.setdefault((run.method, run.parameters), {})[run.task] = run.score
        columns = ("method", "parameters", *(task or self.metric for task in self.tasks))
        cells = tuple((*key, *(scores.get(task) for task in self.tasks)) for key, scores in rows.items())
        return Sheet(title=self.title, columns=columns, rows=cells)

    def details(self) -> Mapping[str, Any]:
        """Name of the score."""
        return {"metric": self.metric}

    @property
    def size(self) -> tuple[float, float]:
        """A panel for each task."""
        return 1.6 + 3.6 * len(self.tasks), 4.2

    def draw(self, figure: Figure) -> None:
        """Figure 2: a panel for each task.

        Args:
            figure: an empty one of ``size``.
        """
        panels = figure.subplots(1, len(self.tasks), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, task in zip(panels, self.tasks, strict=True):
            for place, method in enumerate(self.methods):
                points = sorted((r.parameters, r.score) for r in self.runs if (r.method, r.task) == (method, task))
                if points:
                    (handles[method],) = axes.plot(*zip(*points, strict=True), **look(place))
            axes.set_xscale("log")
            axes.set(xlabel="trained parameters", ylabel=self.metric, title=task)
            axes.grid(True)
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
        figure.suptitle(self.title)


def quality(
    runs: Iterable[Scored], *, title: str = "quality over trained parameters", metric: str = "score"
) -> Quality:
    """Put runs into figure 2.

    Args:
        runs: any order; runs of one method, size and task are averaged.
        title: what was scored on what.
        metric: name of the score.

    Returns:
        The figure's value; methods in the order they appear, sizes ascending.

    Source:
        arXiv:2106.09685, figure 2, Table 15.

    Example:
        >>> made = quality([Scored(method="LoRA", parameters=8, score=s) for s in (0.5, 0.7)])
        >>> made.sheet().rows
        (('LoRA', 8, 0.6),)
    """
    groups: dict[tuple[str, int, str], list[float]] = {}
    order: dict[str, int] = {}
    for run in runs:
        groups.setdefault((run.method, run.parameters, run.task), []).append(run.score)
        order.setdefault(run.method, len(order))
    keys = sorted(groups, key=lambda key: (order[key[0]], key[1]))
    made = tuple(Scored(method=m, parameters=n, task=t, score=fmean(groups[m, n, t])) for m, n, t in keys)
    return Quality(runs=made, title=title, metric=metric)


def read_quality(source: str | Path) -> list[Scored]:
    """Read runs from CSV or JSON: method, parameters, score, and task where there are several.

    Args:
        source: the file.

    Returns:
        The runs.

    Raises:
        DataError: if it cannot be read.
    """
    return [
        Scored(
            method=row["method"].strip(),
            parameters=whole_of(row, "parameters"),
            score=number_of(row, "score"),
            task=row.get("task", "").strip(),
        )
        for row in read_runs(source, ("method", "parameters", "score"))
    ]
