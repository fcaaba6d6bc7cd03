"""Figure 2: quality over the number of trained parameters, a line for each method.

The runs are the user's, the paper's printed ones, or both: a source is a file of results or a printed table's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.runs import number_of, read_runs, whole_of
from deltaw.paper.analyses.style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Quality", "Scored", "quality", "read_quality"]

_TITLE, _METRIC = "quality over trained parameters", "score"
_LEVEL, _ACROSS = "#4d4d4d", 3


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One run.

    Args:
        method: its name.
        parameters: trained.
        score: higher is better.
        task: what it was scored on; empty where there is one task.
        setting: what tells runs of one method and size apart, such as the adapted matrices; empty where nothing does.
    """

    method: str
    parameters: int
    score: float
    task: str = ""
    setting: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality(Analysis):
    """Quality over parameters.

    Args:
        runs: one entry for each method, size, setting and task; seeds are averaged.
        title: what was scored on what.
        metric: name of the score.
        levels: runs that are drawn as a level to compare with, not as a point: of a size far beyond the others'.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "quality"

    runs: tuple[Scored, ...]
    title: str = _TITLE
    metric: str = _METRIC
    levels: tuple[Scored, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(dict.fromkeys(run.task for run in self.runs))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(dict.fromkeys(run.method for run in self.runs))

    def sheet(self) -> Sheet:
        """A row for each method, size and setting, a column for each task; levels come last."""
        rows: dict[tuple[str, str, int], dict[str, float]] = {}
        for run in (*self.runs, *self.levels):
            rows.setdefault((run.method, run.setting, run.parameters), {})[run.task] = run.score
        settings = any(setting for _, setting, _ in rows)
        columns = ("method", *(("setting",) if settings else ()), "parameters",
                   *(task or self.metric for task in self.tasks))  # fmt: skip
        cells = tuple(
            (method, *((setting or None,) if settings else ()), size, *(scores.get(task) for task in self.tasks))
            for (method, setting, size), scores in rows.items()
        )
        return Sheet(title=self.title, columns=columns, rows=cells, notes=self.notes)

    def details(self) -> Mapping[str, Any]:
        """Name of the score."""
        return {"metric": self.metric}

    @property
    def size(self) -> tuple[float, float]:
        """A panel for each task, three beside each other at most."""
        across, down = self._grid
        return 1.6 + 3.6 * across, 0.6 + 3.6 * down

    @property
    def _grid(self) -> tuple[int, int]:
        number = len(self.tasks)
        return min(number, _ACROSS), -(-number // _ACROSS)

    def draw(self, figure: Figure) -> None:
        """Figure 2: a panel for each task.

        Args:
            figure: an empty one of ``size``.
        """
        across, down = self._grid
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axes in panels[len(self.tasks) :]:
            axes.remove()
        for axes, task in zip(panels, self.tasks, strict=False):
            for place, method in enumerate(self.methods):
                points = sorted((r.parameters, r.score) for r in self.runs if (r.method, r.task) == (method, task))
                if points:
                    handles[method] = _line(axes, points, look(place))
            for level in (level for level in self.levels if level.task == task):
                handles[f"{level.method}: {level.parameters / 1e6:,.1f}M"] = axes.axhline(
                    level.score, color=_LEVEL, linestyle=(0, (1, 2)), linewidth=1.2
                )
            axes.set_xscale("log")
            axes.set(xlabel="trained parameters", ylabel=self.metric, title=task)
            axes.grid(True)
        figure.legend(list(handles.values()), list(handles), loc="outside right center")
        figure.suptitle(self.title)


def _line(axes: Axes, points: Sequence[tuple[int, float]], style: dict[str, Any]) -> Any:
    """A method's points with a line through them; where several have one size, through their mean."""
    if len({size for size, _ in points}) == len(points):
        return axes.plot(*zip(*points, strict=True), **style)[0]
    sizes = sorted({size for size, _ in points})
    means = [fmean(score for size, score in points if size == here) for here in sizes]
    axes.plot(sizes, means, **{**style, "marker": ""})
    axes.plot(*zip(*points, strict=True), **{**style, "linestyle": ""})
    return axes.plot([], [], **style)[0]


def quality(
    runs: Iterable[Scored],
    *,
    title: str = _TITLE,
    metric: str = _METRIC,
    levels: Iterable[Scored] = (),
    notes: Iterable[str] = (),
) -> Quality:
    """Put runs into figure 2.

    Args:
        runs: any order; runs of one method, size, setting and task are averaged.
        title: what was scored on what.
        metric: name of the score.
        levels: what is drawn as a level to compare with.
        notes: to print along.

    Returns:
        The figure's value; methods in the order they appear, sizes ascending.

    Source:
        arXiv:2106.09685, figure 2, Table 15.

    Example:
        >>> made = quality([Scored(method="LoRA", parameters=8, score=s) for s in (0.5, 0.7)])
        >>> made.sheet().rows
        (('LoRA', 8, 0.6),)
    """
    groups: dict[tuple[str, int, str, str], list[float]] = {}
    order: dict[str, int] = {}
    for run in runs:
        groups.setdefault((run.method, run.parameters, run.setting, run.task), []).append(run.score)
        order.setdefault(run.method, len(order))
    keys = sorted(groups, key=lambda key: (order[key[0]], key[1]))
    made = tuple(
        Scored(method=m, parameters=n, setting=s, task=t, score=fmean(groups[m, n, s, t])) for m, n, s, t in keys
    )
    return Quality(runs=made, title=title, metric=metric, levels=tuple(levels), notes=tuple(notes))


def read_quality(source: str | Path) -> list[Scored]:
    """Read runs from CSV or JSON: method, parameters, score, and task and setting where there are several.

    Args:
        source: the file; what ``deltaw paper tables --json`` prints is one, too.

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
            setting=row.get("setting", "").strip(),
        )
        for row in read_runs(source, ("method", "parameters", "score"))
    ]
