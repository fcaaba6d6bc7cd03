"""ties and dare: heuristics for merging updates, done on the factors, and not the weighted sum of the updates.

The papers treat dense updates. Their result has no low rank, so what runs here acts on A and B by themselves:

- ``ties`` (Yadav et al. 2023, arXiv:2306.01708), as PEFT's ``combination_type="ties"`` does: of each factor of each
  adapter only the largest ``density`` share of entries is kept; per entry the sign of the larger sum wins; entries of
  that sign, each times the root of |weight * scaling|, are averaged. B and A of the result are multiplied like any
  other factors, so its update contains cross terms B_i A_j of different adapters that no adapter has.
- ``dare`` (Yu et al. 2024, arXiv:2311.03099): each entry of each factor is dropped with probability 1 - ``density``
  and the rest divided by ``density``, by generators of their own; the updates of the thinned factors are then added
  exactly, without cross terms. The expectation over seeds is the weighted sum; one draw is not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deltaw.algebra.parts import Update
from deltaw.errors import ConfigError

__all__ = ["thinned", "ties"]


def ties(terms: Sequence[tuple[Update, float]], density: float) -> Update:
    """One module's factors by TIES, each factor by itself.

    Args:
        terms: (update, weight * scaling), of one rank.
        density: share of the entries of each factor that is kept.

    Returns:
        The update, of that rank and scaling 1.

    Raises:
        ConfigError: if the ranks differ.

    Source:
        Yadav et al. 2023, arXiv:2306.01708, algorithm 1, applied to A and B.
    """
    first = terms[0][0]
    if len({update.rank for update, _ in terms}) > 1:
        raise ConfigError(
            "ties compares factors entry by entry, so the ranks must be one",
            where=f"'{first.path}'",
            got="ranks " + ", ".join(str(update.rank) for update, _ in terms),
            expected="one rank in all adapters",
            hint="resize them to one rank first, or use method='exact'.",
        )
    roots = [math.sqrt(abs(coefficient)) for _, coefficient in terms]
    signed = [math.copysign(root, coefficient) for root, (_, coefficient) in zip(roots, terms, strict=True)]
    return Update(
        path=first.path,
        stem=first.stem,
        lora_A=_elect([update.lora_A for update, _ in terms], signed, density),
        lora_B=_elect([update.lora_B for update, _ in terms], roots, density),
        scaling=1.0,
        suffixes=first.suffixes,
    )


def _elect(factors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect signs, average what agrees."""
    stacked = torch.stack([_trimmed(factor.detach(), density) for factor in factors])
    agrees = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1, -1)
    scaled = stacked * torch.tensor(weights, dtype=stacked.dtype).reshape(-1, *([1] * (stacked.dim() - 1)))
    averaged: Tensor = (scaled * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return averaged


def _trimmed(factor: Tensor, density: float) -> Tensor:
    wide = factor.to(torch.promote_types(factor.dtype, torch.float32))
    kept = wide.abs().flatten().topk(int(density * wide.numel())).indices
    mask = torch.zeros(wide.numel(), dtype=wide.dtype).index_fill_(0, kept, 1.0)
    return wide * mask.reshape(wide.shape)


def thinned(update: Update, density: float, seed: int, index: int) -> Update:
    """One module's factors with entries dropped at random and the rest made larger by as much.

    Args:
        update: the update.
        density: probability that an entry stays.
        seed: of the whole combination.
        index: of the adapter in it, so that equal adapters are thinned independently.

    Returns:
        The update; its expectation is the given one, since A and B are thinned independently.

    Source:
        Yu et al. 2024, arXiv:2311.03099, eq. 2, applied to A and B.
    """
    factors = []
    for name, factor in (("A", update.lora_A), ("B", update.lora_B)):
        digest = hashlib.sha256(f"{seed} {index} {name} {update.path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        wide = factor.detach().to(torch.promote_types(factor.dtype, torch.float32))
        stays = torch.rand(wide.shape, generator=generator) < density
        factors.append(torch.where(stays, wide / density, torch.zeros_like(wide)))
    return replace(update, lora_A=factors[0], lora_B=factors[1])
