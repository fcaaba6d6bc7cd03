"""Table 1 and figure 5: what a forward pass costs with each method, over batch, length and size.

All methods take a pass in every round, in turning order, so that what else the machine does meets all alike; the
slow-down is the median of the ratios to the base, round by round. Before anything is timed, the merged model must
answer as the unmerged one does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deltaw.errors import FaithError
from deltaw.paper.analyses.contenders import BASE, CONTENDERS, Contender, built, pick
from deltaw.paper.analyses.result import Analysis, Cell, Sheet
from deltaw.paper.analyses.style import WARM, heat
from deltaw.paper.analyses.subjects import random_inputs
from deltaw.paper.analyses.turns import Timing, milliseconds, require_positive, take_turns, timings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Case", "Latency", "latency", "machine"]

_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-9}
_COARSE = 0.1
"""Largest |difference| / max |logit| of merged and unmerged, by the dtype of the weights; else the last."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method at one batch, length and size.

    Args:
        method: its name.
        batch: rows.
        length: tokens of a row.
        bottleneck: rank, bottleneck or prefix length.
        parameters: values beyond the base's.
        timing: milliseconds and ratio.
    """

    method: str
    batch: int
    length: int
    bottleneck: int
    parameters: int
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class Latency(Analysis):
    """Times of forward passes.

    Args:
        model: what was timed.
        machine: on what.
        cases: one for each method, batch, length and size.
        difference: largest |merged - unmerged| / max |logit|; None where merging was not timed.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "latency"

    model: str
    machine: str
    cases: tuple[Case, ...]
    difference: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the base first."""
        return tuple(dict.fromkeys(case.method for case in self.cases))

    def sheet(self) -> Sheet:
        """The long form: one row for each case."""
        columns = (
            "batch", "length", "size", "method", "parameters", "mean ms", "std ms", "median ms", "ratio", "ratio q1",
            "ratio q3", "rounds",
        )  # fmt: skip
        rows = tuple(
            (
                c.batch, c.length, c.bottleneck, c.method, c.parameters, c.timing.mean, c.timing.deviation,
                c.timing.median, c.timing.ratio, *c.timing.ratios, c.timing.rounds,
            )
            for c in self.cases
        )  # fmt: skip
        return Sheet(title=self._title, columns=columns, rows=rows, notes=self._notes)

    @property
    def _title(self) -> str:
        return f"one forward pass of {self.model} on {self.machine}"

    @property
    def _notes(self) -> tuple[str, ...]:
        said = () if self.difference is None else (
            f"merged and unmerged answers differ by {self.difference:.1e} of the largest logit",
        )  # fmt: skip
        return (*said, *self.notes)

    def text(self) -> str:
        """Table 1: a row for each batch, length and size, a column for each method.

        Returns:
            Mean and standard deviation in ms; in brackets the slow-down against the base, median over the rounds.
        """
        rows: dict[tuple[int, int, int], dict[str, str]] = {}
        for case in self.cases:
            time = f"{case.timing.mean:.2f} +-{case.timing.deviation:.2f}"
            lost = "" if case.method == BASE else f" ({100 * (case.timing.ratio - 1):+.1f}%)"
            rows.setdefault((case.batch, case.length, case.bottleneck), {})[case.method] = time + lost
        cells: tuple[tuple[Cell, ...], ...] = tuple(
            (*key, *(row.get(name, "-") for name in self.methods)) for key, row in rows.items()
        )
        rounds = self.cases[0].timing.rounds
        notes = (f"ms, mean and deviation of {rounds} rounds; in brackets the median slow-down, round by round",)
        columns = ("batch", "length", "size", *self.methods)
        return Sheet(title=self._title, columns=columns, rows=cells, notes=notes + self._notes).text()

    def details(self) -> Mapping[str, Any]:
        """Model, machine and the difference of merged and unmerged."""
        return {"model": self.model, "machine": self.machine, "difference": self.difference}

    @property
    def _axes(self) -> tuple[list[str], list[int], list[int], list[int]]:
        """Methods, batches, lengths and sizes of the figure."""
        methods = [name for name in self.methods if name != BASE]
        batches, lengths, sizes = (
            list(dict.fromkeys(getattr(case, name) for case in self.cases))
            for name in ("batch", "length", "bottleneck")
        )
        return methods, batches, lengths, sizes

    @property
    def size(self) -> tuple[float, float]:
        """A panel for each method and batch."""
        methods, batches, lengths, sizes = self._axes
        width = max(1.7, 0.62 * len(lengths) + 0.5)
        return 2.0 + width * len(batches), 1.2 + len(methods) * max(1.2, 0.45 * len(sizes) + 0.5)

    def draw(self, figure: Figure) -> None:
        """Figure 5: slow-down in percent, a row of heat maps for each method.

        Args:
            figure: an empty one of ``size``.
        """
        methods, batches, lengths, sizes = self._axes
        lost = {(c.method, c.batch, c.length, c.bottleneck): 100 * (c.timing.ratio - 1) for c in self.cases}
        shown = [value for (method, *_), value in lost.items() if method != BASE]
        panels = figure.subplots(max(1, len(methods)), len(batches), squeeze=False, sharex=True, sharey=True)
        top = max(10.0, *shown) if shown else 10.0
        image = None
        for down, method in enumerate(methods):
            for across, batch in enumerate(batches):
                axes = panels[down][across]
                grid = [[lost.get((method, batch, length, size), float("nan")) for length in lengths] for size in sizes]
                image = heat(axes, grid, x=lengths, y=sizes, limits=(0.0, top), colors=WARM, form="{:+.1f}")
                if across == 0:
                    axes.set_ylabel(f"{method}\nsize")
                if down == 0:
                    axes.set_title(f"batch {batch}")
                if down == len(methods) - 1:
                    axes.set_xlabel("length")
        if image is not None:
            figure.colorbar(image, ax=panels, label="slow-down, %", extend="min", shrink=min(1.0, 2.4 / len(methods)))
        figure.suptitle(f"Slow-down of a forward pass against the base\n{self.model}, {self.machine}")


def machine(device: torch.device) -> str:
    """Name what a figure was measured on.

    Args:
        device: where the model is.

    Returns:
        Text for a title.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'s' if threads > 1 else ''}"


