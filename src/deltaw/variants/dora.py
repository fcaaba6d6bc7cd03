"""DoRA: the updated weight keeps a trained magnitude for each output, apart from its direction.

W' = m / ||W + s B A|| * (W + s B A), norms over each output's row; the norm counts as a constant in the backward
(section 4.3). It is computed without forming B A::

    ||W + s B A||^2 = ||W||^2 + 2 s <W A^T, B> + s^2 <B (A A^T), B>        row by row

so its cost is that of one product of W with the R rows of A. The magnitude starts as the very norm that the forward
computes, and the output's first correction is exactly zero.

Source:
    Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.functional import compute_dtype, delta_weight
from deltaw.indexed import index_add
from deltaw.initialize import Request
from deltaw.variants.base import Base, Shape, Tensors, Variant, joined

__all__ = ["DORA", "row_norms"]

_CHUNK = 1 << 22


def row_norms(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, groups: int = 1) -> Tensor:
    """Norms of the rows of W + scaling * B A, from the factors.

    Args:
        weight: shape (O, K).
        lora_A: shape (R, K), or (R, K...) of a convolution.
        lora_B: shape (O, R / groups), or with trailing ones.
        scaling: factor on B A.
        groups: number of blocks.

    Returns:
        Shape (O), at least fp32, without gradient.

    Example:
        >>> row_norms(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0]]), 0.5)
        tensor([5.])
    """
    wide = compute_dtype(weight.dtype)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        A = lora_A.to(wide).flatten(1).reshape(groups, -1, weight.shape[1])
        B = lora_B.to(wide).flatten(1).reshape(groups, weight.shape[0] // groups, -1)
        gram = A @ A.transpose(1, 2)
        squares = []
        # a narrow base is widened piece by piece, so that no second copy of it ever stands in memory
        step = max(1, _CHUNK // max(1, weight.shape[1] * groups))
        blocks = weight.reshape(groups, -1, weight.shape[1])
        for start in range(0, blocks.shape[1], step):
            piece, own = blocks[:, start : start + step].to(wide), B[:, start : start + step]
            cross = ((piece @ A.transpose(1, 2)) * own).sum(-1)
            squares.append(piece.square().sum(-1) + 2 * scaling * cross + scaling**2 * ((own @ gram) * own).sum(-1))
        return torch.cat(squares, dim=1).reshape(-1).clamp_min(0).sqrt()


def _shapes(request: Request, found: dict[str, Shape]) -> dict[str, Shape]:
    return {**found, "magnitude": (request.out_features,)}


def _init(request: Request, init: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    pair = joined((found["lora_A"], found["lora_B"]), found)
    return {**found, "magnitude": row_norms(request.matrix(), *pair, request.scaling, request.groups)}


def _apply(out: Tensor, term: Tensor, scaling: float, tensors: Tensors, rows: Tensor | None, base: Base) -> Tensor:
    pair = joined((tensors["lora_A"], tensors["lora_B"]), tensors)
    norms = row_norms(base.matrix().to(pair[0].device), *pair, scaling, base.groups)
    factor = base.spread((tensors["magnitude"] / _safe(norms)).to(out.dtype))
    own = out if rows is None else out.index_select(-1, rows)
    bias = base.bias()
    linear = own if bias is None else own - base.spread(bias.to(out.dtype))
    change = (factor - 1) * linear + factor * (scaling * term.to(out.dtype))
    return out + change if rows is None else index_add(out, rows, change)


def _safe(norms: Tensor) -> Tensor:
    """A row of zeros has no direction: it is left alone instead of divided by zero."""
    return torch.where(norms > 0, norms, torch.ones_like(norms))


def _delta(tensors: Tensors, pair: tuple[Tensor, Tensor], scaling: float, base: Base) -> Tensor:
    weight = base.matrix()
    norms = row_norms(weight, *pair, scaling, base.groups)
    factor = (tensors["magnitude"].to(weight) / _safe(norms).to(weight))[:, None]
    return (factor - 1) * weight + factor * delta_weight(*pair, scaling, weight.dtype, base.groups)


DORA = Variant(name="dora", shapes=_shapes, init=_init, apply=_apply, delta=_delta, reads=True, linear=False)
