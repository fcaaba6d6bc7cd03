"""Linear algebra on products B A that are never formed: everything costs R^2 (O + K), nothing costs O K.

Shape legend: O output features, K columns of the weight's matrix, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["balanced", "distance", "norm", "relation", "signed", "singular_values", "summed", "svd"]

Pair = tuple[Tensor, Tensor]


def _support(lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Columns of A and rows of B that are not all zero; None where all are needed.

    Rows of B that are zero (other slices of a fused projection, other groups of a convolution) stay exactly zero in
    every result, which an orthogonal factorization of the whole would not promise.
    """
    columns, rows = lora_A.any(0), lora_B.any(1)
    return (None if bool(columns.all()) else columns), (None if bool(rows.all()) else rows)


def signed(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Fix the sign of each singular pair: the largest entry of V is positive.

    Args:
        U: shape (O, k).
        V: shape (K, k).

    Returns:
        The same pairs, whatever signs the decomposition chose.

    Example:
        >>> signed(torch.tensor([[1.0]]), torch.tensor([[-2.0], [1.0]]))[1].flatten().tolist()
        [2.0, -1.0]
    """
    index = V.abs().argmax(0, keepdim=True)
    signs = torch.where(V.gather(0, index) < 0, -1.0, 1.0).to(V.dtype)
    return U * signs, V * signs


def _spread(vectors: Tensor, support: Tensor | None) -> Tensor:
    """Put rows back where they were taken from, zeros elsewhere."""
    if support is None:
        return vectors
    full = vectors.new_zeros(support.shape[0], vectors.shape[1])
    full[support] = vectors
    return full


def svd(lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of B A by QR of both factors and the SVD of the small core.

    B = Q_B R_B and A^T = Q_A R_A give B A = Q_B (R_B R_A^T) Q_A^T, and the core is at most (R, R). The sign of each
    pair is fixed by its largest entry of V, so that the result does not depend on the library's choice.

    Args:
        lora_A: shape (R, K), float64 or float32.
        lora_B: shape (O, R).

    Returns:
        U of shape (O, k), values (k,) descending, V of shape (K, k), with k = min(R, O, K), or less where rows or
        columns are zero (then at least 1); B A = U diag(values) V^T.

    Source:
        Golub and Van Loan, Matrix Computations, 4th ed., section 5.4.

    Example:
        >>> U, values, V = svd(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0], [0.0]]))
        >>> values.tolist(), V.flatten().tolist()
        ([10.0], [0.6000000238418579, 0.800000011920929])
    """
    columns, rows = _support(lora_A, lora_B)
    inner_A = lora_A if columns is None else lora_A[:, columns]
    inner_B = lora_B if rows is None else lora_B[rows]
    if inner_A.numel() == 0 or inner_B.numel() == 0:
        U, V = lora_B.new_zeros(lora_B.shape[0], 1), lora_A.new_zeros(lora_A.shape[1], 1)
        return U, lora_A.new_zeros(1), V
    Q_B, R_B = torch.linalg.qr(inner_B)
    Q_A, R_A = torch.linalg.qr(inner_A.t())
    left, values, right = torch.linalg.svd(R_B @ R_A.t(), full_matrices=False)
    U, V = Q_B @ left, Q_A @ right.t()
    U, V = signed(U, V)
    return _spread(U, rows), values, _spread(V, columns)


def singular_values(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """Singular values of B A.

    Args:
        lora_A: shape (R, K), float64 or float32.
        lora_B: shape (O, R).

    Returns:
        Shape (min(R, O, K),), descending.

    Example:
        >>> singular_values(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0], [0.0]])).tolist()
        [10.0]
    """
    core = torch.linalg.qr(lora_B, mode="r").R @ torch.linalg.qr(lora_A.t(), mode="r").R.t()
    values: Tensor = torch.linalg.svdvals(core)
    return values


def norm(lora_A: Tensor, lora_B: Tensor) -> float:
    """Frobenius norm of B A, accurate even where the product is much smaller than its factors.

    Args:
        lora_A: shape (R, K).
        lora_B: shape (O, R).

    Returns:
        The norm.
    """
    core = torch.linalg.qr(lora_B, mode="r").R @ torch.linalg.qr(lora_A.t(), mode="r").R.t()
    return float(core.norm())


def relation(one: Pair, other: Pair) -> tuple[float, float, float]:
    """Frobenius inner product <B A, B' A'> and the norms of the two, on the cores of a common basis.

    Args:
        one: A (R, K) and B (O, R).
        other: A' (R', K) and B' (O, R').

    Returns:
        The inner product, ||B A|| and ||B' A'||.

    Example:
        >>> eye = torch.eye(2)
        >>> inner, *norms = relation((eye, 2 * eye), (eye, 3 * eye))
        >>> round(inner, 4), [round(norm, 4) for norm in norms]
        (12.0, [2.8284, 4.2426])
    """
    rank = one[0].shape[0]
    R_A = torch.linalg.qr(torch.cat([one[0], other[0]]).t(), mode="r").R
    R_B = torch.linalg.qr(torch.cat([one[1], other[1]], 1), mode="r").R
    first, second = R_B[:, :rank] @ R_A[:, :rank].t(), R_B[:, rank:] @ R_A[:, rank:].t()
    return float((first * second).sum()), float(first.norm()), float(second.norm())


def summed(terms: Sequence[tuple[Pair, float]]) -> Pair:
    """The exact sum of c_i B_i A_i as one product; the coefficients go into B.

    Args:
        terms: ((A, B), coefficient), of one K and one O.

    Returns:
        A of shape (sum of ranks, K) and B of shape (O, sum of ranks).
    """
    lora_A = torch.cat([pair[0] for pair, _ in terms])
    return lora_A, torch.cat([pair[1] * coefficient for pair, coefficient in terms], 1)


def distance(one: Sequence[tuple[Pair, float]], other: Sequence[tuple[Pair, float]]) -> float:
    """Frobenius norm of the difference of two sums of products.

    Args:
        one: terms ((A, B), coefficient).
        other: likewise.

    Returns:
        The norm.
    """
    return norm(*summed([*one, *((pair, -coefficient) for pair, coefficient in other)]))


def balanced(U: Tensor, values: Tensor, V: Tensor, rank: int) -> Pair:
    """The best product of a rank, with the singular values split evenly between the factors.

    Args:
        U: shape (O, k).
        values: shape (k,), descending.
        V: shape (K, k).
        rank: how many directions to keep; more than k are filled with zeros.

    Returns:
        A of shape (rank, K) and B of shape (O, rank), with A A^T = B^T B diagonal.

    Source:
        Eckart and Young 1936, Psychometrika 1(3): truncation is the nearest matrix of that rank.
    """
    kept = min(rank, values.shape[0])
    root = values[:kept].sqrt()
    lora_A, lora_B = root.unsqueeze(1) * V[:, :kept].t(), U[:, :kept] * root
    if kept < rank:
        lora_A = torch.cat([lora_A, lora_A.new_zeros(rank - kept, V.shape[0])])
        lora_B = torch.cat([lora_B, lora_B.new_zeros(U.shape[0], rank - kept)], 1)
    return lora_A, lora_B
