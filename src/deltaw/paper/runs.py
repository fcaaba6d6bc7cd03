"""Runs of several seeds as the paper reports them: the best validation of each, then median, mean and spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.reports import plural, table
from deltaw.train.best import lower_is_better, task_metric
from deltaw.train.metrics import read_metrics
from deltaw.train.output import METRICS, REPORT, SETTINGS
from deltaw.train.resume import CHANGEABLE
from deltaw.train.settings import read_toml

__all__ = ["Gathered", "Run", "Spread", "gather", "read_run"]

# Besides the seed, what moves files or adds reports but changes no number. A resumed run knows its base and data by
# their content; here their paths are all there is.
FREE = (CHANGEABLE | {"run.seed", "run.overwrite"}) - {"model.path", "data.path", "data.valid"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run measured.

    Args:
        path: its directory.
        seed: its seed.
        settings: section -> key -> value, from run.toml.
        points: (step, epoch, metrics) of every validation after step 0, in order.
        finished: whether it ran to its end.
    """

    path: Path
    seed: int
    settings: Mapping[str, Mapping[str, Any]]
    points: tuple[tuple[int, float, Mapping[str, float]], ...]
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric over runs.

    Args:
        count: runs.
        median: of the runs.
        mean: of the runs.
        std: sample standard deviation (over n - 1); None for one run.
        low: smallest value.
        high: largest value.
    """

    count: int
    median: float
    mean: float
    std: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize values.

        Args:
            values: one per run, at least one.

        Returns:
            The summary.

        Example:
            >>> Spread.of([1.0, 2.0, 6.0]).median, Spread.of([1.0, 2.0, 6.0]).mean
            (2.0, 3.0)
        """
        return cls(
            count=len(values),
            median=statistics.median(values),
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else None,
            low=min(values),
            high=max(values),
        )


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Several runs of one experiment.

    Args:
        metric: what the best validation was chosen by.
        best: ``highest``, ``lowest`` or ``last``.
        rows: a mapping for each run: run, seed, step, epoch and every metric of its best validation.
        spread: metric -> summary over the runs.
        notes: what a reader should know.
    """

    metric: str
    best: str
    rows: tuple[Mapping[str, Any], ...]
    spread: Mapping[str, Spread]
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns: run, seed, step, epoch, then the metrics, the chosen one first."""
        return ("run", "seed", "step", "epoch", *self.spread)

    def cells(self) -> list[list[Any]]:
        """The rows under the header.

        Returns:
            One list for each run.
        """
        return [[row[name] for name in self.header] for row in self.rows]

    def __str__(self) -> str:
        """The runs, then a line for each statistic."""
        shown = [[_text(cell) for cell in row] for row in self.cells()]
        lines = [table(self.header, shown), ""]
        names = list(self.spread)
        parts: dict[str, list[str]] = {
            "median": [_text(self.spread[name].median) for name in names],
            "mean": [_text(self.spread[name].mean) for name in names],
            "std (n - 1)": [_text(self.spread[name].std) for name in names],
            "lowest": [_text(self.spread[name].low) for name in names],
            "highest": [_text(self.spread[name].high) for name in names],
        }
        lines.append(table(("", *names), [[title, *values] for title, values in parts.items()]))
        how = "its last validation" if self.best == "last" else f"the validation with the {self.best} {self.metric}"
        lines += ["", f"{plural(len(self.rows), 'run')}, each at {how}", *self.notes]
        return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def read_run(directory: Path, scores: str | None = None) -> Run:
    """Read what a run of ``deltaw train`` left behind.

    Args:
        directory: its output directory.
        scores: name of a JSON file of numbers in it, taken instead of the validations: what decoding scored.

    Returns:
        The run.

    Raises:
        DataError: if it is no such directory, or nothing was measured in it.
    """
    lacking = [name for name in (METRICS, SETTINGS) if not (directory / name).is_file()]
    if lacking:
        raise _unread(directory, f"no {' and no '.join(lacking)}", "the output directory of deltaw train")
    settings = read_toml(directory / SETTINGS)
    points, step, epoch, began = [], 0, 0.0, False
    for record in read_metrics(directory / METRICS):
        if record["kind"] == "step":
            step, epoch, began = record["step"], record["epoch"], True
        elif record["kind"] == "valid" and began:
            values = {name: value for name, value in record.items() if name not in ("kind", "step")}
            points.append((record["step"], epoch, values))
    if scores is not None:
        points = [(step, epoch, _scores(directory / scores))]
    if not points:
        raise _unread(directory, "no validation after step 0", "a run with --valid or --valid-fraction")
    report = directory / REPORT
    done = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    seed = int(settings.get("run", {}).get("seed", 0))
    finished = bool(done) and not done.get("interrupted", False)
    return Run(path=directory, seed=seed, settings=settings, points=tuple(points), finished=finished)


