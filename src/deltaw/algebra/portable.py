"""An adapter for readers that know ``r`` and ``lora_alpha`` alone: one rank, one scaling of 1, plain factors."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapter import METADATA, Adapter
from deltaw.algebra.parts import parts_of
from deltaw.errors import CheckpointError
from deltaw.keys import EXTRAS, TWICE

__all__ = ["portable"]


def _obstacles(adapter: Adapter) -> list[str]:
    """What such readers cannot apply."""
    contents = adapter.contents
    found = [f"{name} of '{path}'" for path, extras in contents.extras.items() for name in extras if name in EXTRAS]
    found += [f"VeRA's vectors of '{path}'" for path in contents.vectors]
    found += [f"trained rows of '{path}'" for path in contents.rows]
    found += [f"'{name}', trained in full or written along" for name in contents.rest]
    found += [f"'{name}', a trained bias" for name in contents.base if name.endswith(".bias")]
    # an incomplete pair is no obstacle of these readers: it is refused as what it is
    pairs = {path: pair for path, pair in contents.factors.items() if len(pair) == 2}
    grouped = [path for path, pair in pairs.items() if pair[1].dim() > 2 and pair[1].shape[1] != len(pair[0])]
    return found + [f"the grouped convolution '{path}'" for path in grouped]


def portable(adapter: Adapter) -> Adapter:
    """Fold everything that can be folded into A and B, so that ``lora_alpha / r`` is 1 and right everywhere.

    Rank-stabilized scalings, rank and alpha patterns go into B; smaller ranks are padded with zeros. Slices and starts
    are one plain LoRA on disk anyway, and come back as one. Copies of the frozen base that PEFT wrote along are left
    out.

    Args:
        adapter: plain low-rank updates.

    Returns:
        The adapter, same updates within one rounding of B.

    Raises:
        CheckpointError: if it holds what cannot be folded, by name; if it is incomplete or not finite.
    """
    obstacles = _obstacles(adapter)
    if obstacles or not adapter.contents.factors:
        more = f" and {len(obstacles) - 3} more" if len(obstacles) > 3 else ""
        raise CheckpointError(
            "this adapter cannot be written for readers that know rank and alpha alone",
            where=adapter.where,
            got="; ".join(obstacles[:3]) + more if obstacles else "no low-rank update",
            expected="A and B of linear maps, embeddings and convolutions",
            hint="merge it into the base instead, and serve the merged model.",
        )
    updates = parts_of(adapter).updates.values()
    rank = max(update.rank for update in updates)
    tensors: dict[str, Tensor] = {}
    for update in updates:
        factor = update.scaling * (TWICE if update.path in adapter.contents.inner else 1.0)
        tensors[update.keys[0]] = _padded(update.lora_A, rank, 0)
        tensors[update.keys[1]] = _padded(_scaled(update.lora_B, factor), rank, 1)
    raw: dict[str, Any] = {
        **adapter.raw, "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    kept = {name: adapter.own[name] for name in ("fingerprint", "layout", "version", "twins") if name in adapter.own}
    metadata = {name: value for name, value in adapter.metadata.items() if name != METADATA}
    metadata |= {METADATA: json.dumps(kept, sort_keys=True, separators=(",", ":"))} if kept else {}
    return Adapter(tensors=tensors, raw=raw, metadata=metadata, where=adapter.where)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return (tensor.to(torch.float64) * factor).to(tensor.dtype)


def _padded(tensor: Tensor, rank: int, dim: int) -> Tensor:
    """Zeros up to a rank along one axis."""
    pads = [0, 0] * tensor.dim()
    pads[2 * (tensor.dim() - 1 - dim) + 1] = rank - tensor.shape[dim]
    return F.pad(tensor, pads)
