"""Updates block by block: a merge works on a piece of a weight at a time, so that it needs little memory beside it.

The blocks depend on the weight's shape and on the updates alone, never on who merges: whichever road a merge takes, the
same products are computed in the same order, and the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.factors import Pair, cut
from deltaw.functional import compute_dtype, merge_weight
from deltaw.layers import Kind
from deltaw.sites import BaseView

__all__ = ["Block", "blocks_of", "dense_delta", "put_in", "view_of"]

_VALUES = 1 << 20
"""Values in a block: some megabytes in fp32, enough for a product to be efficient."""
_LINE = 64
"""Fewest columns of a block that is cut across the rows of memory: a cache line."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A range of a stored weight.

    Args:
        axis: of the stored weight.
        start: first index.
        stop: one past the last.
    """

    axis: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """The range of a tensor in the stored layout.

        Args:
            tensor: like the weight.

        Returns:
            A view.
        """
        return tensor.narrow(self.axis, self.start, self.stop - self.start)


def view_of(tensor: Tensor, block: Block | None) -> Tensor:
    """Look at a block of a tensor.

    Args:
        tensor: in the stored layout.
        block: which part; None is all of it.

    Returns:
        A view.
    """
    return tensor if block is None else block.of(tensor)


def blocks_of(kind: Kind, module: nn.Module, shape: Sequence[int], entries: Sequence[Any]) -> Iterator[Block]:
    """Cut a weight for a merge.

    Rows of memory are kept whole where that can be. An update that looks at whole rows of W, as DoRA's norms do, is cut
    along the output features; grouped weights are not cut.

    Args:
        kind: the site's kind.
        module: the site's module.
        shape: of the stored weight.
        entries: the adapters' modules there.

    Yields:
        The blocks, in order; together they are the weight.
    """
    factored = all(pair.part.update.factored for entry in entries if hasattr(entry, "parts") for pair in entry.parts())
    axis = 1 if kind.transposed and not factored else 0
    length = shape[axis]
    width = max(1, torch.Size(shape).numel() // max(1, length))
    step = length if kind.groups(module) != 1 else max(_LINE if axis else 1, _VALUES // width)
    for start in range(0, length, max(1, step)):
        yield Block(axis=axis, start=start, stop=min(start + step, length))


def put_in(kind: Kind, module: Any, entries: list[tuple[Any, float]], block: Block, stored: Tensor) -> None:
    """Turn a block of a base's weight, in place, into what a merge leaves there.

    The sum is computed in at least fp32 and rounded once.

    Args:
        kind: the site's kind.
        module: the site's module.
        entries: (the adapter's module there, its weight in the mix).
        block: which part of the weight.
        stored: that part, in the stored layout.
    """
    with torch.autocast(stored.device.type, enabled=False):
        if len(entries) != 1 or not _added(kind, module, *entries[0], block, stored):
            stored.copy_(_sum(kind, module, entries, block, stored))


def _added(kind: Kind, module: Any, entry: Any, weight: float, block: Block, stored: Tensor) -> bool:
    """Add one plain update within one product, W + s B A; False where it is more than that."""
    if not getattr(entry, "plain", False) or entry.tokens is not None or kind.settled is not None:
        return False
    if kind.groups(module) != 1:
        return False
    (whole,) = entry.parts()
    found = _in_block(kind, module, whole, block)
    assert found is not None  # a plain update speaks of every feature
    wide = stored.to(compute_dtype(stored.dtype))
    lora_A, lora_B = (factor.detach().to(wide).flatten(1) for factor in found[1])
    kind.matrix(module, wide).addmm_(lora_B, lora_A, alpha=whole.part.scaling * weight)
    if wide is not stored:
        stored.copy_(wide)
    return True


def _sum(kind: Kind, module: Any, entries: list[tuple[Any, float]], block: Block, stored: Tensor) -> Tensor:
    wide = compute_dtype(stored.dtype)
    total: Tensor | None = None
    for entry, weight in entries:
        if entry.tokens is not None:
            stored = _with_rows(stored, entry.tokens, block)
        if hasattr(entry, "parts"):
            delta = dense_delta(kind, module, entry, stored.to(wide), block)
            delta = delta if weight == 1 else delta * weight
            total = delta if total is None else total + delta
    if total is None:
        total = torch.zeros((), dtype=wide, device=stored.device)
    if kind.settled is None:
        return merge_weight(stored, total)
    return kind.settled(module, merge_weight(kind.settled(module, stored), total))


def _with_rows(stored: Tensor, tokens: Any, block: Block) -> Tensor:
    """A block of a token table with the trained rows that lie in it put in."""
    index, rows = tokens.index.to(stored.device), tokens.rows.detach().to(stored)
    assert block.axis == 0  # updates beside trained rows never look at whole columns
    here = (index >= block.start) & (index < block.stop)
    return stored.index_copy(0, index[here] - block.start, rows[here])


def dense_delta(kind: Kind, module: nn.Module, entry: Any, weight: Tensor, block: Block | None = None) -> Tensor:
    """The update of one adapter at one site, in the layout of the stored weight.

    Args:
        kind: the site's kind.
        module: the site's module.
        entry: the adapter's module there.
        weight: the base's weight in its stored layout, in the dtype to compute in; that block of it.
        block: which part of the weight; None means all of it.

    Returns:
        Tensor like ``weight``.
    """
    out: Tensor | None = None
    for whole in entry.parts():
        pair = Pair(whole.part, {name: tensor.to(weight.device) for name, tensor in whole.tensors.items()}, whole.rows)
        pair = pair if pair.rows is None else pair._replace(rows=pair.rows.to(weight.device))
        found = _in_block(kind, module, pair, block)
        if found is None:
            continue
        pair, factors = found
        view = BaseView(kind, module, pair.rows, weight)
        delta = pair.part.update.delta(pair.tensors, factors, pair.part.scaling, view)
        if pair.rows is None and out is None:
            out = delta
            continue
        out = torch.zeros_like(kind.matrix(module, weight)) if out is None else out
        out = out + delta if pair.rows is None else out.index_add_(0, pair.rows, delta)
    out = torch.zeros_like(kind.matrix(module, weight)) if out is None else out
    return kind.stored(out, weight.shape)


def _in_block(
    kind: Kind, module: nn.Module, pair: Pair, block: Block | None
) -> tuple[Pair, tuple[Tensor, Tensor]] | None:
    """An update and its factors as a block sees them; None where it says nothing there."""
    if block is None:
        return pair, pair.factors
    if kind.transposed == (block.axis == 0):
        lora_A, lora_B = pair.factors
        return pair, (lora_A[:, block.start : block.stop], lora_B)
    shown = cut(pair, block.start, block.stop, kind.sizes(module)[1])
    if shown is None:
        return None
    # every feature of the block, in order: no need to add by index
    shown = shown if pair.rows is not None else shown._replace(rows=None)
    return shown, shown.factors
