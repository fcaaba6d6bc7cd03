"""Training speed of full fine-tuning against LoRA (section 4.2, footnote 5), and what a step holds in memory.

The paper's 32.5 -> 43.1 tokens/s are +32.6% throughput, which is -24.6% time for a token: its "25% speed-up" is the
second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deltaw.paper.analyses.contenders import wear_lora
from deltaw.paper.analyses.latency import machine
from deltaw.paper.analyses.result import Analysis, Sheet, spread
from deltaw.paper.analyses.style import COLORS
from deltaw.paper.analyses.subjects import random_inputs, twin
from deltaw.paper.analyses.turns import milliseconds, require_positive, settle_device, take_turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Speed", "Throughput", "peak_bytes", "throughput"]

FULL, LORA = "full fine-tuning", "LoRA"
_RATE = 1e-6
"""Learning rate: the steps are real, the weights stay finite."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One way to train.

    Args:
        method: its name.
        trained: parameters with gradients.
        tokens: tokens per second, mean over the rounds.
        deviation: standard deviation over the rounds.
        ratio: median of the ratios to full fine-tuning, round by round.
        peak_bytes: highest memory of the first step beyond the model at rest: activations, gradients, moments.
        rest_bytes: the model's weights.
    """

    method: str
    trained: int
    tokens: float
    deviation: float
    ratio: float
    peak_bytes: int
    rest_bytes: int


@dataclass(frozen=True, kw_only=True)
class Throughput(Analysis):
    """Training speeds.

    Args:
        model: what was trained.
        machine: on what.
        batch: rows of a step.
        length: tokens of a row.
        rank: LoRA's.
        rounds: steps that count.
        speeds: one entry for each way.
    """

    name: ClassVar[str] = "throughput"

    model: str
    machine: str
    batch: int
    length: int
    rank: int
    rounds: int
    speeds: tuple[Speed, ...]

    @property
    def _title(self) -> str:
        return f"{self.model}: steps of {self.batch} x {self.length} tokens on {self.machine}, r = {self.rank}"

    def sheet(self) -> Sheet:
        """A row for each way to train."""
        columns = ("method", "trained", "tokens/s", "std", "ratio", "time saved %", "step MB", "weights MB")
        rows = tuple(
            (
                s.method, s.trained, s.tokens, s.deviation, s.ratio, 100 * (1 - 1 / s.ratio), s.peak_bytes / 1e6,
                s.rest_bytes / 1e6,
            )
            for s in self.speeds
        )  # fmt: skip
        notes = (
            f"{self.rounds} rounds, one step each in turning order; ratio: tokens/s against full fine-tuning, median",
            "step MB: highest memory of the first step with AdamW, beyond the weights at rest",
        )
        return Sheet(title=self._title, columns=columns, rows=rows, notes=notes)

    def details(self) -> Mapping[str, Any]:
        """What was stepped."""
        return {
            "model": self.model, "machine": self.machine, "batch": self.batch, "length": self.length, "rank": self.rank,
        }  # fmt: skip

    @property
    def size(self) -> tuple[float, float]:
        """Two panels beside each other."""
        return 8.0, 3.4

    def draw(self, figure: Figure) -> None:
        """Speed, and memory on top of the weights.

        Args:
            figure: an empty one of ``size``.
        """
        left, right = figure.subplots(1, 2)
        names = [speed.method for speed in self.speeds]
        bars = left.bar(
            names, [s.tokens for s in self.speeds], yerr=[s.deviation for s in self.speeds], capsize=4, width=0.6,
            color=COLORS[2], edgecolor=COLORS[0],
        )  # fmt: skip
        left.bar_label(bars, [f"{s.tokens:,.0f}" for s in self.speeds], label_type="center")
        left.set_ylabel("tokens/s")
        rest = [s.rest_bytes / 1e6 for s in self.speeds]
        right.bar(names, rest, width=0.6, color=COLORS[7], edgecolor=COLORS[0], label="weights")
        right.bar(
            names, [s.peak_bytes / 1e6 for s in self.speeds], width=0.6, bottom=rest, color=COLORS[0],
            edgecolor=COLORS[0], label="the step",
        )  # fmt: skip
        right.set_ylabel("MB, peak")
        right.set_ylim(top=1.3 * max(s.rest_bytes + s.peak_bytes for s in self.speeds) / 1e6)
        right.legend(ncols=2, loc="upper right")
        figure.suptitle(self._title)


def throughput(
    model: Any, *, name: str, batch: int = 4, length: int = 128, rank: int = 4, rounds: int = 20, seed: int = 0
) -> Throughput:
    """Time training steps of full fine-tuning and of LoRA on W_q and W_v, taking turns.

    Args:
        model: the base, frozen, on its device; it stays as it is.
        name: of it, for the titles.
        batch: rows of a step.
        length: tokens of a row.
        rank: LoRA's.
        rounds: steps that count.
        seed: of tokens and starts.

    Returns:
        The speeds.

    Raises:
        ConfigError: if a number is out of range.
        ModelError: if the model's projections are not known by name.
    """
    require_positive(batch=batch, length=length, rank=rank, rounds=rounds)
    ids = random_inputs(model, batch, length, seed)
    device = ids.device
    full, lora = twin(model, own=True).requires_grad_(True), twin(model)
    wear_lora(lora, rank, seed=seed)
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    trained: dict[str, int] = {}
    for label, worn in ((FULL, full), (LORA, lora)):
        parameters = [parameter for parameter in worn.parameters() if parameter.requires_grad]
        trained[label] = sum(parameter.numel() for parameter in parameters)
        steps[label] = _stepper(worn.train(), ids, torch.optim.AdamW(parameters, lr=_RATE))
        peaks[label] = peak_bytes(steps[label], device)
    taken = take_turns({label: _timer(step, device) for label, step in steps.items()}, rounds)
    speeds = []
    for label, times in taken.items():
        tokens, deviation = spread([1e3 * batch * length / ms for ms in times])
        ratio = median(his / mine for mine, his in zip(times, taken[FULL], strict=True))
        rest = sum(p.numel() * p.element_size() for p in (full if label == FULL else lora).parameters())
        speeds.append(
            Speed(
                method=label, trained=trained[label], tokens=tokens, deviation=deviation, ratio=ratio,
                peak_bytes=peaks[label], rest_bytes=rest,
            )
        )  # fmt: skip
    return Throughput(
        model=name, machine=machine(device), batch=batch, length=length, rank=rank, rounds=rounds, speeds=tuple(speeds)
    )


def _stepper(model: Any, ids: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    labels = ids
    if "Classification" in type(model).__name__:
        classes = int(model.config.num_labels)
        # one label is a value, and no class
        labels = ids[:, 0] % classes if classes > 1 else ids[:, 0] / model.config.vocab_size

    def step() -> None:
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timer(step: Callable[[], None], device: torch.device) -> Callable[[], float]:
    return lambda: milliseconds(step, device)


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Highest memory that a call holds beyond what was there before it.

    Args:
        step: the call.
        device: where it runs.

    Returns:
        Bytes: from the device's allocator, or on the CPU from torch's record of every allocation.
    """
    if device.type == "cuda":
        settle_device(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        settle_device(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = top = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    return top
