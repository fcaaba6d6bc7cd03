"""Cross-entropy of a language model's head in chunks of tokens: for a matrix, and for any module that is a head.

The arithmetic and its derivation are in ``chunked.py``; here is its place in autograd. What is more than a matrix goes
through ``head_module.py``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.chunked import Job, Rules, chunk_tokens, walk, wide_dtype
from deltaw.errors import ConfigError, ModelError
from deltaw.head_module import by_module, plain_parts, refuse_second_derivative

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor, head: Tensor | nn.Module, targets: Tensor, *, bias: Tensor | None = None,
    weights: Tensor | None = None, label_smoothing: float = 0.0, logit_scale: float = 1.0,
    soft_cap: float | None = None, ignore_index: int | None = -100, reduction: str = "sum", chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of ``head(hidden)``, weighted by token, without the logits of all tokens in memory.

    The value and gradients of ``F.cross_entropy(head(hidden), targets)``, in chunks of tokens whose gradient is formed
    in the forward: memory is that of one chunk's logits and one gradient like ``hidden``. A frozen head gets no
    gradient and costs none. Tokens of weight zero are left out before the projection. Under autocast the products run
    in its dtype, as a linear layer's do. A compiled graph calls a plain head as one operation; any other module is a
    graph break, which says so. Adapter dropout in the head draws one mask for each chunk.

    Args:
        hidden: shape (K, H), any float dtype.
        head: the projection: a matrix, shape (V, H), dtype of ``hidden``; or the module that maps (K, H) to (K, V).
        targets: int64, shape (K,), each in 0 to V - 1 or ``ignore_index``.
        bias: shape (V,), of a head given as a matrix.
        weights: float, shape (K,), factor on each token's loss, without a gradient of its own; None for ones.
        label_smoothing: share of each target that is spread evenly over the vocabulary, 0 to 1.
        logit_scale: factor on the logits.
        soft_cap: c of c * tanh(logits / c), after the scale; None for none.
        ignore_index: targets of this value have no loss. None: all tokens count, and none of weight zero is looked
            for, whose number a GPU would have to wait for.
        reduction: ``sum``, or ``none`` for the weighted loss of each token.
        chunk: tokens at a time; None chooses by the size of the vocabulary.

    Returns:
        In nats, float32 (float64 for float64 input): a scalar, or shape (K,).

    Raises:
        ConfigError: for an option out of range.
        ModelError: if shapes or dtypes do not meet, or the head is sharded.
        StateError: for losses of single tokens with a gradient, where the head is no plain matrix; in the backward,
            where it is to be differentiated again.

    Source:
        See ``chunked.py``.

    Example:
        >>> h, W, t = torch.eye(2), torch.eye(2) * 4, torch.tensor([0, -100])
        >>> round(linear_cross_entropy(h, W, t).item(), 4)
        0.0181
    """
    rules = Rules(label_smoothing, logit_scale, soft_cap)
    _check_options(rules, reduction, chunk)
    found = plain_parts(head, bias)
    _check_tensors(hidden, found, targets, weights)
    if weights is None:
        weights = hidden.new_ones(len(targets), dtype=wide_dtype(hidden.dtype))
    if ignore_index is not None:
        weights = weights.masked_fill(targets == ignore_index, 0.0)
    job = Job(rules, chunk, ignore_index is not None, reduction == "none")
    if found is None:
        assert isinstance(head, nn.Module)
        return by_module(hidden, head, targets, weights, job)
    return _plain(hidden, *found, targets, weights, job)


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, job: Job) -> Tensor:
    """The short way, in autocast's dtype where it is on."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(low), weight.to(low)
        with torch.autocast(kind, enabled=False):
            return _plain(hidden, weight, bias, targets, weights, job)
    if not torch.is_grad_enabled():
        # autograd asks what requires a gradient, not whether anybody will take it
        hidden, weight, bias = (None if t is None else t.detach() for t in (hidden, weight, bias))  # type: ignore[assignment]
    if job.size is None:
        job = job._replace(size=chunk_tokens(len(weight)))
    result: Tensor = _Head.apply(hidden, weight, bias, targets, weights, job)  # type: ignore[no-untyped-call]
    return result


# The library's plain functions: the decorator for custom operations loads the compiler.
torch.library.define(
    "deltaw::head_walk",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor weights, float label_smoothing, "
    "float logit_scale, float? soft_cap, int size, bool skip, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("deltaw::head_walk", "CompositeExplicitAutograd")
def _opaque(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float,
    logit_scale: float, soft_cap: float | None, size: int, skip: bool, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """``walk`` as one operation, so that a compiler neither unrolls its chunks nor stops at its count of tokens."""
    rules = Rules(label_smoothing, logit_scale, soft_cap)
    found = walk(hidden, weight, bias, targets, weights, Job(rules, size, skip), needs)
    return tuple(hidden.new_empty(0) if tensor is None else tensor for tensor in found)


@torch.library.register_fake("deltaw::head_walk")  # type: ignore[untyped-decorator]
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float,
    logit_scale: float, soft_cap: float | None, size: int, skip: bool, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Shapes of what comes back."""
    losses = hidden.new_empty(len(hidden), dtype=wide_dtype(hidden.dtype))
    given = zip((hidden, weight, bias), needs, strict=True)
    return losses, *(torch.empty_like(t) if need and t is not None else hidden.new_empty(0) for t, need in given)


