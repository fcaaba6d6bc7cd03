"""The LoRA step: a linear site's forward and backward as one autograd function.

Forward, with x (N, I), W (O, I) and b (O) frozen, and m a dropout mask of zeros and ones that its seed draws again::

    h = (m * x) A^T                     (N, R)
    y = x W^T + b + s h B^T             the sum and the factor s are part of the second product

Backward, for g = dy (N, O)::

    u  = s g B                          (N, R)
    dA = u^T (m * x)                    dB = s g^T h
    dx = g W + m * (u A)                again one sum less without a mask

With many rows in fp32, x (W + s B A)^T costs less than the two products and stands for them in the forward; h is then
made in the backward. No gradient of W or b is formed. Kept for the backward: W and the factors by reference; h, which
is R / I of the input's bytes and a seventh of the term's arithmetic to make again; and x, where A is trained and x
cannot be made again from what the graph keeps (see ``recall``). Everything is computed in the activation's dtype;
gradients of the factors come back in theirs. Thin products are written so that the
rank is the first axis of a result or the last of an operand, which costs up to ten times less than the other way round.
A second derivative is refused by name by torch.

Where the base's own product is not a plain one (a quantized layer, a trained weight, autocast), its output stands for
x W^T + b, and autograd adds what the two products send back to x.

Source:
    Hu et al. 2021, arXiv:2106.09685, eq. 3; the gradients are its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.functional import kept_factor, mask_blocks
from deltaw.recall import input_of

__all__ = ["Frozen", "Mask", "can_fuse", "lora_step"]


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


class Frozen(NamedTuple):
    """The base's product.

    Args:
        weight: shape (O, I), without gradient.
        bias: shape (O), without gradient; None for none.
    """

    weight: Tensor
    bias: Tensor | None


class _Call(NamedTuple):
    """What a step is told besides tensors."""

    scaling: float
    mask: Mask | None
    fresh: bool

    @property
    def factor(self) -> float:
        """On the term, the factor of kept entries in it."""
        return self.scaling if self.mask is None else self.scaling * kept_factor(self.mask.probability)

    def masks(self, shape: torch.Size, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The mask of an input's rows, block by block."""
        assert self.mask is not None
        return mask_blocks(shape, self.mask.probability, self.mask.seed, like.dtype, like.device)


def can_fuse(out: Tensor, x: Tensor) -> bool:
    """Whether the step applies: one dtype, or autocast's; neither a compiler nor a function transform at work.

    Args:
        out: the base's output, or its weight.
        x: its input.

    Returns:
        True if ``lora_step`` may be called.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return out.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def lora_step(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, mask: Mask | None, base: Tensor | Frozen,
    fresh: bool = False,
) -> Tensor:  # fmt: skip
    """base + scaling * (mask * x) A^T B^T.

    Args:
        x: input, shape (..., I).
        lora_A: shape (R, I).
        lora_B: shape (O, R).
        scaling: factor on the term.
        mask: dropout on the term's input, or None.
        base: the base's output, shape (..., O), or its frozen product, which is then done here.
        fresh: nobody else holds the output ``base``, so that the term may be added in place.

    Returns:
        Tensor of shape (..., O); ``base`` itself where it is fresh.

    Example:
        >>> lora_step(torch.ones(1, 3), torch.ones(1, 3), torch.ones(2, 1), 0.5, None, torch.ones(1, 2)).tolist()
        [[2.5, 2.5]]
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return lora_step(x, lora_A, lora_B, scaling, mask, base, fresh)
    out, weight, bias = (None, *base) if isinstance(base, Frozen) else (base, None, None)
    call = _Call(scaling, mask, out is None or (fresh and not out._is_view() and out.is_contiguous()))
    if not torch.is_grad_enabled():
        return _value(x, lora_A, lora_B, out, weight, bias, call)[0]
    result: Tensor = _Step.apply(x, lora_A, lora_B, out, weight, bias, call)  # type: ignore[no-untyped-call]
    return result


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An input as rows, in the dtype to compute in."""
    return _cast(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]), dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # asking first takes a tenth of the time of a cast that does nothing, which counts where one token is generated
    return x if x.dtype == dtype else x.to(dtype)


def _thin(lora_B: Tensor, dtype: torch.dtype) -> Tensor:
    """B^T, shape (R, O), laid out so that products with it are fast."""
    return lora_B.t().to(dtype).contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b. No view: what leaves an autograd function must not be one, or nobody could change it in place."""
    out = F.linear(x, weight, bias)
    return torch.ops.aten._unsafe_view.default(out, out.shape) if out._is_view() else out


def _sum_first(x: Tensor, weight: Tensor, lora_A: Tensor) -> bool:
    """Whether x (W + s B A)^T costs less than the term by itself, and rounds no worse: with many rows, in fp32.

    Forming the update takes O I R products, the term N R (I + O); thin products run about half as fast.
    """
    wide, inner = weight.shape
    exact = lora_A.dtype == x.dtype and x.dtype in (torch.float32, torch.float64)
    return x.numel() * (inner + wide) > 2 * inner * inner * wide and exact