def _unread(where: Path, got: str, expected: str) -> DataError:
    return DataError(
        "a run cannot be read",
        where=str(where),
        got=got,
        expected=expected,
        hint="check the directories that are named",
    )


def _scores(place: Path) -> dict[str, float]:
    """Every number of a JSON file, nested names joined by dots."""
    try:
        held = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unread(place, str(error), "a JSON file of numbers in every run's directory") from None
    found: dict[str, float] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)

    walk(held, "")
    if not found:
        raise _unread(place, "no number in it", "a JSON file of numbers in every run's directory")
    return found


def gather(runs: Sequence[Run], metric: str | None = None, best: str = "auto", *, mixed: bool = False) -> Gathered:
    """Choose the best validation of each run, and summarize.

    Args:
        runs: of one experiment, differing in their seeds; at least one.
        metric: what to choose by; by default what the paper reports for the task, or the first that the runs measured
            beside loss and perplexity, or ``loss``.
        best: ``highest``, ``lowest``, ``last``, or ``auto`` by the metric's name.
        mixed: accept runs whose settings differ in more than the seed.

    Returns:
        The summary.

    Raises:
        ConfigError: if the runs differ in more than the seed.
        DataError: if a run did not measure the metric.

    Source:
        Hu et al. 2021, arXiv:2106.09685, appendix D: median of 5 seeds on GLUE, mean of 3 on E2E, best epoch of each.
    """
    names = [list(values) for run in runs for _, _, values in run.points]
    common = [name for name in names[0] if all(name in others for others in names)]
    chosen = metric or _own_metric(runs, common)
    if chosen not in common:
        lacking = next(run for run in runs if any(chosen not in values for _, _, values in run.points))
        raise DataError(
            f"a run did not measure {chosen!r}",
            where=str(lacking.path),
            got=", ".join(lacking.points[0][2]),
            expected=f"{chosen!r} in every validation of every run",
            hint=f"closest in all runs: {nearest(chosen, common)}; choose one with --metric",
        )
    notes = _differences(runs, mixed)
    way = best if best != "auto" else "lowest" if lower_is_better(chosen) else "highest"
    order = [chosen, *(name for name in common if name != chosen)]
    rows: list[dict[str, Any]] = []
    for run in runs:
        step, epoch, values = _best(run, chosen, way)
        place = {"run": str(run.path), "seed": run.seed, "step": step, "epoch": round(epoch, 4)}
        rows.append({**place, **{name: float(values[name]) for name in order}})
    spread = {name: Spread.of([row[name] for row in rows]) for name in order}
    notes += [f"NOT FINISHED: {run.path}" for run in runs if not run.finished]
    return Gathered(metric=chosen, best=way, rows=tuple(rows), spread=spread, notes=tuple(notes))


def _own_metric(runs: Sequence[Run], common: Sequence[str]) -> str:
    """What a task is judged by, where the runs measured it; else the loss."""
    tasks = {str(run.settings.get("model", {}).get("task", "")) for run in runs}
    named = task_metric(tasks.pop()) if len(tasks) == 1 else None
    if named is not None and named in common:
        return named
    return next((name for name in common if name not in ("loss", "perplexity")), "loss")


def _best(run: Run, metric: str, way: str) -> tuple[int, float, Mapping[str, float]]:
    """The best validation, the first of several that are equal."""
    if way == "last":
        return run.points[-1]
    sign = 1 if way == "highest" else -1
    return max(run.points, key=lambda point: sign * float(point[2][metric]))


def _differences(runs: Sequence[Run], mixed: bool) -> list[str]:
    """What the runs' settings do not share beside the seed, and seeds that come twice."""
    flat = [
        {f"{section}.{name}": value for section, values in run.settings.items() for name, value in values.items()}
        for run in runs
    ]
    keys = sorted({key for values in flat for key in values} - FREE)
    differ = [key for key in keys if any(values.get(key) != flat[0].get(key) for values in flat)]
    notes = []
    if differ and not mixed:
        key = differ[0]
        other = next(place for place, values in enumerate(flat) if values.get(key) != flat[0].get(key))
        raise ConfigError(
            "the runs differ in more than their seeds",
            where=f"{runs[0].path} and {runs[other].path}",
            got=", ".join(f"{key} {flat[0].get(key)!r} and {flat[other].get(key)!r}" for key in differ[:3])
            + (f", and {len(differ) - 3} more" if len(differ) > 3 else ""),
            expected="runs of one experiment",
            hint="leave out what does not belong, or add --mixed to summarize them all the same",
        )
    if differ:
        notes.append(f"MIXED: the runs differ in {', '.join(differ)}")
    seeds = [run.seed for run in runs]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice and not differ:
        notes.append(f"SEEDS TWICE: {', '.join(map(str, twice))}; equal runs add nothing to a spread")
    return notes
