"""The contract of a kind of site: what a module type must say about itself to be adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Kind", "Suffixes"]

Suffixes = tuple[str, str]
"""Key endings of A and B in a PEFT file."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of adaptable module.

    A kind never sees a rank, a scaling or an adapter's name: it knows the module's sizes, how an input meets A, and
    how the stored weight lies in memory. Everything else (B, scaling, slices, dropout, merge) is common to all kinds.

    Args:
        name: name in plans and reports.
        matches: whether a module is of this kind.
        sizes: module -> (in_features, out_features).
        transposed: the weight is stored as (in, out) and not as (out, in).
        suffixes: key endings of A and B in a PEFT file.
        down: (module, input, A, dtype) -> input in rank space, shape (..., R).
        droppable: dropout on the input makes sense.
        sliceable: output features may be adapted in parts.
        zero: which factor starts at zero, ``"B"`` or ``"A"``.
        bounded: (module, rows) -> rows, a constraint the base puts on its looked-up weights, or None.
        plain: (module, input) -> the base's output under that constraint, without writing to the weight; None where
            the base's own forward will do.
        settled: (module, weight) -> weight, a whole table under that constraint, which the base's own forward then
            leaves as it is; None where there is no constraint.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    sizes: Callable[[Any], tuple[int, int]]
    transposed: bool
    suffixes: Suffixes
    down: Callable[[Any, Tensor, Tensor, torch.dtype], Tensor]
    droppable: bool = True
    sliceable: bool = True
    zero: str = "B"
    bounded: Callable[[Any, Tensor], Tensor] | None = None
    plain: Callable[[Any, Tensor], Tensor | None] | None = None
    settled: Callable[[Any, Tensor], Tensor] | None = None
