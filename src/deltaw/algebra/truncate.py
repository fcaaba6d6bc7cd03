"""The leading singular directions of one dense matrix: exact where it is small, randomized where it is large."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.algebra.factored import balanced, signed

__all__ = ["EXACT", "Truncated", "truncate"]

EXACT = 1024
"""Up to this smaller side a matrix is decomposed exactly, in float64."""
_OVERSAMPLING = 16
_ITERATIONS = 4
_FIRST_GUESS = 64
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """The nearest product of a rank that was found.

    Args:
        lora_A: shape (rank, K), fp32.
        lora_B: shape (O, rank), fp32.
        norm: Frobenius norm of the matrix.
        error: ||matrix - B A|| / ||matrix||, measured.
        method: how it was found.
    """

    lora_A: Tensor
    lora_B: Tensor
    norm: float
    error: float
    method: str


def truncate(matrix: Tensor, rank: int | None, energy: float | None, name: str, *, exact: int = EXACT) -> Truncated:
    """Cut a dense matrix to a rank, or to the least rank that keeps a share of its squared norm.

    Args:
        matrix: shape (O, K), not zero, any float dtype.
        rank: the rank; or
        energy: the share, in (0, 1].
        name: seeds the randomized method, so that equal input gives equal output.
        exact: largest smaller side that is decomposed exactly.

    Returns:
        The product and what it misses, measured on the matrix.

    Source:
        Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.

    Example:
        >>> found = truncate(torch.diag(torch.tensor([3.0, 4.0])), 1, None, "w")
        >>> found.lora_A.shape, round(found.error, 4)
        (torch.Size([1, 2]), 0.6)
    """
    small = min(matrix.shape)
    wide = matrix.to(torch.float64 if small <= exact else torch.float32)
    total = float(wide.double().square().sum().sqrt()) if small > exact else float(wide.norm())
    width = (rank or _FIRST_GUESS) + _OVERSAMPLING
    while True:
        whole = small <= exact or width * 4 >= small
        if whole:
            wide = wide.double()
            U, values, right = torch.linalg.svd(wide, full_matrices=False)
            V, method = right.t(), "exact, float64"
        else:
            U, values, V = _randomized(wide, width, name)
            method = f"randomized, float32, {width} samples, {_ITERATIONS} iterations"
        kept = rank if rank is not None else _needed(values, total, energy or 1.0)
        if whole or kept <= len(values):
            break
        width *= 2
    U, V = signed(U, V)
    kept = min(kept, small)
    lora_A, lora_B = (factor.float() for factor in balanced(U, values, V, kept))
    rest = wide - lora_B.to(wide.dtype) @ lora_A.to(wide.dtype)
    return Truncated(lora_A=lora_A, lora_B=lora_B, norm=total, error=float(rest.norm()) / total, method=method)


def _needed(values: Tensor, total: float, energy: float) -> int:
    """Directions that keep the share; one more than there are where all of them do not."""
    aim = energy * total**2 * (1 - _ROUNDING)
    return int((values.double().square().cumsum(0) < aim).sum()) + 1


def _randomized(matrix: Tensor, width: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Subspace iteration from a random start, with a QR after every product."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_ITERATIONS):
        other = torch.linalg.qr(matrix.t() @ basis).Q
        basis = torch.linalg.qr(matrix @ other).Q
    left, values, right = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    return basis @ left, values, right.t()
