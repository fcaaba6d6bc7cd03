"""Initializations of A and B: pure functions from a request to two fp32 tensors on the CPU.

Each draws from its own generator, so the result depends on the seed and the module's path alone: not on the order of
modules, not on the device, and the global random state is left as it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["INITIALIZATIONS", "Request", "gaussian", "kaiming", "seed_for", "swapped"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an initialization is asked for.

    Args:
        in_features: I.
        out_features: O.
        rank: R.
        seed: seed of this site's generator.
    """

    in_features: int
    out_features: int
    rank: int
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh CPU generator of this request's seed.

        Returns:
            The generator.
        """
        return torch.Generator().manual_seed(self.seed)


def seed_for(seed: int, *names: str) -> int:
    """Derive a 63-bit seed for one place from the run's seed.

    Args:
        seed: the run's seed.
        *names: what identifies the place, such as adapter and module path.

    Returns:
        A seed that is stable across processes and Python versions.

    Example:
        >>> seed_for(0, "a") == seed_for(0, "a"), seed_for(0, "a") == seed_for(1, "a")
        (True, False)
    """
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def kaiming(request: Request) -> tuple[Tensor, Tensor]:
    """A uniform in +-1/sqrt(I), B zero: the reference implementation's choice.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        Kaiming-uniform with a = sqrt(5), as in loralib; its bound is 1/sqrt(fan_in).

    Example:
        >>> A, B = kaiming(Request(in_features=16, out_features=2, rank=4, seed=0))
        >>> bool(A.abs().max() <= 0.25), bool((B == 0).all())
        (True, True)
    """
    bound = 1 / math.sqrt(request.in_features)
    lora_A = torch.empty(request.rank, request.in_features).uniform_(-bound, bound, generator=request.generator())
    return lora_A, torch.zeros(request.out_features, request.rank)


def gaussian(request: Request) -> tuple[Tensor, Tensor]:
    """A normal with standard deviation 1/R, B zero: the paper's choice of distribution.

    The paper gives no standard deviation; 1/R is the field's convention.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        arXiv:2106.09685, section 4.1.

    Example:
        >>> gaussian(Request(in_features=3, out_features=2, rank=1, seed=0))[0].shape
        torch.Size([1, 3])
    """
    lora_A = torch.empty(request.rank, request.in_features)
    lora_A.normal_(0, 1 / request.rank, generator=request.generator())
    return lora_A, torch.zeros(request.out_features, request.rank)


def swapped(request: Request) -> tuple[Tensor, Tensor]:
    """A zero, B standard normal: for lookups, where a zero B would leave rare tokens without a start.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        The reference implementation's Embedding.

    Example:
        >>> A, B = swapped(Request(in_features=3, out_features=2, rank=1, seed=0))
        >>> bool((A == 0).all()), B.shape
        (True, torch.Size([2, 1]))
    """
    lora_B = torch.empty(request.out_features, request.rank).normal_(generator=request.generator())
    return torch.zeros(request.rank, request.in_features), lora_B


INITIALIZATIONS: dict[str, Callable[[Request], tuple[Tensor, Tensor]]] = {"kaiming": kaiming, "gaussian": gaussian}
