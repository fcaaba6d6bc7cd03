"""Which adapter each row or token of a batch belongs to, sorted once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from deltaw.errors import StateError
from deltaw.stacked import ByRow, Each, Grouped, Layout, Masked, Padded, Runs, Sorted, grouped_works, takes_grouped

__all__ = ["Groups", "Names", "Route", "Seats", "wrong_batch"]

Names: TypeAlias = "Sequence[str | None] | Sequence[Sequence[str | None]] | Tensor"
"""A name for each row, for each token of each row, or places among known names in the same shapes; None or a negative
place for the base alone."""

_FEW, _PADDING = 256, 1.5
"""Up to so many tokens, and so many computed for each real one, padding beats torch's grouped product; measured on one
CPU core at width 1024 and rank 16, 8 adapters: 32 rows of 2 tokens 0.28 ms against 0.39; 64 uneven ones of 1 token
(6.4 computed for each) 0.92 against 0.41; 2048 tokens 15 against 7."""


class Seats(NamedTuple):
    """A route as a compiled graph reads it: tensors, so that another routing of the same shape compiles nothing.

    Args:
        place: int64, the place of each row or token among the known names, flat; -1 for the base alone.
        order: int64, rows sorted by place; those of the base stand with the first.
        ends: int32, one past each place's last row of ``order``.
        tokens: number of tokens of a row where each has its own adapter; 0 where rows have one.
        banked: places are slots of the model's bank, and every adapter is in it.
        grouped: dtypes that torch's grouped product takes here.
        names: adapters by place; None for a free one.
    """

    place: Tensor
    order: Tensor
    ends: Tensor
    tokens: int
    banked: bool
    grouped: tuple[torch.dtype, ...]
    names: tuple[str | None, ...]

    def layout(self, x: Tensor, *widths: int) -> Layout:
        """How rows meet the factors of all places.

        Args:
            x: rows (N, T, ...), on the device to compute on.
            *widths: I, R and O.

        Returns:
            A layout whose graph holds for every routing of this shape.
        """
        place, tokens = self.place.to(x.device), x.shape[1]
        if tokens >= widths[1]:
            return Each(place)
        if x.dtype in self.grouped and takes_grouped(*widths, dtype=x.dtype):
            return Sorted(place, self.order.to(x.device), self.ends.to(x.device))
        return Masked(place)


class Groups:
    """The rows of a batch by adapter, for the adapters of one module.

    Args:
        index: int64 on the CPU, shape (N): the group of each row, -1 for none.
        count: number of groups.
        device: where the indices are needed.
    """

    _parts: tuple[Tensor, ...] | None = None

    def __init__(self, index: Tensor, count: int, device: torch.device) -> None:
        self.count, self.device = count, device
        rows = (index >= 0).nonzero().view(-1)
        group = index[rows]
        self.order = rows[group.argsort(stable=True)]
        self.counts: list[int] = torch.bincount(group, minlength=count).tolist()
        self.full = len(rows) == len(index)
        self.even = len(set(self.counts)) == 1
        self.together = self.full and self.even and bool((group.diff() >= 0).all())
        self.index, self.group = index.to(device), group.to(device)
        self.rows = None if self.full else rows.to(device)
        self._made: dict[str, Layout] = {}

    def parts(self) -> tuple[Tensor, ...]:
        """Rows of each group.

        Returns:
            One tensor of indices for each.
        """
        if self._parts is None:
            self._parts = torch.split(self.order.to(self.device), self.counts)
        return self._parts

    def layout(self, x: Tensor, *widths: int) -> Layout:
        """The cheapest way for these rows to meet their factors.

        Rows are gathered where they are smaller than the factors, and factors where those are; runs need neither.

        Args:
            x: rows (N, T, ...).
            *widths: I, R and O.

        Returns:
            The layout, made once for each way.
        """
        if self.together:
            way = "runs"
        elif x.shape[1] >= widths[1]:
            way = "rows"
        else:
            real, computed = sum(self.counts), self.count * max(self.counts)
            cheap = real * x.shape[1] <= _FEW and computed <= _PADDING * real
            fits = takes_grouped(*widths, dtype=x.dtype) and x.dtype in grouped_works(x.device.type)
            way = "grouped" if fits and not cheap else "padded"
        if way not in self._made:
            self._made[way] = self._make(way)
        return self._made[way]

    def _make(self, way: str) -> Layout:
        if way == "runs":
            return Runs(self.count)
        if way == "rows":
            return ByRow(self.group, self.rows)
        counts = torch.tensor(self.counts)
        ends = counts.cumsum(0)
        group = torch.arange(self.count).repeat_interleave(counts)
        if way == "grouped":
            return Grouped(self.order.to(self.device), group.to(self.device), ends.to(self.device, torch.int32))
        first, most = ends - counts, max(self.counts)
        # a row of the adapter's own stands in for what is missing, so that nothing of another adapter comes near it
        within = torch.minimum(torch.arange(most), (counts - 1).clamp_min(0).unsqueeze(1))
        gather = self.order[(first.unsqueeze(1) + within).clamp_max(len(self.order) - 1)]
        at = group * most + torch.arange(len(self.order)) - first[group]
        take = at[self.order.argsort()]
        return Padded(gather.to(self.device), take.to(self.device), self.rows)


class Route(tuple[tuple[str, float], ...]):
    """Which adapter each row or token belongs to; as a mix, the adapters that take part."""

    shape: tuple[int, ...]
    """(rows) or (rows, tokens)."""
    seats: Seats
    _index: Tensor
    _known: dict[str, int]
    _groups: dict[tuple[Any, ...], Groups]
    _slots: dict[tuple[int, int], tuple[Any, tuple[str, ...], list[int]]]

    def __new__(cls, names: Names, known: Sequence[str | None], device: torch.device, banked: bool = False) -> Route:
        """Sort a batch by adapter.

        Args:
            names: what the user gave.
            known: names by place; None for a place that is free.
            device: where the model computes.
            banked: places are slots of the model's bank.

        Returns:
            The route.

        Raises:
            StateError: if rows have different numbers of tokens, or places are none.
        """
        places = {name: place for place, name in enumerate(known) if name is not None}
        table = _placed(names, known) if isinstance(names, Tensor) else _table(names, places)
        used = sorted(set(table.flatten().tolist()) - {-1})
        route = super().__new__(cls, ((str(known[place]), 1.0) for place in used))
        route.shape, route._index, route._known, route._groups = tuple(table.shape), table.view(-1), places, {}
        route._slots = {}
        whole = route._index.clamp_min(0)
        ends = torch.bincount(whole, minlength=len(known)).cumsum(0).to(torch.int32)
        route.seats = Seats(
            place=route._index.to(device),
            order=whole.argsort(stable=True).to(device),
            ends=ends.to(device),
            tokens=table.shape[1] if table.dim() == 2 else 0,
            banked=banked,
            grouped=tuple(grouped_works(device.type)),
            names=tuple(known),
        )
        return route

    def groups(self, names: tuple[str, ...], device: torch.device) -> Groups:
        """The batch by some of the adapters, sorted the first time.

        Args:
            names: the adapters, in order.
            device: where the indices are needed.

        Returns:
            Their rows.
        """
        key = (names, device)
        if key not in self._groups:
            table = torch.full((max(self._known.values()) + 2,), -1)
            for group, name in enumerate(names):
                table[self._known[name]] = group
            self._groups[key] = Groups(table[self._index], len(names), device)
        return self._groups[key]

    def slots_in(self, stack: Any) -> tuple[tuple[str, ...], list[int]]:
        """The route's adapters among those of a module in the bank, looked up the first time.

        Args:
            stack: the module's slots.

        Returns:
            Their names and slots.
        """
        key = (id(stack), stack.version)
        if key not in self._slots:
            names = tuple(name for name, _ in self if name in stack.slots)
            # held beside what was found, so that no other object takes its identity meanwhile
            self._slots[key] = (stack, names, [stack.slots[name] for name in names])
        return self._slots[key][1:]

    def axes(self, x: Any, out: Tensor, where: str) -> int:
        """How many first axes of a module's input the route speaks of.

        Args:
            x: the input.
            out: the output.
            where: path of the module.

        Returns:
            1, or 2 where tokens have adapters of their own and the module sees them in rows.

        Raises:
            StateError: if the batch has another shape.
        """
        sizes, own = tuple(x.shape), tuple(out.shape)
        if sizes[: len(self.shape)] == own[: len(self.shape)] == self.shape:
            return len(self.shape)
        flat = len(self._index)
        if len(self.shape) == 2 and sizes[:1] == own[:1] == (flat,):
            return 1
        if len(self.shape) == 2:
            raise wrong_batch(where, f"an input of shape {sizes}", f"{self.shape[0]} rows of {self.shape[1]} tokens")
        first = sizes[0] if sizes else 0
        raise wrong_batch(where, f"{first} rows", f"{self.shape[0]}, the first axis of every input")


def wrong_batch(path: str, got: str, expected: str) -> StateError:
    """The error of a batch that a route was not made for.

    Args:
        path: of the module that saw it.
        got: its shape.
        expected: the route's.

    Returns:
        The error.
    """
    return StateError(
        "the batch does not have one row for each entry of the route",
        where=f"module '{path}'",
        got=got,
        expected=expected,
        hint="give route as many names as the batch has rows, or tokens, and keep the batch on the first axis.",
    )


def _placed(places: Tensor, known: Sequence[str | None]) -> Tensor:
    """Places that a user gave, on the CPU; -1 for the base."""
    table = places.to("cpu", torch.long).clamp_min(-1)
    if places.dim() not in (1, 2) or places.is_floating_point():
        raise StateError(
            "this routes no batch",
            where="route(model, places)",
            got=f"{places.dtype} of shape {tuple(places.shape)}",
            expected="integers of shape (rows,) or (rows, tokens)",
            hint="one place for each row, or for each token of each row.",
        )
    used = set(table.flatten().tolist()) - {-1}
    absent = sorted(place for place in used if place >= len(known) or known[place] is None)
    if absent:
        raise StateError(
            "these places hold no adapter",
            where="route(model, places)",
            got=", ".join(map(str, absent)),
            expected=", ".join(f"{place} ({name})" for place, name in enumerate(known) if name is not None),
            hint="a place is a slot of the model's bank, or a position in deltaw.attached(model); -1 is the base.",
        )
    return table


def _table(names: Any, places: dict[str, int]) -> Tensor:
    """Places of names, in their shape."""
    if any(isinstance(row, Sequence) and not isinstance(row, str) for row in names):
        widths = {len(row) if isinstance(row, Sequence) and not isinstance(row, str) else -1 for row in names}
        if len(widths) > 1 or -1 in widths:
            raise StateError(
                "rows of a route have one number of tokens",
                where="route(model, names)",
                got=f"{', '.join(str(width) if width >= 0 else 'no list' for width in sorted(widths))} tokens",
                expected="as many names in each row as the batch has tokens",
                hint="name padding None, as the base.",
            )
        return torch.tensor([[-1 if name is None else places[name] for name in row] for row in names])
    return torch.tensor([-1 if name is None else places[name] for name in names], dtype=torch.long)