def _updated(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """W + s B A in the layout of W, so that without an update the product with it has the base's own bits."""
    if weight.is_contiguous():
        return torch.addmm(weight, lora_B, lora_A, alpha=scaling)
    return torch.addmm(weight.t(), lora_A.t(), lora_B.t(), alpha=scaling).t()


def _value(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, out: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    call: _Call,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The sum, and the input in rank space unless the update was added to the weight."""
    if out is None:
        assert weight is not None
        if call.mask is None and _sum_first(x, weight, lora_A):
            return _product(x, _updated(weight, lora_A, lora_B, call.scaling), bias), None
        out = _product(x, weight, bias)
    h = _down(x, _cast(lora_A, out.dtype), call, out)
    rows, B = _rows(out, out.dtype), _cast(lora_B, out.dtype).t()
    if call.fresh:
        rows.addmm_(h, B, alpha=call.factor)
        return out, h
    y = torch.addmm(rows, h, B, alpha=call.factor)
    # as F.linear itself does: no view, which hooks of FSDP2 would trip over
    return (y if out.dim() == 2 else torch.ops.aten._unsafe_view.default(y, out.shape)), h


def _down(x: Tensor, lora_A: Tensor, call: _Call, like: Tensor) -> Tensor:
    """(mask * x) A^T."""
    rows = _rows(x, like.dtype)
    if call.mask is None:
        return F.linear(rows, lora_A)
    h = rows.new_empty(len(rows), len(lora_A))
    for at, mask in call.masks(x.shape, rows):
        torch.mm(mask.mul_(rows[at]), lora_A.t(), out=h[at])
    return h


class _Step(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor, out: Tensor | None, weight: Tensor | None,
        bias: Tensor | None, call: _Call,
    ) -> Tensor:  # fmt: skip
        if out is not None and call.fresh:
            ctx.mark_dirty(out)
        _, trains_A, trains_B = ctx.needs_input_grad[:3]
        y, h = _value(x, lora_A, lora_B, out, weight, bias, call)
        ctx.call, ctx.x_dtype, ctx.x_shape = call, x.dtype, x.shape
        # without a gradient for A the layer's input is not needed again, once it is in rank space
        ctx.input = input_of(x) if trains_A else None
        if ctx.input is None and h is None:
            h = F.linear(_rows(x, y.dtype), lora_A)
        kept = x if ctx.input is not None and ctx.input.plan is None else None
        ctx.save_for_backward(kept, h if trains_B else None, lora_A, lora_B, weight)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, h, lora_A, lora_B, weight = ctx.saved_tensors
        wants_x, trains_A, trains_B = ctx.needs_input_grad[:3]
        call, g = ctx.call, dy.reshape(-1, dy.shape[-1])
        A, B = _cast(lora_A, g.dtype), _thin(lora_B, g.dtype)
        if call.mask is not None and call.mask.here is not None:
            call.mask.here.close()
        x = None if ctx.input is None else _rows(ctx.input.get() if kept is None else kept, g.dtype)
        u = F.linear(g, B).mul_(call.factor) if wants_x or trains_A else None
        dx = g @ weight if wants_x and weight is not None else None
        if call.mask is None:
            h = F.linear(x, A) if h is None and trains_B and x is not None else h
            dA = u.t() @ x if trains_A and u is not None and x is not None else None
            if wants_x and u is not None:
                dx = u @ A if dx is None else dx.addmm_(u, A)
        else:
            dx = g.new_zeros(len(g), A.shape[1]) if wants_x and dx is None else dx
            dA = _masked(x, u, A, dx, call.masks(ctx.x_shape, g))
        dB = (h.t() @ g).mul_(call.factor).t().to(lora_B.dtype) if trains_B and h is not None else None
        dx = None if dx is None else dx.view(ctx.x_shape).to(ctx.x_dtype)
        dA = None if dA is None else dA.to(lora_A.dtype)
        return dx, dA, dB, dy if ctx.needs_input_grad[3] else None, None, None, None


def _masked(
    x: Tensor | None, u: Tensor | None, lora_A: Tensor, dx: Tensor | None, masks: Iterator[tuple[slice, Tensor]]
) -> Tensor | None:
    """dA under dropout, and the term's part of dx added to it, in one walk over the mask."""
    if u is None:
        return None
    # blocks are summed in fp32 at least
    wide = torch.promote_types(lora_A.dtype, torch.float32)
    dA = None if x is None else torch.zeros_like(lora_A, dtype=wide)
    for at, mask in masks:
        if dx is not None:
            dx[at].addcmul_(u[at] @ lora_A, mask)
        if x is not None and dA is not None:
            dA += u[at].t() @ mask.mul_(x[at])
    return dA
