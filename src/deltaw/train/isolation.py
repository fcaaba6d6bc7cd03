"""How a model is told that a row holds several examples.

Two ways are known. *Positions that restart* are enough where transformers builds the mask: its ``masking_utils`` finds
the segments in them for causal models that pass their positions on, for every backend and with the model's own windows.
*Masks* are built here and added to the scores: what bidirectional models need, and older releases of transformers, on
eager and SDPA attention. Which one a model heeds is tried, not known: see ``trial.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deltaw.train.batches import Batch

__all__ = ["Isolation", "segment_mask"]


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A way to keep the segments of a row apart.

    Args:
        causal: whether tokens see only what is before them.
        offset: position of a segment's first token; RoBERTa counts from its padding index + 1.
        windows: None where positions alone do it. Else the masks to pass, by type of layer, with their window in
            tokens, 0 for none; the type "" means one mask for all layers.
        dtype: of the masks; the model's.
    """

    causal: bool = True
    offset: int = 0
    windows: Mapping[str, int] | None = None
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Name the way."""
        return f"examples are kept apart by {self.short}"

    @property
    def short(self) -> str:
        """The means, in a few words."""
        if self.windows is None:
            return "positions that restart"
        return "masks" if "" in self.windows else "masks by layer type"

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """What a model is called with beside the tokens.

        Args:
            batch: a packed batch.

        Returns:
            ``position_ids``, and where they are needed ``attention_mask`` (additive, shape (N, 1, T, T), or one by
            type of layer) and ``use_cache`` (with a cache, transformers looks for no segments).
        """
        assert batch.segments is not None and batch.positions is not None
        found: dict[str, Any] = {"position_ids": batch.positions + self.offset}
        if self.causal:
            found["use_cache"] = False
        if self.windows is None:
            return found
        masks = {
            kind: segment_mask(batch.segments, causal=self.causal, window=window, dtype=self.dtype)
            for kind, window in self.windows.items()
        }
        return found | {"attention_mask": masks.get("", masks)}

    def mask_bytes(self, length: int, layers: int, attention: str) -> int:
        """Count what attention masks hold while a row is trained.

        Args:
            length: tokens of the row.
            layers: attention layers of the model.
            attention: ``eager``, ``sdpa``, or a kernel that needs no mask.

        Returns:
            Bytes. transformers makes boolean masks for SDPA, which keeps each layer's as numbers; those made here are
            numbers from the start, and shared.
        """
        one = length * length * self.dtype.itemsize
        if self.windows is not None:
            return one * len(self.windows)
        return {"eager": one, "sdpa": length * length + layers * one}.get(attention, 0)


def segment_mask(segments: Tensor, *, causal: bool, window: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Build the mask that is added to attention scores: 0 where a token may look, the lowest number elsewhere.

    Args:
        segments: shape (N, T), integers; tokens of equal number belong together and stand side by side.
        causal: whether tokens see only what is before them.
        window: how many tokens a token sees, itself included; 0 for all.
        dtype: of the mask; SDPA wants that of the queries.

    Returns:
        Shape (N, 1, T, T).

    Example:
        >>> (segment_mask(torch.tensor([[1, 1, 2]]), causal=True)[0, 0] == 0).int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    keep = segments[:, None, :, None] == segments[:, None, None, :]
    if causal:
        place = torch.arange(segments.shape[1], device=segments.device)
        distance = place[:, None] - place[None, :]
        keep &= (distance >= 0) & (distance < (window or len(place)))
    return torch.zeros(keep.shape, dtype=dtype, device=segments.device).masked_fill_(~keep, torch.finfo(dtype).min)
