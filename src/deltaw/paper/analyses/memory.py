"""What one training step holds, method by method: the paper's account of memory (section 4.2) as table and figure.

The numbers are made by ``deltaw.paper.memory``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.deployment import units
from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.style import COLORS
from deltaw.reports import figures, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GB", "MB", "ClaimLine", "MemoryAccount", "MethodMemory"]

GB, MB = 10**9, 10**6
_PARTS = {
    "weights": ("weights", 7),
    "added": ("added values, float32 copies", 4),
    "gradients": ("gradients", 1),
    "optimizer": ("optimizer", 0),
    "activations": ("activations", 2),
}
"""Parts of a bar from the left, each with its name in the legend and its color."""


@dataclass(frozen=True, kw_only=True)
class MethodMemory:
    """Bytes of one method by part.

    Args:
        method: its name.
        trained: trained values.
        weights: bytes of the base.
        added: bytes of what the method adds, or of the float32 copy of what it trains.
        gradients: bytes.
        optimizer: bytes of Adam's moments.
        activations: bytes kept for the backward pass, logits among them; None where there is no estimate.
    """

    method: str
    trained: int
    weights: int
    added: int
    gradients: int
    optimizer: int
    activations: int | None = None

    @property
    def states(self) -> int:
        """Bytes of everything but activations."""
        return self.weights + self.added + self.gradients + self.optimizer

    @property
    def total(self) -> int | None:
        """Bytes of the step; None without an estimate of activations."""
        return None if self.activations is None else self.states + self.activations

    def payload(self) -> dict[str, Any]:
        """The numbers for programs.

        Returns:
            Bytes by part.
        """
        parts = ("method", "trained", "weights", "added", "gradients", "optimizer", "states", "activations", "total")
        return {part: getattr(self, part) for part in parts}


@dataclass(frozen=True, kw_only=True)
class ClaimLine:
    """A figure of the paper's section 4.2 beside ours.

    Args:
        name: what is claimed.
        paper: as printed; empty where the paper prints none.
        ours: ours, in words and digits.
    """

    name: str
    paper: str
    ours: str


@dataclass(frozen=True, kw_only=True)
class MemoryAccount(Analysis):
    """Every method on one model.

    Args:
        model: its name.
        base: values of the base.
        batch: rows of a micro-batch.
        length: tokens of a row.
        dtype: of weights and activations.
        matrices: letters of what LoRA adapts.
        rank: LoRA's r.
        checkpointing: whether each block's activations are recomputed in the backward pass.
        methods: full fine-tuning first.
        claims: what the paper says, beside ours.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "memory"

    model: str
    base: int
    batch: int
    length: int
    dtype: str
    matrices: str
    rank: int
    checkpointing: bool = False
    methods: tuple[MethodMemory, ...]
    claims: tuple[ClaimLine, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def _unit(self) -> tuple[str, int]:
        return ("GB", GB) if self.methods[0].states >= GB else ("MB", MB)

    @property
    def _step(self) -> str:
        again = ", gradient checkpointing" if self.checkpointing else ""
        return f"{self.batch} x {self.length:,} tokens, {self.dtype} weights, Adam{again}"

    def sheet(self) -> Sheet:
        """A row for each method, a column for each part."""
        name, unit = self._unit
        parts = ("weights", "added", "gradients", "optimizer", "states", "activations", "total")
        rows = []
        for method in self.methods:
            held = (getattr(method, part) for part in parts)
            share = 100 * method.states / self.methods[0].states
            shown = (None if value is None else value / unit for value in held)
            rows.append((method.method, method.trained, *shown, share))
        return Sheet(
            title=f"memory of one step of {self.model} ({self.base:,} values): {self._step}",
            columns=("method", "trained", *(f"{part} {name}" for part in parts), "states of full %"),
            rows=tuple(rows),
            absent="not estimated",
            notes=(f"{name}: 10^{9 if unit == GB else 6} bytes; states: all but activations", *self.notes),
        )

    def text(self) -> str:
        """The table, then what the paper claims.

        Returns:
            Lines joined by newlines.
        """
        if not self.claims:
            return super().text()
        rows = [[claim.name, claim.paper or "-", claim.ours] for claim in self.claims]
        return f"{super().text()}\n\n{table(('section 4.2', 'paper', 'ours'), rows)}"

    def details(self) -> Mapping[str, Any]:
        """The step, every part in bytes, and the claims."""
        named = ("model", "batch", "length", "dtype", "matrices", "rank", "claims")
        return {
            **{name: getattr(self, name) for name in named}, "base_parameters": self.base,
            "gradient_checkpointing": self.checkpointing, "methods": [method.payload() for method in self.methods],
        }  # fmt: skip

    @property
    def size(self) -> tuple[float, float]:
        """A bar for each method, twice."""
        return 10.0, 1.5 + 0.34 * len(self.methods)

    def draw(self, figure: Figure) -> None:
        """All parts of a step on the left, the optimizer's alone on a logarithmic axis on the right.

        Args:
            figure: an empty one of ``size``.
        """
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        self._draw_parts(left)
        self._draw_optimizer(right)
        left.set_yticks(range(len(self.methods)), [method.method for method in self.methods])
        left.invert_yaxis()
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(True, axis="x")
            axes.set_axisbelow(True)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(_PARTS))
        figure.suptitle(f"{self.model}: memory of one step, {self._step}")

    def _draw_parts(self, axes: Axes) -> None:
        name, unit = self._unit
        places = range(len(self.methods))
        ends = [0.0] * len(self.methods)
        for part, (label, color) in _PARTS.items():
            widths = [(getattr(method, part) or 0) / unit for method in self.methods]
            if not any(widths):
                continue
            axes.barh(places, widths, left=ends, height=0.66, color=COLORS[color], label=label)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        for place, (method, end) in enumerate(zip(self.methods, ends, strict=True)):
            rest = units(method.states) + " without activations" if method.total is None else units(method.total)
            _beside(axes, end, place, rest)
        room = 1.2 if self.methods[0].total is not None else 1.45
        axes.set(xlabel=f"{name} held in one step", xlim=(0, room * max(ends)))
        axes.xaxis.set_major_formatter("{x:,g}")

    def _draw_optimizer(self, axes: Axes) -> None:
        held = [method.optimizer for method in self.methods]
        low, high = min(held) / 10, 1000 * max(held)
        axes.hlines(range(len(held)), low, held, color=COLORS[7], linewidth=1)
        axes.plot(held, range(len(held)), "o", color=COLORS[0], markersize=6)
        for place, value in enumerate(held):
            less = held[0] / value
            _beside(axes, value, place, units(value) + ("" if less == 1 else f", {figures(less)} times less"), 7)
        axes.set(xscale="log", xlabel="optimizer: Adam's two moments, log scale", xlim=(low, high))
        powers = [power for power in range(0, 18, 3) if low <= 10**power <= high]
        axes.set_xticks([10**power for power in powers], [units(10**power) for power in powers])
        axes.minorticks_off()


def _beside(axes: Axes, x: float, y: float, words: str, gap: int = 4) -> None:
    """Words to the right of a point."""
    axes.annotate(words, (x, y), xytext=(gap, 0), textcoords="offset points", va="center", fontsize=7.5)
