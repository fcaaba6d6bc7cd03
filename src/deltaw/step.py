"""The LoRA step: the term of a linear site as one autograd function.

Forward, with x (N, I), out = x W^T + b of shape (N, O), and m a dropout mask that its seed draws again::

    h = (m * x) A^T                     (N, R), not kept
    y = out + s h B^T                   one matrix product with the sum and the factor in it

Backward, for g = dy (N, O)::

    u  = s g B                          (N, R)
    dA = u^T (m * x)                    dB = s g^T h, with h computed again
    dx = m * (u A)                      dout = g

Kept for the backward: x by reference, which siblings and the model keep anyway, and the factors. Where A is not
trained (LoRA-FA), h is kept instead of x. Everything is computed in the activation's dtype; gradients of the factors
come back in theirs. A second derivative is refused by name by torch.

Source:
    Hu et al. 2021, arXiv:2106.09685, eq. 3; the gradients are its derivatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.functional import drop, drop_mask

__all__ = ["Mask", "can_fuse", "lora_step"]


class Mask(NamedTuple):
    """A dropout mask, by what draws it.

    Args:
        probability: share of entries set to zero.
        seed: seed of the mask.
        here: what is told when the backward has been, or None.
    """

    probability: float
    seed: int
    here: Any


def can_fuse(out: Tensor, x: Tensor) -> bool:
    """Whether the step applies: one dtype, or autocast's; neither a compiler nor a function transform at work.

    Args:
        out: the base's output.
        x: its input.

    Returns:
        True if ``lora_step`` may be called.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return out.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def lora_step(
    out: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, mask: Mask | None, fresh: bool = False
) -> Tensor:
    """out + scaling * (mask * x) A^T B^T.

    Args:
        out: the base's output, shape (..., O).
        x: its input, shape (..., I).
        lora_A: shape (R, I).
        lora_B: shape (O, R).
        scaling: factor on the term.
        mask: dropout on the term's input, or None.
        fresh: nobody else holds ``out``, so that the term may be added in place.

    Returns:
        Tensor like ``out``; ``out`` itself where it is fresh.

    Example:
        >>> lora_step(torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 3), torch.ones(2, 1), 0.5, None).tolist()
        [[2.5, 2.5]]
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return lora_step(out, x, lora_A, lora_B, scaling, mask, fresh)
    fresh = fresh and not out._is_view() and out.is_contiguous()
    if not torch.is_grad_enabled():
        dropped = x if mask is None else drop(x, mask.probability, mask.seed)
        return _value(out, dropped, lora_A, lora_B, scaling, fresh)[0]
    result: Tensor = _Step.apply(out, x, lora_A, lora_B, scaling, mask, fresh)  # type: ignore[no-untyped-call]
    return result


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An input as rows, in the dtype to compute in."""
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _value(
    out: Tensor, dropped: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, fresh: bool
) -> tuple[Tensor, Tensor]:
    """The sum, and the input in rank space."""
    h = F.linear(_rows(dropped, out.dtype), lora_A.to(out.dtype))
    rows, B = out.reshape(-1, out.shape[-1]), lora_B.to(out.dtype).t()
    if fresh:
        rows.addmm_(h, B, alpha=scaling)
        return out, h
    y = torch.addmm(rows, h, B, alpha=scaling)
    # as F.linear itself does: no view, which hooks of FSDP2 would trip over
    return (y if out.dim() == 2 else torch.ops.aten._unsafe_view.default(y, out.shape)), h


class _Step(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        mask: Mask | None,
        fresh: bool,
    ) -> Tensor:
        if fresh:
            ctx.mark_dirty(out)
        dropped = x if mask is None else drop(x, mask.probability, mask.seed)
        y, h = _value(out, dropped, lora_A, lora_B, scaling, fresh)
        ctx.scaling, ctx.mask, ctx.x_dtype, ctx.x_shape = scaling, mask, x.dtype, x.shape
        ctx.trains_A = ctx.needs_input_grad[2]
        # without a gradient for A the layer's input is not needed again
        ctx.save_for_backward(x if ctx.trains_A else h, lora_A, lora_B)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, lora_A, lora_B = ctx.saved_tensors
        shape = torch.empty(ctx.x_shape, device=dy.device, dtype=torch.bool) if ctx.mask is not None else None
        mask, factor = (None, 1.0) if shape is None else drop_mask(shape, ctx.mask.probability, ctx.mask.seed)
        if ctx.mask is not None and ctx.mask.here is not None:
            ctx.mask.here.close()
        g = dy.reshape(-1, dy.shape[-1])
        A, B = lora_A.to(g.dtype), lora_B.to(g.dtype)
        rows = None
        if ctx.trains_A:
            rows = _rows(kept if mask is None else kept * mask * factor, g.dtype)
        dA = dB = dx = None
        if ctx.needs_input_grad[3]:
            h = kept if rows is None else F.linear(rows, A)
            dB = (g.t() @ h).mul_(ctx.scaling).to(lora_B.dtype)
        if ctx.needs_input_grad[1] or rows is not None:
            u = (g @ B).mul_(ctx.scaling)
            dA = None if rows is None else (u.t() @ rows).to(lora_A.dtype)
            if ctx.needs_input_grad[1]:
                dx = (u @ A).view(ctx.x_shape).to(ctx.x_dtype)
                dx = dx if mask is None else dx.mul_(mask).mul_(factor)
        return dy if ctx.needs_input_grad[0] else None, dx, dA, dB, None, None, None
