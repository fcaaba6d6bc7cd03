"""The contract of a variant: pure functions on tensors. A variant never sees a module, a file format or a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deltaw.initialize import Request

__all__ = ["Variant"]


class Variant(NamedTuple):
    """A way to parametrize the update of one weight.

    Args:
        init: (request, name of the initialization) -> (A, B).
        delta: (A, B, scaling, dtype) -> the update of W, shape (O, I).
        apply: (base output, input in rank space, B, scaling, rows) -> output.
    """

    init: Callable[[Request, str], tuple[Tensor, Tensor]]
    delta: Callable[[Tensor, Tensor, float, torch.dtype], Tensor]
    apply: Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
