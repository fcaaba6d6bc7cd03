"""Many low-rank updates in one product: the arithmetic of a batch whose rows belong to different adapters.

Row n of the batch belongs to adapter g(n), and all adapters are stacked, shorter ranks padded with zeros::

    y[n] = out[n] + s[g(n)] * x[n] A[g(n)]^T B[g(n)]

How rows meet factors is a *layout*; there are four, each the cheapest somewhere. No layout loops over adapters:

    Runs     rows of each adapter stand together, equally many: one batched product, nothing is copied
    ByRow    rows of many tokens: each row gets its factors; they are smaller than the row
    Padded   rows of few tokens: rows are gathered by adapter, so that each adapter's factors are read once
    Grouped  the same for very different counts, through torch's grouped product: no padding is computed

A compiled graph cannot look at counts, so it has three of its own, with one graph for every routing: ``Each`` gives
every row its factors, ``Sorted`` is the grouped product with its bounds as a tensor, ``Masked`` multiplies with all.

Shape legend: N rows of the batch, M rows that have an adapter, T tokens of a row, I in, O out, R rank, S adapters,
C columns of whatever enters. B is stacked transposed, (S, R, O): a slot of it is then dense for any rank.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ByRow",
    "Each",
    "Grouped",
    "Layout",
    "Masked",
    "Padded",
    "Runs",
    "Sorted",
    "add_stacked",
    "grouped_works",
    "look_up_stacked",
    "takes_grouped",
]


class Layout(Protocol):
    """How the rows of a batch meet stacked factors."""

    def enter(self, x: Tensor) -> Tensor:
        """Rows (N, T, C) as the products want them."""

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """What entered, in rank space and scaled."""

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """``out`` (N, T, O) plus the terms; rows without an adapter as they were."""


def add_stacked(
    out: Tensor, x: Tensor, A_SRI: Tensor, B_SRO: Tensor, s_S: Tensor, layout: Layout, fresh: bool = False
) -> Tensor:
    """The routed sum: out[n] + s[g(n)] * x[n] A[g(n)]^T B[g(n)].

    Costs 2*M*T*R*(I+O) operations, whatever the number of adapters.

    Args:
        out: the base's output, shape (N, T, O), floating.
        x: its input, shape (N, T, I), dtype of ``out``.
        A_SRI: stacked down projections, dtype of ``out``.
        B_SRO: stacked up projections, transposed, dtype of ``out``.
        s_S: scalings, at least fp32.
        layout: which row belongs to which adapter.
        fresh: ``out`` belongs to nobody else and may be changed in place.

    Returns:
        Tensor like ``out``; ``out`` itself where it is fresh.

    Source:
        Hu et al. 2021, arXiv:2106.09685, eq. 3, row by row.

    Example:
        >>> x, A, B = torch.ones(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 2)
        >>> add_stacked(torch.zeros(2, 1, 2), x, A, B, torch.tensor([1.0, 0.5]), Runs(2)).tolist()
        [[[3.0, 3.0]], [[1.5, 1.5]]]
    """
    return layout.leave(out, layout.down(layout.enter(x), A_SRI, s_S), B_SRO, fresh)


def look_up_stacked(ids: Tensor, A_SRV: Tensor, group: Tensor, padding_idx: int | None) -> Tensor:
    """First half of the term for an embedding: columns of each row's own A, picked by token.

    Args:
        ids: token ids, shape (N, T), integer.
        A_SRV: stacked down projections, V the vocabulary.
        group: int64, shape (N), the adapter of each row; none below 0.
        padding_idx: the id whose column never gets a gradient, or None.

    Returns:
        Tensor of shape (N, T, R), dtype of the factors.

    Example:
        >>> A = torch.tensor([[[5.0, 7.0]], [[1.0, 2.0]]])
        >>> look_up_stacked(torch.tensor([[1], [0]]), A, torch.tensor([0, 1]), None).tolist()
        [[[7.0]], [[1.0]]]
    """
    h = A_SRV[group.unsqueeze(-1), :, ids]
    return h if padding_idx is None else torch.where((ids == padding_idx).unsqueeze(-1), h.detach(), h)


def takes_grouped(*sizes: int, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product takes matrices of these widths.

    Args:
        *sizes: lengths of rows.
        dtype: of the values.

    Returns:
        True where every row is a whole number of 16 bytes.

    Example:
        >>> takes_grouped(16, 1024, dtype=torch.float32), takes_grouped(6, dtype=torch.float32)
        (True, False)
    """
    return all(size * dtype.itemsize % 16 == 0 for size in sizes)


