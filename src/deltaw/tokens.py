"""Trained rows of a token table: a few rows replaced, the table itself never copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.indexed import index_add

__all__ = ["TokenRows", "look_up", "read_out"]


class TokenRows(nn.Module):
    """Rows of a table that an adapter replaces by trained ones.

    Args:
        table: the base's weight, shape (V, D).
        index: which rows, distinct.
    """

    index: Tensor

    def __init__(self, table: Tensor, index: Sequence[int]) -> None:
        super().__init__()
        places = torch.tensor(sorted(index), dtype=torch.long, device=table.device)
        self.register_buffer("index", places)
        self.rows = nn.Parameter(table.detach()[places].to(torch.float32, copy=True))


def look_up(
    out: Tensor, ids: Tensor, tokens: TokenRows, padding_idx: int | None, by_frequency: bool, scale: Any = None
) -> Tensor:
    """Replace what was looked up for the trained tokens.

    Args:
        out: rows looked up in the base's table, shape (*ids.shape, D).
        ids: token ids.
        tokens: the trained rows.
        padding_idx: a token whose row gets no gradient.
        by_frequency: divide a row's gradient by its count in the batch.
        scale: factor that the embedding puts on what it looks up, or None.

    Returns:
        Tensor like ``out``.
    """
    place = torch.searchsorted(tokens.index, ids).clamp_max(len(tokens.index) - 1)
    hit = tokens.index[place] == ids
    rows = F.embedding(torch.where(hit, place, place.new_zeros(())), tokens.rows.to(out.dtype))
    rows = rows if scale is None else rows * scale
    if by_frequency and rows.requires_grad:
        counts = torch.bincount(place[hit], minlength=len(tokens.index)).clamp_min(1)
        share = (1 / counts.to(rows.dtype))[place].unsqueeze(-1)
        rows = rows.detach() + (rows - rows.detach()) * share
    if padding_idx is not None:
        rows = torch.where((ids == padding_idx).unsqueeze(-1), rows.detach(), rows)
    return torch.where(hit.unsqueeze(-1), rows, out)


def read_out(out: Tensor, x: Tensor, tokens: TokenRows, table: Tensor) -> Tensor:
    """Change the scores of the trained tokens, where the head reads the same table.

    Args:
        out: scores, shape (..., V).
        x: input of the head, shape (..., D).
        tokens: the trained rows.
        table: the head's weight, shape (V, D).

    Returns:
        Tensor like ``out``; ``out`` itself, bit for bit, while the rows are the table's own.
    """
    change = tokens.rows.to(x.dtype) - table.detach()[tokens.index].to(x.dtype)
    return index_add(out, tokens.index, F.linear(x, change).to(out.dtype))
