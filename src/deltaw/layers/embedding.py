"""Embeddings: a linear map of one-hot inputs, whose table is stored as (vocabulary, features)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.functional import embed_down
from deltaw.layers.kind import Kind

__all__ = ["EMBEDDING"]


def _down(module: Any, ids: Tensor, lora_A: Tensor, dtype: torch.dtype) -> Tensor:
    if lora_A.shape[1] != module.num_embeddings:
        raise StateError(
            "the embedding was resized after the adapter was attached",
            where=f"{type(module).__name__} with {module.num_embeddings} rows",
            got=f"an adapter for {lora_A.shape[1]} rows",
            expected="the number of rows at attach",
            hint="detach, resize, then attach again.",
        )
    h = embed_down(ids, lora_A, module.padding_idx, module.scale_grad_by_freq, dtype)
    # some models scale what they look up (Gemma, BART): the update is part of the table, so it is scaled too
    scale = getattr(module, "embed_scale", None)
    return h if scale is None else h * scale


def _bounded(module: Any, rows: Tensor) -> Tensor:
    """Apply max_norm to looked-up rows plus their update, without writing to the table.

    Rows that stand at the bound already are left alone: a rounding error above it is no reason to change them.
    """
    if module.max_norm is None:
        return rows
    norm = torch.linalg.vector_norm(rows, ord=module.norm_type, dim=-1, keepdim=True, dtype=torch.float32)
    slack = 1 + 2 * torch.finfo(rows.dtype).eps
    factor = torch.where(norm > module.max_norm * slack, module.max_norm / (norm + 1e-7), torch.ones_like(norm))
    return rows * factor.detach().to(rows.dtype)


def _renormalized(module: Any, table: Tensor) -> Tensor:
    """What torch's forward would make of every row, on a copy."""
    table = table.detach().clone()
    return torch.embedding_renorm_(
        table, torch.arange(len(table), device=table.device), module.max_norm, module.norm_type
    )


def _plain(module: Any, ids: Tensor) -> Tensor | None:
    """Rows of a base table under max_norm; torch's own forward would renormalize the table in place."""
    if module.max_norm is None:
        return None
    rows = F.embedding(ids, module.weight, module.padding_idx)
    return _renormalized(module, rows.reshape(-1, rows.shape[-1])).view(rows.shape)


def _settled(module: Any, table: Tensor) -> Tensor:
    """A table that torch's forward leaves as it is, so that running a merged model does not change its weights."""
    if module.max_norm is None:
        return table
    while not torch.equal(table, renormalized := _renormalized(module, table)):
        table = renormalized
    return table


EMBEDDING = Kind(
    name="Embedding",
    matches=lambda module: isinstance(module, nn.Embedding),
    sizes=lambda module: (module.num_embeddings, module.embedding_dim),
    transposed=True,
    suffixes=(".lora_embedding_A", ".lora_embedding_B"),
    down=_down,
    droppable=False,
    sliceable=False,
    lookup=True,
    spectral=False,
    bounded=_bounded,
    plain=_plain,
    settled=_settled,
)
