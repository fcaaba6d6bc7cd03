"""The contract of a kind of site: what a module type must say about itself to be adapted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.functional import linear_up

__all__ = ["Kind", "Shapes", "Suffixes", "blocks_shapes"]

Suffixes = tuple[str, str]
"""Key endings of A and B in a PEFT file."""
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes in which A and B are stored."""


def blocks_shapes(module: Any, rank: int, n_in: int, n_out: int) -> Shapes:
    """Shapes of A and B of a linear map: (R, I) and (O, R).

    Args:
        module: unused; convolutions look at theirs.
        rank: R.
        n_in: I.
        n_out: O.

    Returns:
        The shapes.
    """
    return (rank, n_in), (n_out, rank)


def _up(module: Any, h: Tensor, lora_B: Tensor) -> Tensor:
    return linear_up(h, lora_B)


def _last(module: Any, vector: Tensor) -> Tensor:
    return vector


def _one(module: Any) -> int:
    return 1


def _as_is(module: Any, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    return lora_A, lora_B


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Kind:
    """One kind of adaptable module.

    A kind never sees a scaling or an adapter's name: it knows the module's sizes, how an input meets A and B, and how
    the stored weight lies in memory. Everything else (variants, slices, dropout, merge) is common to all kinds.

    As a matrix, a weight is (O, K) with K = I for a linear map and K = I / groups * kernel for a convolution.

    Args:
        name: name in plans and reports.
        matches: whether a module is of this kind.
        sizes: module -> (in_features, out_features).
        transposed: the weight is stored as (in, out) and not as (out, in).
        suffixes: key endings of A and B in a PEFT file.
        down: (module, input, A, dtype) -> input in rank space.
        parameter: name of the adapted weight.
        bias: name of the bias that goes with it.
        shapes: (module, R, I, O) -> shapes of A and B.
        groups: module -> number of blocks on the weight's diagonal.
        up: (module, rank-space input, B) -> the term, shaped like the output.
        spread: (module, vector of O values) -> the vector, shaped to meet an output.
        pack: (module, A, B) -> A, B as a PEFT file holds them.
        unpack: (module, A, B) -> A, B as they are stored here; an empty A where the file's do not fit.
        droppable: dropout on the input makes sense.
        sliceable: output features may be adapted in parts.
        lookup: the input is token ids, and A starts at zero instead of B.
        product: (module, forward of its base class) -> (weight (O, I), bias) where that forward is nothing but their
            product with an input, else None. A kind that has it has plain products for ``down`` and ``up`` too, so
            that the LoRA step applies.
        readable: the weight has two axes, and others may read it themselves.
        spectral: initializations that start from the weight or from data apply.
        bounded: (module, rows) -> rows, a constraint the base puts on its looked-up weights, or None.
        plain: (module, input) -> the base's output under that constraint, without writing to the weight; None where
            the base's own forward will do.
        settled: (module, weight) -> weight, a whole table under that constraint, which the base's own forward then
            leaves as it is; None where there is no constraint.
        forward: (module, base forward, adapters at work, args, kwargs) -> output, where the base's own forward cannot
            be reused.
        members: further attributes of the adapted class.
        parts: further adaptable children that a target of this module means too.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    sizes: Callable[[Any], tuple[int, int]]
    transposed: bool
    suffixes: Suffixes
    down: Callable[[Any, Tensor, Tensor, torch.dtype], Tensor]
    parameter: str = "weight"
    bias: str = "bias"
    shapes: Callable[[Any, int, int, int], Shapes] = blocks_shapes
    groups: Callable[[Any], int] = _one
    up: Callable[[Any, Tensor, Tensor], Tensor] = _up
    spread: Callable[[Any, Tensor], Tensor] = _last
    pack: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]] = _as_is
    unpack: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]] = _as_is
    droppable: bool = True
    sliceable: bool = True
    lookup: bool = False
    product: Callable[[Any, Callable[..., Any]], tuple[Tensor, Tensor | None] | None] | None = None
    readable: bool = True
    spectral: bool = True
    bounded: Callable[[Any, Tensor], Tensor] | None = None
    plain: Callable[[Any, Tensor], Tensor | None] | None = None
    settled: Callable[[Any, Tensor], Tensor] | None = None
    forward: Callable[..., Any] | None = None
    members: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def weight(self, module: Any) -> Any:
        """The adapted weight as it is stored.

        Args:
            module: a module of this kind.

        Returns:
            The parameter, or whatever a quantizing library put in its place; None where there is none.
        """
        return module._parameters.get(self.parameter)

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        """A stored weight as a matrix.

        Args:
            module: its module.
            weight: in the stored layout.

        Returns:
            Shape (O, K), a view where that is possible.
        """
        return weight.t() if self.transposed else weight.flatten(1)

    def stored(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """A matrix in the layout of the stored weight.

        Args:
            matrix: shape (O, K).
            shape: shape of the stored weight.

        Returns:
            Tensor of that shape.
        """
        return matrix.t() if self.transposed else matrix.reshape(shape)
