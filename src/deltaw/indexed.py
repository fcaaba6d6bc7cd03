"""Adding to some of the output features without keeping what was added.

The gradient of a sum needs neither summand. PyTorch's ``index_add`` keeps its source nevertheless, to know its shape:
for q and v of a fused GPT-2 projection that was 7% of what a step kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["index_add"]


class _IndexAdd(torch.autograd.Function):
    """``out.index_add(-1, rows, term, alpha=scaling)`` under every transform of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(out: Tensor, rows: Tensor, term: Tensor, scaling: float) -> Tensor:
        return out.index_add(-1, rows, term, alpha=scaling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        ctx.scaling = inputs[3]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        own = grad if ctx.needs_input_grad[0] else None
        return own, None, grad.index_select(-1, rows) * ctx.scaling if ctx.needs_input_grad[2] else None, None

    @staticmethod
    def jvp(ctx: Any, out: Tensor, rows: None, term: Tensor, scaling: None) -> Tensor:
        (index,) = ctx.saved_tensors
        return out.index_add(-1, index, term, alpha=ctx.scaling)


def index_add(out: Tensor, rows: Tensor, term: Tensor, scaling: float = 1.0) -> Tensor:
    """The sum: out + scaling * term on some output features.

    Args:
        out: shape (..., O).
        rows: int64 indices of output features, none of them twice.
        term: shape (..., len(rows)), dtype of ``out``.
        scaling: factor on the term.

    Returns:
        Tensor like ``out``; for the backward it keeps the indices alone.

    Example:
        >>> index_add(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([[3.0]]), 0.5).tolist()
        [[0.0, 1.5]]
    """
    if torch.compiler.is_compiling():
        # the compiler sees what a backward reads, and does not trace a function with a jvp of its own
        return out.index_add(-1, rows, term, alpha=scaling)
    added: Tensor = _IndexAdd.apply(out, rows, term, scaling)  # type: ignore[no-untyped-call]
    return added
