"""Smaller adapters: the nearest update of a lower rank, module by module or under one budget, never a dense matrix.

The cut is exact: of all updates of that rank the kept one is nearest in Frobenius norm (Eckart and Young 1936), and
what is reported is measured on the factors as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.factored import balanced, distance, norm, singular_values, svd
from deltaw.algebra.parts import Block, Parts, Update, named, natural, parts_of, together
from deltaw.algebra.write import LAYOUT, aligned, reworked
from deltaw.errors import ConfigError
from deltaw.keys import PREFIX
from deltaw.reports import count, table

__all__ = ["ResizeReport", "ResizedModule", "resize"]

_MANY = 48
_ROUNDING = 1e-12
"""Singular values below this share of the norm are rounding noise of the decomposition."""


@dataclass(frozen=True, kw_only=True)
class ResizedModule:
    """What became of one module.

    Args:
        path: module path.
        rank_before: R.
        rank: new R; 0 where the budget left nothing.
        kept: share of the squared Frobenius norm of the update that is kept, 1 for a zero update.
        error: ||new - old|| / ||old||, measured on what is stored; 0 for a zero update.
    """

    path: str
    rank_before: int
    rank: int
    kept: float
    error: float


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """A resized adapter and what it lost; ``str`` is what ``deltaw resize`` prints.

    Args:
        adapter: the new adapter.
        modules: one entry for each module of the old one.
        kept: share of the whole adapter's squared norm that is kept.
        error: ||new - old|| / ||old|| over all modules, measured on what is stored.
        parameters_before: values of the old adapter.
        parameters: values of the new one.
        notes: what a reader should know.
        every: print every module, however many there are.
    """

    adapter: Adapter
    modules: tuple[ResizedModule, ...]
    kept: float
    error: float
    parameters_before: int
    parameters: int
    notes: tuple[str, ...] = ()
    every: bool = False

    def __str__(self) -> str:
        """Totals, the table of modules, notes."""
        change = f"{count(self.parameters_before)} -> {count(self.parameters)} parameters"
        head = (
            f"resized {len(self.modules)} modules: {change}, {self.kept:.4%} of the energy kept, error {self.error:.2e}"
        )
        return "\n".join([head, self._table(), *(f"note: {note}" for note in self.notes)])

    def _table(self) -> str:
        header = ("rank", "now", "energy kept", "error")
        if self.every or len(self.modules) < _MANY:
            return table(
                ("module", *header),
                [(m.path, m.rank_before, m.rank, f"{m.kept:.4%}", f"{m.error:.2e}") for m in self.modules],
            )
        groups: dict[str, list[ResizedModule]] = {}
        for module in self.modules:
            groups.setdefault(module.path.rpartition(".")[2], []).append(module)
        rows = [
            (
                leaf,
                len(group),
                _span([m.rank_before for m in group]),
                _span([m.rank for m in group]),
                f"{min(m.kept for m in group):.4%}",
                f"{max(m.error for m in group):.2e}",
            )
            for leaf, group in groups.items()
        ]
        return table(("module", "count", "rank", "now", "least energy kept", "largest error"), rows)


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """Modules that keep one rank, and their levels: one singular value from each of their blocks at a time."""

    updates: tuple[Update, ...]
    fixed: bool
    """Something else belongs to the module (a magnitude, a bias), so that its update cannot go altogether."""

    @property
    def levels(self) -> int:
        return min(update.rank // update.groups for update in self.updates)

    @property
    def cost(self) -> int:
        """Values of a file that one level takes."""
        return sum(update.parameters * update.groups // update.rank for update in self.updates)

    def energies(self) -> Tensor:
        """Energy of each level, shape (levels,), descending, float64."""
        total = torch.zeros(self.levels, dtype=torch.float64)
        for update in self.updates:
            for block in update.blocks():
                values = (singular_values(*block) * update.scaling).square()
                total[: len(values)] += values[: self.levels]
        return total


def resize(
    adapter: Adapter, *, rank: int | None = None, energy: float | None = None, budget: int | None = None
) -> ResizeReport:
    """Cut an adapter's ranks, losing as little of its updates as that allows.

    Exactly one of ``rank``, ``energy`` and ``budget`` says how far. A module that need not change keeps its bits. The
    scaling of every module stays, so that training goes on at the same strength; full copies, biases, token rows and
    DoRA's magnitudes stay as they are (with DoRA the direction's update is cut, its magnitudes are not).

    Args:
        adapter: the adapter.
        rank: largest rank of any module; smaller ones stay.
        energy: share of each module's squared norm to keep, in (0, 1]; 1 drops nothing but directions without any.
        budget: values of A and B in the whole adapter; directions are taken greedily by energy per value.

    Returns:
        The new adapter and what it lost.

    Raises:
        ConfigError: if not exactly one of the three is given, or it asks for nothing or for the impossible.
        CheckpointError: if the adapter is no LoRA or is damaged.
    """
    given = {
        name: value for name, value in (("rank", rank), ("energy", energy), ("budget", budget)) if value is not None
    }
    if len(given) != 1:
        raise ConfigError(
            "resize needs one measure",
            where="rank, energy, budget",
            got=" and ".join(given) or "none of them",
            expected="exactly one",
            hint="rank=8, energy=0.9 (a share of each module's squared norm) or budget=100000 (values in all).",
        )
    parts = parts_of(adapter)
    twins = {path: other for path, other in adapter.own.get("twins", {}).items() if path in parts.updates}
    units = _units(parts, twins)
    if rank is not None:
        levels = _by_rank(units, rank)
    elif energy is not None:
        levels = _by_energy(units, energy)
    else:
        assert budget is not None
        levels = _by_budget(units, budget)
    return _apply(adapter, parts, twins, units, levels, given)


def _units(parts: Parts, twins: Mapping[str, str]) -> list[_Unit]:
    biased = {key.removeprefix(PREFIX).removesuffix(".base_layer.bias") for key in parts.whole} | set(parts.magnitudes)
    return [
        _Unit(
            updates=tuple(parts.updates[path] for path in group),
            fixed=any(path in biased or parts.updates[path].bias is not None for path in group),
        )
        for group in together(parts.updates, twins)
    ]


def _by_rank(units: Sequence[_Unit], rank: int) -> list[int]:
    largest = max(update.rank for unit in units for update in unit.updates)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
        raise ConfigError(
            "the rank to resize to must be one that the adapter can be cut to",
            where="rank",
            got=repr(rank),
            expected=f"a whole number from 1 to {largest}, the adapter's largest rank",
            hint="a larger rank holds nothing more; for more room, train anew with that rank.",
        )
    return [min(unit.levels, max(1, rank // max(u.groups for u in unit.updates))) for unit in units]


def _by_energy(units: Sequence[_Unit], energy: float) -> list[int]:
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise ConfigError(
            "the energy to keep is a share",
            where="energy",
            got=repr(energy),
            expected="a number in (0, 1]",
            hint="0.9 (not 90) keeps nine tenths of each module's squared norm.",
        )
    found = []
    for unit in units:
        shares = unit.energies()
        total = float(shares.sum())
        if energy < 1:
            needed = int((torch.cumsum(shares, 0) < energy * total * (1 - _ROUNDING)).sum()) + 1
        else:
            needed = int((shares > _ROUNDING**2 * total).sum())
        found.append(1 if total == 0 else min(unit.levels, max(1, needed)))
    return found


def _by_budget(units: Sequence[_Unit], budget: int) -> list[int]:
    """Take levels by energy per value while they fit; a level that does not fit ends its unit.

    Within a unit the energies fall and the cost is one, so the order never takes a level before the one above it.
    """
    present = sum(unit.cost * unit.levels for unit in units)
    least = sum(unit.cost for unit in units if unit.fixed) or min(unit.cost for unit in units)
    if isinstance(budget, bool) or not isinstance(budget, int) or not least <= budget <= present:
        raise ConfigError(
            "the budget must lie between one direction and what the adapter has",
            where="budget",
            got=repr(budget),
            expected=f"a whole number from {least:,} to {present:,}, the values its factors have now",
            hint="it counts the values of A and B over all modules.",
        )
    levels = [1 if unit.fixed else 0 for unit in units]
    left = budget - sum(unit.cost for unit in units if unit.fixed)
    offers = [
        (-float(energy) / unit.cost, index, level)
        for index, unit in enumerate(units)
        for level, energy in enumerate(unit.energies())
        if float(energy) > 0 and level >= levels[index]
    ]
    closed: set[int] = set()
    for _, index, _ in sorted(offers):
        if index in closed:
            continue
        if units[index].cost > left:
            closed.add(index)
        else:
            levels[index] += 1
            left -= units[index].cost
    if not any(levels):
        levels[min(range(len(units)), key=lambda index: units[index].cost)] = 1
    return levels


def _apply(
    adapter: Adapter,
    parts: Parts,
    twins: Mapping[str, str],
    units: Sequence[_Unit],
    levels: Sequence[int],
    given: Mapping[str, float],
) -> ResizeReport:
    updates: dict[str, Update] = {}
    for unit, level in zip(units, levels, strict=True):
        for update in unit.updates if level else ():
            whole = level * update.groups >= update.rank
            updates[update.path] = update if whole else _cut(update, level)
    updates = aligned(
        updates, {path: other for path, other in twins.items() if updates.get(path) is not parts.updates[path]}
    )
    pairs = [(parts.updates[path], updates.get(path)) for path in sorted(parts.updates, key=natural)]
    losses = [_loss(old, new) for old, new in pairs]
    modules = tuple(
        ResizedModule(
            path=old.path,
            rank_before=old.rank,
            rank=new.rank if new is not None else 0,
            kept=_share(kept, total),
            error=math.sqrt(_share(lost, total, empty=0.0)),
        )
        for (old, new), (total, kept, lost) in zip(pairs, losses, strict=True)
    )
    total, kept, lost = (sum(column) for column in zip(*losses, strict=True))
    made = reworked(adapter, parts, updates, {"verb": "resize", "of": adapter.hash, **given})
    return ResizeReport(
        adapter=made,
        modules=modules,
        kept=_share(kept, total),
        error=math.sqrt(_share(lost, total, empty=0.0)),
        parameters_before=adapter.parameters,
        parameters=made.parameters,
        notes=tuple(_notes(adapter, parts, updates, given)),
    )


def _share(part: float, total: float, empty: float = 1.0) -> float:
    return min(part / total, 1.0) if total else empty


def _cut(update: Update, level: int) -> Update:
    """Keep the first directions of every block."""
    blocks = [balanced(*svd(*block), level) for block in update.blocks()]
    return update.with_blocks(blocks, update.scaling, (update.lora_A.dtype, update.lora_B.dtype))


def _loss(old: Update, new: Update | None) -> tuple[float, float, float]:
    """Squared norms: of the old update, of what is kept, and of the difference as it is stored."""
    before = old.blocks()
    total = sum((norm(*block) * old.scaling) ** 2 for block in before)
    if new is old:
        return total, total, 0.0
    if new is None:
        return total, 0.0, total
    after: list[Block] = new.blocks()
    lost = sum(
        distance([(one, old.scaling)], [(two, new.scaling)]) ** 2 for one, two in zip(before, after, strict=True)
    )
    return total, total - lost, lost


def _notes(adapter: Adapter, parts: Parts, updates: Mapping[str, Update], given: Mapping[str, float]) -> list[str]:
    notes = []
    gone = [path for path in parts.updates if path not in updates]
    if gone:
        notes.append(f"{len(gone)} modules have no update any more: {named(gone)}")
    rank = given.get("rank")
    over = [path for path, update in updates.items() if rank is not None and update.rank > rank]
    if over:
        notes.append(f"the rank is a multiple of the groups, and larger than asked, in {named(over)}")
    if parts.magnitudes:
        notes.append(
            f"DoRA: the magnitudes of {len(parts.magnitudes)} modules stay, the updates of their directions are cut"
        )
    if parts.whole:
        notes.append(f"not resized, kept as they are: {named(parts.whole)}")
    noted = {path for name in LAYOUT for path in adapter.own.get(name, {})}
    sliced = sorted(path for path in noted if updates.get(path) is not parts.updates.get(path))
    if sliced:
        notes.append(f"slices, or an update with its start, are one plain update now in {named(sliced)}")
    return notes