@functools.cache
def grouped_works(kind: str) -> frozenset[torch.dtype]:
    """Dtypes for which this torch has a grouped product on a kind of device.

    Args:
        kind: type of the device, such as "cpu".

    Returns:
        The dtypes; tried out, once.
    """
    found = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            with torch.no_grad():
                offsets = torch.tensor([1, 2], dtype=torch.int32, device=kind)
                x, w = torch.ones(2, 8, dtype=dtype, device=kind), torch.ones(2, 8, 8, dtype=dtype, device=kind)
                if F.grouped_mm(x, w, offs=offsets).sum() == 128:
                    found.add(dtype)
        except (AttributeError, RuntimeError):
            continue
    return frozenset(found)


def _scaled(h: Tensor, s: Tensor) -> Tensor:
    """A factor for each matrix, multiplied in the wider dtype and rounded once."""
    return (h * s.view(-1, *[1] * (h.dim() - 1))).to(h.dtype)


@dataclass(frozen=True)
class Runs:
    """Rows of each adapter stand together, equally many.

    Args:
        count: S, by which N can be divided.
    """

    count: int

    def enter(self, x: Tensor) -> Tensor:
        """(S, N / S * T, C), a view."""
        return x.reshape(self.count, -1, x.shape[-1])

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(S, N / S * T, R)."""
        return _scaled(torch.bmm(x, A_SRI.transpose(1, 2)), s_S)

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum, one rounding."""
        if not fresh:
            return torch.baddbmm(self.enter(out), h, B_SRO).view(out.shape)
        out.view(self.count, -1, out.shape[-1]).baddbmm_(h, B_SRO)
        return out


@dataclass(frozen=True, eq=False)
class ByRow:
    """Each row gets its factors.

    Args:
        group: int64, shape (M), the adapter of each of ``rows``.
        rows: int64, shape (M), the rows that have one; None means all, in order.
    """

    group: Tensor
    rows: Tensor | None

    def enter(self, x: Tensor) -> Tensor:
        """(M, T, C)."""
        return x if self.rows is None else x.index_select(0, self.rows)

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(M, T, R)."""
        return _scaled(torch.bmm(x, A_SRI.index_select(0, self.group).transpose(1, 2)), s_S.index_select(0, self.group))

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum; one rounding where every row has an adapter."""
        own = B_SRO.index_select(0, self.group)
        if self.rows is None:
            return out.baddbmm_(h, own) if fresh else torch.baddbmm(out, h, own)
        return _add_rows(out, self.rows, torch.bmm(h, own), fresh)


@dataclass(frozen=True, eq=False)
class Padded:
    """Rows gathered by adapter, as many for each as the largest has.

    Args:
        gather: int64, shape (S, P), rows of each adapter; repeated at the end where it has fewer than P.
        take: int64, shape (M), where each of ``rows`` stands in ``gather``.
        rows: int64, shape (M), the rows that have an adapter; None means all, in order.
    """

    gather: Tensor
    take: Tensor
    rows: Tensor | None

    def enter(self, x: Tensor) -> Tensor:
        """(S, P * T, C)."""
        return x.index_select(0, self.gather.view(-1)).view(len(self.gather), -1, x.shape[-1])

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(S, P * T, R)."""
        return _scaled(torch.bmm(x, A_SRI.transpose(1, 2)), s_S)

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum; what was padded is left behind."""
        term = torch.bmm(h, B_SRO).view(self.gather.numel(), -1, out.shape[-1]).index_select(0, self.take)
        return _add_rows(out, self.rows, term, fresh)


