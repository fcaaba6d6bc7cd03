"""Linear layers: torch's, transformers' Conv1D, and every subclass of either, quantized ones included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.functional import linear_down
from deltaw.layers.kind import Kind

__all__ = ["CONV1D", "LINEAR"]


def _down(module: nn.Module, x: Tensor, lora_A: Tensor, dtype: torch.dtype) -> Tensor:
    return linear_down(x, lora_A)


def _product(module: nn.Module, forward: Callable[..., Any]) -> tuple[Tensor, Tensor | None] | None:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if forward is nn.Linear.forward and type(weight) is nn.Parameter:
        return weight, bias
    return None


def _conv1d_product(module: nn.Module, forward: Callable[..., Any]) -> tuple[Tensor, Tensor | None] | None:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    utils = sys.modules["transformers.pytorch_utils"]
    if forward is utils.Conv1D.forward and type(weight) is nn.Parameter:
        return weight.t(), bias
    return None


def _is_hf_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D; where transformers was never imported there is none."""
    utils = sys.modules.get("transformers.pytorch_utils")
    return utils is not None and isinstance(module, utils.Conv1D)


def _conv1d_sizes(module: Any) -> tuple[int, int]:
    """Read (in, out) off the weight, since older releases do not keep nx on the module."""
    return int(module.weight.shape[0]), int(module.weight.shape[1])


LINEAR = Kind(
    name="Linear",
    matches=lambda module: isinstance(module, nn.Linear),
    sizes=lambda module: (module.in_features, module.out_features),
    transposed=False,
    suffixes=(".lora_A.weight", ".lora_B.weight"),
    down=_down,
    product=_product,
)

CONV1D = Kind(
    name="Conv1D",
    matches=_is_hf_conv1d,
    sizes=_conv1d_sizes,
    transposed=True,
    suffixes=(".lora_A.weight", ".lora_B.weight"),
    down=_down,
    product=_conv1d_product,
)
