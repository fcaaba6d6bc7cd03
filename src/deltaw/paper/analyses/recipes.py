"""Tables 5, 6 and 18: which weights to adapt at one budget, and how rank matters; the runs, and their results.

Table 5 gives every choice of projections the same number of values, so that a narrower choice has a larger rank. The
scaling's numerator is the same for all runs: the paper sets it to the first rank it tries and leaves it there (4.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

import deltaw as dw
from deltaw.errors import ConfigError, DataError, nearest
from deltaw.paper.analyses.result import Analysis, Cell, Sheet
from deltaw.paper.analyses.runs import number_of, read_runs
from deltaw.paper.analyses.style import COLORS, look
from deltaw.paper.analyses.turns import require_positive
from deltaw.paper.roles import ROLES, roles_of, targets_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RANKS", "SWEPT", "TABLE_5", "Recipe", "Recipes", "rank_sweep", "read_scores", "which"]

TABLE_5 = ("q", "k", "v", "o", "qk", "qv", "qkvo")
"""Columns of Table 5: letters of the projections."""
SWEPT = ("q", "qv", "qkvo")
"""Rows of Table 6."""
RANKS = (1, 2, 4, 8, 64)
"""Columns of Table 6."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run to make.

    Args:
        run: its name.
        weights: letters of the projections.
        targets: the same as ``LoRAConfig.targets``.
        rank: r.
        alpha: numerator of the scaling.
        parameters: values of the adapter.
    """

    run: str
    weights: str
    targets: tuple[str, ...]
    rank: int
    alpha: float
    parameters: int

    def config(self) -> dw.LoRAConfig:
        """The run's configuration.

        Returns:
            For ``deltaw.attach``.
        """
        return dw.LoRAConfig(targets=self.targets, rank=self.rank, alpha=self.alpha)

    def toml(self) -> str:
        """The run's table for ``deltaw train --config``.

        Returns:
            TOML; model and data are said elsewhere.

        Example:
            >>> print(Recipe(run="q-r8", weights="q", targets=("q_proj",), rank=8, alpha=8, parameters=1).toml())
            # q-r8: 1 parameters
            [adapter]
            targets = ["q_proj"]
            rank = 8
            alpha = 8
            <BLANKLINE>
        """
        head = f"# {self.run}: {self.parameters:,} parameters"
        return f"{head}\n[adapter]\ntargets = {json.dumps(self.targets)}\nrank = {self.rank}\nalpha = {self.alpha:g}\n"


@dataclass(frozen=True, kw_only=True)
class Recipes(Analysis):
    """Runs to make, and their scores where they were made.

    Args:
        kind: "which" or "rank-sweep", the first part of its files' names.
        model: what they are for.
        recipes: the runs.
        scores: task -> run -> scores of the seeds; empty before the runs.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "recipes"

    kind: str
    model: str
    recipes: tuple[Recipe, ...]
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """First part of its files' names."""
        return self.kind

    def sheet(self) -> Sheet:
        """A row for each run; mean scores behind it."""
        columns = (
            "run",
            "weights",
            "targets",
            "rank",
            "alpha",
            "parameters",
            *(task or "score" for task in self.scores),
        )
        rows = []
        for r in self.recipes:
            row: tuple[Cell, ...] = (r.run, r.weights, " ".join(r.targets), r.rank, f"{r.alpha:g}", r.parameters)
            seen = [scores.get(r.run) for scores in self.scores.values()]
            rows.append(row + tuple(None if seeds is None else fmean(seeds) for seeds in seen))
        words = {"which": "which weights to adapt at one budget (Table 5)", "rank-sweep": "ranks (Tables 6, 18)"}
        return Sheet(title=f"{self.model}: {words[self.kind]}", columns=columns, rows=tuple(rows), notes=self.notes)

    def details(self) -> Mapping[str, Any]:
        """The runs as TOML, and every seed's score."""
        return {"toml": {recipe.run: recipe.toml() for recipe in self.recipes}, "scores": self.scores}

    def extras(self) -> Mapping[str, str]:
        """Each run's table for ``deltaw train --config``."""
        return {f"{recipe.run}.toml": recipe.toml() for recipe in self.recipes}

    @property
    def size(self) -> tuple[float, float]:
        """A panel for each task."""
        return 1.4 + 4.2 * max(1, len(self.scores)), 3.8

    def draw(self, figure: Figure) -> None:
        """Scores where there are some, else what each run trains: bars by weights, or lines over ranks.

        Args:
            figure: an empty one of ``size``.
        """
        from matplotlib.ticker import EngFormatter

        shown: dict[str, Mapping[str, float]] = {
            task or "score": {run: fmean(seeds) for run, seeds in scores.items()}
            for task, scores in self.scores.items()
        }
        shown = shown or {"parameters": {recipe.run: float(recipe.parameters) for recipe in self.recipes}}
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (task, values) in zip(panels, shown.items(), strict=True):
            made = [recipe for recipe in self.recipes if recipe.run in values]
            if self.kind == "which":
                labels = [f"{','.join(recipe.weights)}\nr={recipe.rank}" for recipe in made]
                heights = [values[recipe.run] for recipe in made]
                axes.bar(labels, heights, color=COLORS[2], edgecolor=COLORS[0])
                if self.scores and min(heights) != max(heights):
                    # bars from zero would hide differences of a percent
                    reach = max(heights) - min(heights)
                    axes.set_ylim(min(heights) - 0.5 * reach, max(heights) + 0.1 * reach)
            else:
                for place, weights in enumerate(dict.fromkeys(recipe.weights for recipe in made)):
                    own = [(recipe.rank, values[recipe.run]) for recipe in made if recipe.weights == weights]
                    axes.plot(*zip(*sorted(own), strict=True), label=",".join(weights), **look(place))
                axes.set_xscale("log", base=2)
                ranks = sorted({recipe.rank for recipe in made})
                axes.set_xticks(ranks, list(map(str, ranks)))
                axes.set_xlabel("rank")
                axes.legend()
                if not self.scores:
                    axes.set_yscale("log")
            axes.set_ylabel(task)
            if not self.scores:
                axes.yaxis.set_major_formatter(EngFormatter())
            axes.grid(True, axis="y")
        figure.suptitle(self.sheet().title)


