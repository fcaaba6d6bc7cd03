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
    """Apply max_norm to looked-up rows as torch does to the table, but without writing to it."""
    if module.max_norm is None:
        return rows
    norm = torch.linalg.vector_norm(rows, ord=module.norm_type, dim=-1, keepdim=True)
    factor = torch.where(norm > module.max_norm, module.max_norm / (norm + 1e-7), torch.ones_like(norm))
    return rows * factor.detach()


def _plain(module: Any, ids: Tensor) -> Tensor | None:
    """Rows of a base table under max_norm; torch's own forward would renormalize the table in place."""
    if module.max_norm is None:
        return None
    return _bounded(module, F.embedding(ids, module.weight, module.padding_idx))


EMBEDDING = Kind(
    name="Embedding",
    matches=lambda module: isinstance(module, nn.Embedding),
    sizes=lambda module: (module.num_embeddings, module.embedding_dim),
    transposed=True,
    suffixes=(".lora_embedding_A", ".lora_embedding_B"),
    down=_down,
    droppable=False,
    sliceable=False,
    zero="A",
    bounded=_bounded,
    plain=_plain,
)