def latency(
    model: Any,
    *,
    name: str,
    batches: Sequence[int] = (1,),
    lengths: Sequence[int] = (128,),
    sizes: Sequence[int] = (8,),
    methods: Sequence[str] = (),
    rounds: int = 100,
    seed: int = 0,
    table: Sequence[Contender] = CONTENDERS,
) -> Latency:
    """Time forward passes.

    Args:
        model: the base, frozen, in eval mode, on its device.
        name: of it, for the titles.
        batches: numbers of rows.
        lengths: tokens of a row.
        sizes: LoRA ranks, bottlenecks and prefix lengths, one after the other.
        methods: names of contenders; empty means all that are installed.
        rounds: trials that count; Table 1 has 100.
        seed: of the tokens.
        table: the contenders there are.

    Returns:
        The times.

    Raises:
        ConfigError: if a number or a name is wrong.
        ModelError: if the model's projections are not known by name.
        FaithError: if the merged model does not answer as the unmerged one.

    Source:
        arXiv:2106.09685, Table 1, figure 5, appendix B.
    """
    require_positive(rounds=rounds)
    for flag, values in (("batch", batches), ("length", lengths), ("size", sizes)):
        for value in values:
            require_positive(**{flag: value})
    contenders = pick(methods, table)
    device = next(model.parameters()).device
    inputs = {(b, n): random_inputs(model, b, n, seed) for b in batches for n in lengths}
    found: dict[tuple[int, int, int], list[Case]] = {}
    worst: float | None = None
    for size in sizes:
        worn = {contender.name: built(contender, model, size) for contender in contenders}
        for (batch, length), ids in inputs.items():
            for contender in contenders:
                if contender.same is not None:
                    apart = _apart(worn[contender.name][0], worn[contender.same][0], ids, contender.name)
                    worst = apart if worst is None else max(worst, apart)
            measures = {label: _pass(each, ids, device) for label, (each, _) in worn.items()}
            summed = timings(take_turns(measures, rounds), BASE)
            found[batch, length, size] = [
                Case(
                    method=label, batch=batch, length=length, bottleneck=size, parameters=worn[label][1], timing=timing
                )
                for label, timing in summed.items()
            ]
    cases = tuple(case for b in batches for n in lengths for s in sizes for case in found[b, n, s])
    absent = [contender.name for contender in table if not contender.present] if not methods else []
    notes = (f"not installed, so not timed: {', '.join(absent)}",) if absent else ()
    return Latency(model=name, machine=machine(device), cases=cases, difference=worst, notes=notes)


def _pass(model: Any, ids: Tensor, device: torch.device) -> Callable[[], float]:
    def work() -> None:
        with torch.inference_mode():
            model(input_ids=ids)

    return lambda: milliseconds(work, device)


@torch.no_grad()
def _apart(one: Any, other: Any, ids: Tensor, name: str) -> float:
    """|difference| of two models' answers relative to the largest; refused where it is more than rounding."""
    mine, his = (model(input_ids=ids).logits.double() for model in (one, other))
    apart = float((mine - his).abs().max() / his.abs().max())
    most = _ROUNDING.get(next(one.parameters()).dtype, _COARSE)
    if not apart <= most:
        raise FaithError(
            f"the model with {name} does not answer as it should, so its time means nothing",
            where=f"{ids.shape[0]} x {ids.shape[1]} random tokens",
            got=f"|difference| / max |logit| = {apart:.2e}",
            expected=f"at most {most:g}",
            hint="use --dtype float32 to see whether it is rounding.",
        )
    return apart
