"""A trained bias on B: the term becomes scaling * (B A x + b), as in updates extracted from full fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.initialize import Request
from deltaw.variants.base import Shape, Tensors, Variant

__all__ = ["LORA_BIAS"]


def _shapes(request: Request, found: dict[str, Shape]) -> dict[str, Shape]:
    return {**found, "bias_B": (request.out_features,)}


def _init(request: Request, init: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**found, "bias_B": torch.zeros(request.out_features)}


def _shift(tensors: Tensors) -> Tensor:
    return tensors["bias_B"]


LORA_BIAS = Variant(
    name="lora_bias",
    shapes=_shapes,
    init=_init,
    shift=_shift,
    kinds=frozenset({"Linear", "Conv1D", "Conv", "Attention"}),
)
