"""What a trained layer keeps for its backward pass, and what an adapter holds beside its trained numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from deltaw.factors import Factors
from deltaw.sites import request_for

if TYPE_CHECKING:
    from deltaw.initialize import Request
    from deltaw.sites import Part, Plan, Site

__all__ = ["Kept", "frozen_values", "kept_by", "kept_in", "stored_values"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a trained layer keeps for its backward pass.

    Args:
        rank: numbers of the low-rank product, for each token; 0 for a layer trained in full.
        input: whether the layer's input is kept.
        recalled: whether it need not be, because the graph gives it back.
        outputs: further numbers for each token.
        copies: float32 numbers, however many tokens there are.
    """

    rank: int
    input: bool = True
    recalled: bool = False
    outputs: int = 0
    copies: int = 0

    def __add__(self, other: Kept) -> Kept:
        """Both together, as for two slices of one layer."""
        return Kept(
            rank=self.rank + other.rank,
            input=self.input or other.input,
            recalled=self.recalled and other.recalled,
            outputs=self.outputs + other.outputs,
            copies=self.copies + other.copies,
        )


def _kept(part: Part, request: Request) -> Kept:
    """What one update keeps, by what its variant does."""
    update, rank = part.update, part.rank * (2 if part.subtract else 1)
    multiplied = part.subtract or update.shared is not None
    input = "lora_A" not in update.frozen
    recalled = input and update.plain and not part.subtract and not part.rows
    return Kept(
        rank=rank,
        input=input,
        recalled=recalled,
        outputs=2 * part.out_features if update.reads else 0,
        copies=rank * (request.in_features + request.out_features) if multiplied else 0,
    )


def kept_by(plan: Plan) -> dict[str, Kept]:
    """Say what each site of a plan keeps.

    Args:
        plan: from ``deltaw.plan``.

    Returns:
        Path -> what it keeps; the other users of a shared weight are left out.
    """
    found: dict[str, Kept] = {}
    for site in plan.sites:
        parts = [_kept(part, request_for(site, part, plan.config.init, 0)) for part in site.parts]
        found[site.path] = functools.reduce(Kept.__add__, parts)
    return found


def kept_in(model: nn.Module, name: str) -> dict[str, Kept]:
    """Say what each module that wears an adapter keeps.

    Args:
        model: with its adapter.
        name: which adapter.

    Returns:
        Path -> what it keeps.
    """
    found: dict[str, Kept] = {}
    for path, module in model.named_modules():
        if isinstance(module, Factors):
            home = path.partition(".lora.")[0]
            if path.partition(".lora.")[2].partition(".")[0] == name:
                mine = _kept(module.part, module.request)
                found[home] = found[home] + mine if home in found else mine
    return found


def frozen_values(plan: Plan) -> int:
    """Count what an adapter holds beside its trained numbers: where it started, and matrices that stay random.

    Args:
        plan: from ``deltaw.plan``.

    Returns:
        Number of values, float32.
    """
    return sum(_frozen_of(plan, site) for site in plan.sites) + _shared_values(plan.sites)


def _frozen_of(plan: Plan, site: Site) -> int:
    """Values of one site that are not trained."""
    total = 0
    for part in site.parts:
        shapes = part.update.shapes(request_for(site, part, plan.config.init, 0))
        total += sum(math.prod(shape) for name, shape in shapes.items() if name in part.update.frozen)
    return total


def stored_values(plan: Plan) -> int:
    """Count what an adapter's file holds.

    Args:
        plan: from ``deltaw.plan``.

    Returns:
        Number of values: the trained ones, those that are not, and the updates of shared weights again for each
        other user. Slices count as they are trained; PEFT's layout pads them with zeros.
    """
    twins = sum(len(site.twins) * (site.parameters + _frozen_of(plan, site)) for site in plan.sites)
    return plan.parameters + frozen_values(plan) + twins


def _shared_values(sites: Sequence[Site]) -> int:
    """Matrices that all sites read, large enough for the largest."""
    if not sites or sites[0].parts[0].update.shared is None:
        return 0
    rank = sites[0].parts[0].rank
    return rank * (max(site.in_features for site in sites) + max(site.out_features for site in sites))
