"""Plain LoRA: W + scaling * B A.

Source:
    Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from torch import Tensor

from deltaw.functional import add_term, delta_weight
from deltaw.initialize import INITIALIZATIONS, Request
from deltaw.variants.base import Variant

__all__ = ["LORA"]


def _init(request: Request, init: str) -> tuple[Tensor, Tensor]:
    return INITIALIZATIONS[init](request)


LORA = Variant(init=_init, delta=delta_weight, apply=add_term)
