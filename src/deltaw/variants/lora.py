"""Plain LoRA: W + scaling * B A.

Source:
    Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from torch import Tensor

from deltaw.initialize import INITIALIZATIONS, Request, swapped
from deltaw.variants.base import Shape, Variant

__all__ = ["LORA"]


def _shapes(request: Request, found: dict[str, Shape]) -> dict[str, Shape]:
    shapes = {"lora_A": request.shape_A, "lora_B": request.shape_B}
    if request.subtract:
        # what the factors start from is taken off again, so that the first output is the base's own
        shapes |= {"start_A": request.shape_A, "start_B": request.shape_B}
    return {**found, **shapes}


def _init(request: Request, init: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    lora_A, lora_B = swapped(request) if request.lookup else INITIALIZATIONS[init].draw(request)
    tensors = {"lora_A": lora_A, "lora_B": lora_B}
    if request.subtract:
        tensors |= {"start_A": lora_A.clone(), "start_B": lora_B.clone()}
    return {**found, **tensors}


LORA = Variant(name="lora", shapes=_shapes, init=_init, frozen=frozenset({"start_A", "start_B"}))