def _walk(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, job: Job,
          needs: Sequence[bool]) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The walk, or the operation that stands for it in a graph."""
    if not torch.compiler.is_compiling():
        return walk(hidden, weight, bias, targets, weights, job, needs)
    losses, *found = torch.ops.deltaw.head_walk(
        hidden, weight, bias, targets, weights, *job.rules, job.size, job.skip, list(needs)
    )
    return losses, *(tensor if need else None for tensor, need in zip(found, needs, strict=True))


class _Head(torch.autograd.Function):
    """See ``chunked.py``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, job: Job
    ) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        ctx.job, ctx.needs, ctx.late = job, needs, job.each and (needs[1] or needs[2])
        losses, *found = _walk(hidden, weight, bias, targets, weights, job, (False,) * 3 if ctx.late else needs)
        assert losses is not None
        if ctx.late:
            ctx.save_for_backward(hidden, weight, bias, targets, weights)
        else:
            ctx.save_for_backward(*found)
        return losses if job.each else losses.sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        if ctx.late:
            hidden, weight, bias, targets, weights = ctx.saved_tensors
            _, *found = _walk(hidden, weight, bias, targets, weights * factor, ctx.job, ctx.needs)
        else:
            factor = factor.unsqueeze(1) if ctx.job.each else factor
            found = [None if t is None else (t * factor).to(t.dtype) for t in ctx.saved_tensors]
        return *found, None, None, None


def _check_options(rules: Rules, reduction: str, chunk: int | None) -> None:
    """Refuse an option out of range, by its name."""
    smoothing, scale, cap = rules
    wrong: tuple[str, Any, str] | None = None
    if not 0.0 <= smoothing <= 1.0:
        wrong = "label_smoothing", smoothing, "a number from 0 to 1"
    elif not math.isfinite(scale):
        wrong = "logit_scale", scale, "a finite number"
    elif cap is not None and not 0.0 < cap < math.inf:
        wrong = "soft_cap", cap, "a finite number above 0, or None"
    elif reduction not in {"sum", "none"}:
        wrong = "reduction", reduction, "'sum' or 'none'"
    elif chunk is not None and chunk < 1:
        wrong = "chunk", chunk, "a number of tokens from 1 up, or None"
    if wrong is not None:
        raise ConfigError(
            "the loss cannot be computed with this option",
            where=wrong[0],
            got=repr(wrong[1]),
            expected=wrong[2],
            hint="for a mean, divide the sum by the sum of the weights" if wrong[0] == "reduction" else
            f"change {wrong[0]}",
        )  # fmt: skip


def _check_tensors(
    hidden: Tensor, found: tuple[Tensor, Tensor | None] | None, targets: Tensor, weights: Tensor | None
) -> None:
    """Refuse what does not fit together, or is no whole tensor."""
    sharded = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    given = {"hidden": hidden, "head": found[0] if found else None, "bias": found[1] if found else None}
    wrong: tuple[str, str, str] | None = None
    if any(isinstance(tensor, sharded) for tensor in given.values()):
        wrong = "head", "a DTensor, of which this process holds a part", "a whole tensor"
    elif hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        wrong = "targets", f"hidden {tuple(hidden.shape)}, targets {tuple(targets.shape)}", "shapes (K, H) and (K,)"
    elif weights is not None and (weights.shape != targets.shape or weights.requires_grad):
        trained = ", with a gradient" if weights.requires_grad else ""
        wrong = "weights", f"shape {tuple(weights.shape)}{trained}", f"shape {tuple(targets.shape)}, without a gradient"
    elif found is not None and (found[0].dim() != 2 or found[0].shape[1] != hidden.shape[1]):
        wrong = "head", f"shape {tuple(found[0].shape)}", f"(V, {hidden.shape[1]})"
    elif found is not None and found[1] is not None and found[1].shape != found[0].shape[:1]:
        wrong = "bias", f"shape {tuple(found[1].shape)}", f"({found[0].shape[0]},)"
    elif found is not None and found[0].dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
        wrong = "head", f"{found[0].dtype}, hidden {hidden.dtype}", "one dtype"
    if wrong is not None:
        hints = {
            "head": "flatten and cast what does not meet; of a DTensor, pass full_tensor()",
            "weights": "detach them; for their gradient, use reduction='none' and multiply"
            if weights is not None and weights.requires_grad
            else "give one weight for each token",
        }
        raise ModelError(
            "the loss cannot be computed from these tensors",
            where=wrong[0], got=wrong[1], expected=wrong[2],
            hint=hints.get(wrong[0], "flatten rows and columns to one axis of tokens"),
        )  # fmt: skip
