"""Convolutions: A is a convolution with the base's own kernel, stride, padding and groups; B is a 1x1 convolution.

As matrices, A is (R, K) and B is (O, R / groups) with K = I / groups * kernel; with groups, the update is a block of
B A for each group, so that it is a weight of the base's own shape and can be merged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltaw.layers.kind import Kind, Shapes

__all__ = ["CONV"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POINTWISE = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}


def _shapes(module: Any, rank: int, n_in: int, n_out: int) -> Shapes:
    kernel = tuple(module.kernel_size)
    ones = (1,) * len(kernel)
    return (rank, n_in // module.groups, *kernel), (n_out, rank // module.groups, *ones)


def _down(module: Any, x: Tensor, lora_A: Tensor, dtype: torch.dtype) -> Tensor:
    # the module's own method knows stride, dilation, padding and padding mode
    h: Tensor = module._conv_forward(x, lora_A.to(x.dtype), None)
    return h


def _up(module: Any, h: Tensor, lora_B: Tensor) -> Tensor:
    weight: Tensor = lora_B.to(h.dtype)
    out: Tensor = _POINTWISE[weight.dim()](h, weight, groups=module.groups)
    return out


def _spread(module: Any, vector: Tensor) -> Tensor:
    return vector.reshape(-1, *([1] * len(module.kernel_size)))


def _pack(module: Any, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """Write A over all input channels, zero outside its group's, as PEFT has it."""
    groups = module.groups
    if groups == 1:
        return lora_A, lora_B
    own, width = lora_A.shape[0] // groups, lora_A.shape[1]
    full = lora_A.new_zeros((lora_A.shape[0], width * groups, *lora_A.shape[2:]))
    for group in range(groups):
        rows = slice(group * own, (group + 1) * own)
        full[rows, group * width : (group + 1) * width] = lora_A[rows].detach()
    return full, lora_B


def _unpack(module: Any, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """Take the groups' own channels out of A; a file that mixes groups has no update of the base's shape."""
    groups = module.groups
    if groups == 1 or lora_A.dim() < 3 or lora_A.shape[0] % groups or lora_A.shape[1] != module.in_channels:
        return lora_A, lora_B
    own, width = lora_A.shape[0] // groups, lora_A.shape[1] // groups
    parts = [
        lora_A[g * own : (g + 1) * own, g * width : (g + 1) * width] for g in range(groups)
    ]  # fmt: skip
    packed = torch.cat(parts)
    mixed = int(torch.count_nonzero(lora_A)) != int(torch.count_nonzero(packed))
    return (lora_A.new_empty(0) if mixed else packed), lora_B


CONV = Kind(
    name="Conv",
    matches=lambda module: isinstance(module, _CONVS),
    sizes=lambda module: (module.in_channels, module.out_channels),
    transposed=False,
    suffixes=(".lora_A.weight", ".lora_B.weight"),
    down=_down,
    shapes=_shapes,
    groups=lambda module: int(module.groups),
    up=_up,
    spread=_spread,
    pack=_pack,
    unpack=_unpack,
    sliceable=False,
    readable=False,
    spectral=False,
)
