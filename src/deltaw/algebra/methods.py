"""The ways to join one module's updates: two that give the sum, two heuristics that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from deltaw.algebra.factored import balanced, summed, svd
from deltaw.algebra.heuristics import thinned, ties
from deltaw.algebra.parts import Update

__all__ = ["METHODS", "WIDE", "Method", "Term", "compressed", "concatenated"]

Term = tuple[Update, float]
"""An update and the coefficient on its B A: weight * scaling."""

WIDE = torch.float32
"""Least dtype of factors that were computed and not copied."""


def concatenated(terms: Sequence[Term]) -> Update:
    """The sum with all factors side by side: ranks add, and nothing is rounded but coefficients that differ.

    Args:
        terms: at least one.

    Returns:
        The update. With one coefficient in all terms the factors keep their bits and it becomes the scaling;
        otherwise B carries the coefficients, in fp32 at least, and the scaling is 1.
    """
    first, coefficient = terms[0]
    if len({c for _, c in terms}) == 1:
        dtypes = _promoted(terms, None)
        each = [(update.blocks(dtypes[0]), update.blocks(dtypes[1]), 1.0) for update, _ in terms]
        scaling = coefficient
    else:
        dtypes = _promoted(terms, WIDE)
        each = [(update.blocks(dtypes[0]), update.blocks(), c) for update, c in terms]
        scaling = 1.0
    blocks = [
        (
            torch.cat([in_A[group][0] for in_A, _, _ in each]),
            torch.cat([in_B[group][1] * c for _, in_B, c in each], 1),
        )
        for group in range(first.groups)
    ]
    return first.with_blocks(blocks, scaling, dtypes)


def compressed(terms: Sequence[Term]) -> Update:
    """The sum at the least rank that holds it, by QR of the factors side by side and the SVD of the core.

    Directions below the rounding of float64 arithmetic on the terms are dropped, no others.

    Args:
        terms: at least one.

    Returns:
        The update, of scaling 1 (a single term keeps its factors).
    """
    first, coefficient = terms[0]
    if len(terms) == 1:
        return replace(first, scaling=coefficient)
    found = []
    for group in range(first.groups):
        pairs = [(update.blocks()[group], c) for update, c in terms]
        lora_A, lora_B = summed(pairs)
        U, values, V = svd(lora_A, lora_B)
        noise = 4 * lora_A.shape[0] * torch.finfo(torch.float64).eps
        floor = noise * sum(abs(c) * float(A.norm() * B.norm()) for (A, B), c in pairs)
        found.append((U, values, V, int((values > floor).sum())))
    rank = max(1, *(kept for *_, kept in found))
    blocks = [
        balanced(U, torch.where(torch.arange(len(values)) < kept, values, 0.0), V, rank) for U, values, V, kept in found
    ]
    return first.with_blocks(blocks, 1.0, _promoted(terms, WIDE))


def _promoted(terms: Sequence[Term], least: torch.dtype | None) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes that hold every term's A and B, and at least ``least``."""
    found = []
    for factors in ([u.lora_A for u, _ in terms], [u.lora_B for u, _ in terms]):
        dtype = factors[0].dtype if least is None else torch.promote_types(factors[0].dtype, least)
        for factor in factors[1:]:
            dtype = torch.promote_types(dtype, factor.dtype)
        found.append(dtype)
    return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to combine the updates of a module.

    Args:
        join: (terms, density, seed) -> update; a bias of B is summed by the caller.
        heuristic: what it does instead of the sum, or None where the result is the sum.
        density: it reads ``density``.
        seed: it reads ``seed``.
    """

    join: Callable[[Sequence[Term], float, int], Update]
    heuristic: str | None = None
    density: bool = False
    seed: bool = False


def _dared(terms: Sequence[Term], density: float, seed: int) -> Update:
    return concatenated([(thinned(u, density, seed, index), c) for index, (u, c) in enumerate(terms)])


METHODS: dict[str, Method] = {
    "exact": Method(join=lambda terms, density, seed: compressed(terms)),
    "concatenate": Method(join=lambda terms, density, seed: concatenated(terms)),
    "ties": Method(
        join=lambda terms, density, seed: ties(terms, density),
        heuristic="trims, elects signs and averages in A and in B apart (arXiv:2306.01708 treats whole updates)",
        density=True,
    ),
    "dare": Method(
        join=_dared,
        heuristic="drops entries of A and of B at random and adds what is left (arXiv:2311.03099 treats whole updates)",
        density=True,
        seed=True,
    ),
}
"""The ways to combine; a new one is one line."""
