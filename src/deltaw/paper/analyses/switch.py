"""Serving many tasks on one base (section 4.1): how long it takes to turn from one adapter to another.

Three ways: the next adapter becomes the active one (nothing is computed); the merged weights are given back and the
next adapter is merged; the adapter is read from disk. Afterwards the base must have its own bits again.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import deltaw as dw
from deltaw.errors import FaithError
from deltaw.paper.analyses.contenders import wear_lora
from deltaw.paper.analyses.latency import machine
from deltaw.paper.analyses.result import Analysis, Sheet, spread
from deltaw.paper.analyses.style import COLORS
from deltaw.paper.analyses.subjects import random_inputs, twin
from deltaw.paper.analyses.turns import milliseconds, require_positive, take_turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Switch", "Way", "switch"]

ACTIVE, MERGED, READ = "activate", "unmerge and merge", "read from disk"
_TOKENS, _ROUNDING = 16, 1e-3


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to switch.

    Args:
        way: its name.
        mean: milliseconds of a switch.
        deviation: standard deviation over the switches.
        median: over the switches.
    """

    way: str
    mean: float
    deviation: float
    median: float


@dataclass(frozen=True, kw_only=True)
class Switch(Analysis):
    """Times of switching adapters.

    Args:
        model: the base.
        machine: on what.
        adapters: how many there are.
        adapter_bytes: of one adapter's values, on average.
        rounds: switches that count, for each way.
        ways: their times.
    """

    name: ClassVar[str] = "switch"

    model: str
    machine: str
    adapters: int
    adapter_bytes: int
    rounds: int
    ways: tuple[Way, ...]

    @property
    def _title(self) -> str:
        return f"{self.model}: switching between {self.adapters} adapters on {self.machine}"

    def sheet(self) -> Sheet:
        """A row for each way."""
        columns = ("way", "mean ms", "std ms", "median ms", "adapter kB")
        rows = tuple((w.way, w.mean, w.deviation, w.median, self.adapter_bytes / 1e3) for w in self.ways)
        notes = (
            f"{self.rounds} switches each, taking turns; merged and unmerged answers agree, and the base has its own "
            "bits again",
        )
        return Sheet(title=self._title, columns=columns, rows=rows, notes=notes)

    def details(self) -> Mapping[str, Any]:
        """Numbers and sizes."""
        return {"adapters": self.adapters, "adapter_bytes": self.adapter_bytes, "rounds": self.rounds}

    @property
    def size(self) -> tuple[float, float]:
        """A flat figure."""
        return 7.0, 2.4

    def draw(self, figure: Figure) -> None:
        """Medians as bars.

        Args:
            figure: an empty one of ``size``.
        """
        axes = figure.subplots()
        ways = self.ways[::-1]
        bars = axes.barh([w.way for w in ways], [w.median for w in ways], color=COLORS[2], edgecolor=COLORS[0])
        axes.bar_label(bars, [f"{w.median:.3g} ms" for w in ways], padding=3)
        axes.set_xscale("log")
        axes.set_xlim(right=6 * max(w.median for w in ways))
        axes.set_xlabel("ms for a switch, median")
        axes.set_title(self._title)


def switch(
    model: Any,
    *,
    name: str,
    count: int = 8,
    rank: int = 8,
    adapters: Sequence[str | Path] = (),
    rounds: int = 20,
    allow_other_base: bool = False,
    seed: int = 0,
) -> Switch:
    """Time switches between adapters of one base.

    Args:
        model: the base, frozen, in eval mode; it stays as it is.
        name: of it, for the titles.
        count: how many adapters to make, where none are given.
        rank: of those that are made, on W_q and W_v.
        adapters: directories of adapters, two at least; empty makes random ones.
        rounds: switches that count, for each way.
        allow_other_base: take adapters that were trained on another base.
        seed: of random adapters.

    Returns:
        The times.

    Raises:
        ConfigError: if a number is out of range.
        CheckpointError: if an adapter does not fit.
        FaithError: if merged and unmerged answers differ, or the base has not its own bits again.
    """
    number = len(adapters) or count
    require_positive(count=count, rank=rank, rounds=rounds, adapters=number - 1)
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(place).expanduser() for place in adapters] or _made(model, Path(scratch), count, rank, seed)
        names = [f"task{place}" for place in range(len(places))]
        worn, merged, bare = twin(model), twin(model, own=True), twin(model)
        for each in (worn, merged):
            for label, place in zip(names, places, strict=True):
                dw.load(each, place, name=label, allow_other_base=allow_other_base)
        dw.merge(merged, names[0])
        dw.load(bare, places[0], name=names[0], allow_other_base=allow_other_base)
        device = next(model.parameters()).device
        ways: dict[str, Callable[[str], None]] = {
            ACTIVE: lambda label: dw.activate(worn, label),
            MERGED: lambda label: _merge_next(merged, label),
            READ: _reader(bare, dict(zip(names, places, strict=True)), allow_other_base),
        }
        turns = {way: _timer(act, itertools.cycle([*names[1:], names[0]]), device) for way, act in ways.items()}
        taken = take_turns(turns, rounds)
        _require_same(model, worn, merged, names[-1])
        sizes = [sum(t.numel() * t.element_size() for t in dw.Adapter.open(place).tensors.values()) for place in places]
    return Switch(
        model=name,
        machine=machine(device),
        adapters=number,
        adapter_bytes=sum(sizes) // number,
        rounds=rounds,
        ways=tuple(_way(way, times) for way, times in taken.items()),
    )


def _made(model: Any, scratch: Path, count: int, rank: int, seed: int) -> list[Path]:
    places = []
    for number in range(count):
        worn = twin(model)
        wear_lora(worn, rank, seed=seed + number)
        dw.save(worn, scratch / str(number))
        places.append(scratch / str(number))
    return places


def _way(way: str, times: Sequence[float]) -> Way:
    mean, deviation = spread(times)
    return Way(way=way, mean=mean, deviation=deviation, median=median(times))


def _timer(act: Callable[[str], None], names: Iterator[str], device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        label = next(names)
        return milliseconds(lambda: act(label), device)

    return measure


def _merge_next(model: Any, label: str) -> None:
    dw.unmerge(model)
    dw.merge(model, label)


def _reader(model: Any, places: Mapping[str, Path], allow_other_base: bool) -> Callable[[str], None]:
    def act(label: str) -> None:
        dw.detach(model)
        dw.load(model, places[label], name=label, allow_other_base=allow_other_base)

    return act


@torch.no_grad()
def _require_same(model: Any, worn: Any, merged: Any, label: str) -> None:
    """Merged and unmerged answer alike, and everything taken off leaves the base's own bits."""
    ids = random_inputs(model, 1, _TOKENS)
    dw.activate(worn, label)
    _merge_next(merged, label)
    mine, his = (each(input_ids=ids).logits.double() for each in (merged, worn))
    apart = float((mine - his).abs().max() / his.abs().max())
    dw.unmerge(merged)
    dw.detach(merged)
    pairs = zip(model.parameters(), merged.parameters(), strict=True)
    changed = sum(not torch.equal(own, back) for own, back in pairs)
    if changed or not apart <= (_ROUNDING if next(model.parameters()).dtype == torch.float32 else 100 * _ROUNDING):
        raise FaithError(
            "switching is not exact on this model, so its time means nothing",
            where=label,
            got=f"|difference| / max |logit| = {apart:.2e}; {changed} weights of the base changed",
            expected="rounding, and no weight changed",
            hint="use --dtype float32 to see whether it is rounding.",
        )