@dataclass(frozen=True, eq=False)
class Grouped:
    """Rows gathered by adapter, with torch's grouped product.

    Args:
        order: int64, shape (M), rows that have an adapter, sorted by it.
        group: int64, shape (M), the adapter of each of these.
        ends: int32, shape (S), one past each adapter's last row of ``order``.
    """

    order: Tensor
    group: Tensor
    ends: Tensor

    def enter(self, x: Tensor) -> Tensor:
        """(M, T, C)."""
        return x.index_select(0, self.order)

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(M, T, R)."""
        return _scaled(_grouped(x, A_SRI.transpose(1, 2), self.ends), s_S.index_select(0, self.group))

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum."""
        return _add_rows(out, self.order, _grouped(h, B_SRO, self.ends), fresh)


def _grouped(x: Tensor, W_SKC: Tensor, ends: Tensor) -> Tensor:
    """Rows (M, T, K), sorted by group, times each group's matrix."""
    tokens = x.shape[1]
    flat = F.grouped_mm(x.reshape(-1, x.shape[-1]), W_SKC, offs=ends * tokens)
    return flat.view(-1, tokens, W_SKC.shape[-1])


def _add_rows(out: Tensor, rows: Tensor | None, term: Tensor, fresh: bool) -> Tensor:
    """Add terms to some rows, or to all in order."""
    if rows is None:
        return out.add_(term) if fresh else out + term
    return out.index_add_(0, rows, term) if fresh else out.index_add(0, rows, term)


@dataclass(frozen=True, eq=False)
class _InPlace:
    """Rows stay where they stand.

    Args:
        place: int64, shape (N), the adapter of each row; below 0 for none.
    """

    place: Tensor

    def enter(self, x: Tensor) -> Tensor:
        """(N, T, C), as it is."""
        return x


class Each(_InPlace):
    """In a compiled graph: every row gets factors, and those without an adapter do not keep what comes of it."""

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(N, T, R)."""
        own = self.place.clamp_min(0)
        return _scaled(torch.bmm(x, A_SRI.index_select(0, own).transpose(1, 2)), s_S.index_select(0, own))

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum, kept where there is an adapter."""
        return _kept(self.place, torch.baddbmm(out, h, B_SRO.index_select(0, self.place.clamp_min(0))), out)


@dataclass(frozen=True, eq=False)
class Sorted:
    """In a compiled graph: rows sorted by adapter, the bounds a tensor. Rows without one go with the first.

    Args:
        place: int64, shape (N), the adapter of each row; below 0 for none.
        order: int64, shape (N), rows sorted by adapter.
        ends: int32, shape (S), one past each adapter's last row of ``order``.
    """

    place: Tensor
    order: Tensor
    ends: Tensor

    def enter(self, x: Tensor) -> Tensor:
        """(N, T, C)."""
        return x.index_select(0, self.order)

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(N, T, R)."""
        own = self.place.clamp_min(0).index_select(0, self.order)
        return _scaled(_grouped(x, A_SRI.transpose(1, 2), self.ends), s_S.index_select(0, own))

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum, kept where there is an adapter."""
        return _kept(self.place, out.index_add(0, self.order, _grouped(h, B_SRO, self.ends)), out)


class Masked(_InPlace):
    """In a compiled graph, where nothing else applies: every row times all adapters, its own alone kept."""

    def down(self, x: Tensor, A_SRI: Tensor, s_S: Tensor) -> Tensor:
        """(N, T, S * R), zero but for the row's own."""
        h = F.linear(x, A_SRI.flatten(0, 1)).view(*x.shape[:-1], *A_SRI.shape[:2])
        return (h * (self._own(len(s_S)) * s_S.view(-1, 1))).to(h.dtype).flatten(-2)

    def leave(self, out: Tensor, h: Tensor, B_SRO: Tensor, fresh: bool) -> Tensor:
        """The sum, kept where there is an adapter."""
        if h.shape[-1] == B_SRO.shape[1]:  # a lookup, which knows one adapter alone
            h = (h.unsqueeze(-2) * self._own(len(B_SRO))).to(h.dtype).flatten(-2)
        return _kept(self.place, out + h @ B_SRO.flatten(0, 1), out)

    def _own(self, count: int) -> Tensor:
        """(N, 1, S, 1), True at each row's adapter."""
        return (self.place.unsqueeze(-1) == torch.arange(count, device=self.place.device))[:, None, :, None]


def _kept(place: Tensor, y: Tensor, out: Tensor) -> Tensor:
    return torch.where((place >= 0)[:, None, None], y, out)