def _per_rank(model: nn.Module, targets: Sequence[str]) -> int:
    return dw.plan(model, dw.LoRAConfig(targets=targets, rank=1, alpha=1)).parameters


def which(model: nn.Module, *, name: str, budget: int | None = None, alpha: float | None = None) -> Recipes:
    """Give each of Table 5's seven choices the rank that makes its adapter as large as the others.

    Args:
        model: any model, on any device; its weights are not read.
        name: of it, for the titles.
        budget: values of the adapter; None takes rank 2 on all four projections.
        alpha: numerator of the scaling; None takes the largest rank.

    Returns:
        The runs.

    Raises:
        ModelError: if the model's projections are not known by name.
        ConfigError: if the budget is smaller than rank 1 of a choice.

    Source:
        arXiv:2106.09685, section 7.1, Table 5.
    """
    roles = roles_of(model)
    each = {letters: _per_rank(model, targets_for(roles, letters)) for letters in TABLE_5}
    total = 2 * each["qkvo"] if budget is None else budget
    require_positive(budget=total)
    small = [letters for letters in TABLE_5 if total < each[letters]]
    if small:
        raise ConfigError(
            "the budget does not reach for rank 1",
            where=f"--budget, weights {', '.join(small)}",
            got=f"{total:,}",
            expected=f"at least {max(each.values()):,}, which is rank 1 on q, k, v and o",
            hint=f"Table 5 has rank 2 there: --budget {2 * each['qkvo']}.",
        )
    ranks = {letters: total // each[letters] for letters in TABLE_5}
    common = alpha if alpha is not None else float(max(ranks.values()))
    recipes = tuple(
        _recipe(letters, targets_for(roles, letters), ranks[letters], common, each[letters]) for letters in TABLE_5
    )
    uneven = sorted({recipe.parameters for recipe in recipes})
    notes = () if len(uneven) == 1 else (
        f"no rank gives every choice {total:,} values: they have {uneven[0]:,} to {uneven[-1]:,}",
    )  # fmt: skip
    return Recipes(kind="which", model=name, recipes=recipes, scores={}, notes=notes)


def rank_sweep(
    model: nn.Module,
    *,
    name: str,
    ranks: Sequence[int] = RANKS,
    weights: Sequence[str] = SWEPT,
    alpha: float | None = None,
) -> Recipes:
    """List the runs of a rank sweep.

    Args:
        model: any model, on any device; its weights are not read.
        name: of it, for the titles.
        ranks: r; Table 18 has the powers of two from 1 to 1024.
        weights: letters of projections, such as "qv"; Table 18 has that one alone.
        alpha: numerator of the scaling; None takes the first rank.

    Returns:
        The runs.

    Raises:
        ModelError: if the model's projections are not known by name.
        ConfigError: if a rank or a letter is wrong.

    Source:
        arXiv:2106.09685, section 7.2, Tables 6 and 18.
    """
    roles = roles_of(model)
    for rank in ranks:
        require_positive(ranks=rank)
    wrong = [
        letters for letters in weights if not letters or set(letters) - set(ROLES) or len(set(letters)) < len(letters)
    ]
    if wrong:
        raise ConfigError(
            "these are no projections of attention",
            where="--weights",
            got=repr(wrong[0]),
            expected="letters of q, k, v, o, each once, such as qv",
            hint="Table 6 has q, qv and qkvo.",
        )
    common = alpha if alpha is not None else float(ranks[0])
    recipes = []
    for letters in weights:
        targets = targets_for(roles, letters)
        each = _per_rank(model, targets)
        recipes += [_recipe(letters, targets, rank, common, each) for rank in ranks]
    return Recipes(kind="rank-sweep", model=name, recipes=tuple(recipes), scores={})


def _recipe(letters: str, targets: tuple[str, ...], rank: int, alpha: float, each: int) -> Recipe:
    return Recipe(
        run=f"{letters}-r{rank}", weights=letters, targets=targets, rank=rank, alpha=alpha, parameters=rank * each
    )


def read_scores(source: str | Path, recipes: Recipes) -> dict[str, dict[str, tuple[float, ...]]]:
    """Read results of runs from CSV or JSON: run, score, and task where there are several.

    Args:
        source: the file.
        recipes: the runs it may speak of.

    Returns:
        Task -> run -> scores of the seeds.

    Raises:
        DataError: if it cannot be read, or names a run that is none of these.
    """
    known = [recipe.run for recipe in recipes.recipes]
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in read_runs(source, ("run", "score")):
        run = row["run"].strip()
        if run not in known:
            raise DataError(
                "a result is of no run of this list",
                where=row[""],
                got=repr(run),
                expected=", ".join(known),
                hint=f"nearest: {nearest(run, known)}; or give the budget, ranks and weights of those runs.",
            )
        own = found.setdefault(row.get("task", "").strip(), {})
        own[run] = (*own.get(run, ()), number_of(row, "score"))
    return found
