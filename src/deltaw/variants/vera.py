"""VeRA: one random, frozen pair of matrices for all sites; each site trains two vectors.

W' = W + diag(b) B diag(d) A, where A (R, largest I) and B (largest O, R) are drawn once and cut to each site's size.

Source:
    Kopiczko et al. 2023, arXiv:2310.11454.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.initialize import Request
from deltaw.variants.base import Shape, Tensors, Variant

__all__ = ["VERA"]

_FIRST = 0.1
"""First value of d (table 6 of the paper)."""


def _shapes(request: Request, found: dict[str, Shape]) -> dict[str, Shape]:
    return {**found, "vera_d": (request.rank,), "vera_b": (request.out_features,)}


def _init(request: Request, init: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**found, "vera_d": torch.full((request.rank,), _FIRST), "vera_b": torch.zeros(request.out_features)}


def _shared(in_features: int, out_features: int, rank: int, seed: int) -> dict[str, Tensor]:
    """Kaiming-uniform with gain sqrt(2), from one generator: first A, then B."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in (("vera_A", (rank, in_features)), ("vera_B", (out_features, rank))):
        bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
        drawn[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return drawn


def _cut(shared: Mapping[str, Any], request: Request) -> dict[str, Tensor]:
    return {"vera_A": shared["vera_A"][:, : request.in_features], "vera_B": shared["vera_B"][: request.out_features]}


def _factors(tensors: Tensors) -> tuple[Tensor, Tensor]:
    return tensors["vera_d"][:, None] * tensors["vera_A"], tensors["vera_b"][:, None] * tensors["vera_B"]


VERA = Variant(
    name="vera",
    shapes=_shapes,
    init=_init,
    factors=_factors,
    shared=_shared,
    cut=_cut,
    scaled=False,
    kinds=frozenset({"Linear", "Conv1D"}),
    excludes=frozenset({"lora", "lora_fa", "lora_bias", "dora"}),
)
