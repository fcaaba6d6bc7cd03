"""A head that is more than a matrix, chunk by chunk: its own forward, and its own graph used up before the next chunk.

For a head with an adapter, a trained copy of one, a quantized one, one with hooks: what it computes is not known here,
so it is called with gradients on, the loss's gradient with respect to its output is formed in place (``chunked.py``),
and ``torch.autograd.grad`` takes it on to the hidden states and to the head's trained parameters, summed over chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from deltaw.chunked import Job, chunk_tokens, chunks, loss_and_gradient, rows_with_weight, wide_dtype
from deltaw.errors import ConfigError, ModelError, StateError
from deltaw.worn import Twin

__all__ = ["by_module", "graph_leaves", "plain_parts", "refuse_second_derivative", "trained_by"]


def plain_parts(head: Tensor | nn.Module, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None] | None:
    """The matrix and bias that a head is, where it is nothing more.

    Args:
        head: a matrix, or a module.
        bias: of a head given as a matrix.

    Returns:
        (weight, bias); None for a module that must be called: one whose forward is not torch's own linear layer's,
        one with hooks, one whose weight is no ordinary tensor.

    Raises:
        ConfigError: for a bias beside a module.

    Example:
        >>> plain_parts(nn.Linear(2, 3)) is None, plain_parts(nn.Identity()) is None
        (False, True)
    """
    if isinstance(head, Tensor):
        return head, bias
    if bias is not None:
        raise ConfigError(
            "a head that is a module has its own bias",
            where="bias",
            got=f"a bias beside {type(head).__name__}",
            expected="a bias beside a matrix only",
            hint="pass the module's weight, or drop the bias",
        )
    if type(head).forward is not nn.Linear.forward or "forward" in head.__dict__:
        return None
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    weight: Any = head.weight
    own: Any = head.bias
    if any(hooks) or any(type(t) not in {Tensor, nn.Parameter} for t in (weight, own) if t is not None):
        return None
    return weight, own


def by_module(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, job: Job) -> Tensor:
    """Loss of a head that must be called.

    Args:
        hidden: shape (K, H).
        head: maps (C, H) to (C, V), token by token.
        targets: int64, shape (K,).
        weights: shape (K,).
        job: how.

    Returns:
        Weighted losses, shape (K,), or their sum.

    Raises:
        StateError: for losses of single tokens with a gradient.
    """
    trained = trained_by(head)
    if not torch.is_grad_enabled():
        hidden, trained = hidden.detach(), []
    if job.each and (hidden.requires_grad or trained):
        raise StateError(
            "losses of single tokens have no gradient where the head is no plain matrix",
            where="reduction='none'",
            got=f"a head of class {type(head).__name__}",
            expected="their sum, or torch.no_grad()",
            hint="give the factors as weights=, with reduction='sum'",
        )
    return (_apart if torch.compiler.is_compiling() else _apply)(hidden, head, targets, weights, job, trained)


def _apply(
    hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, job: Job, trained: list[nn.Parameter]
) -> Tensor:
    result: Tensor = _Module.apply(hidden, head, targets, weights, job, *trained)  # type: ignore[no-untyped-call]
    return result


# Walking a graph is no part of a graph. Torch's own decorator loads the compiler at once, this one when it is called.
_apart = _disable_dynamo(_apply)


def trained_by(head: nn.Module) -> list[nn.Parameter]:
    """What is trained when a head is: its own parameters, and those of an update it shares with a tied table.

    Args:
        head: any module.

    Returns:
        Each parameter with a gradient once.
    """
    homes = [head, *(module.primary[0] for module in head.modules() if isinstance(module, Twin))]
    found = {id(p): p for home in homes for p in home.parameters() if p.requires_grad}
    return list(found.values())


def graph_leaves(output: Tensor) -> list[Tensor]:
    """The leaf tensors that a gradient of ``output`` reaches.

    Args:
        output: a tensor with a graph, or without.

    Returns:
        Each leaf once.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> graph_leaves((w * 2).sum() + w.sum())[0] is w
        True
    """
    found, seen, stack = [], set(), [output.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return found


def _refuse_strangers(logits: Tensor, known: list[Tensor]) -> None:
    """A gradient that would be lost is an error."""
    strangers = [leaf for leaf in graph_leaves(logits) if not any(leaf is tensor for tensor in known)]
    if strangers:
        raise ModelError(
            "the head trains tensors that are not among its parameters",
            where="linear_cross_entropy",
            got=", ".join(str(tuple(leaf.shape)) for leaf in strangers),
            expected="every trained tensor in head.parameters()",
            hint="compute this model's loss from its full logits",
        )


def refuse_second_derivative() -> None:
    """Called in a backward: what was formed in the forward is a constant for autograd, its derivative a wrong zero.

    Raises:
        StateError: under ``create_graph=True``; a compiled graph refuses it by itself.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise StateError(
            "the loss in chunks has no second derivative",
            where="linear_cross_entropy",
            got="a backward with create_graph=True",
            expected="a backward that is not differentiated again",
            hint="use F.cross_entropy on the full logits there",
        )


def _chunk(
    head: nn.Module, h: Tensor, targets: Tensor, weights: Tensor, job: Job, trained: tuple[nn.Parameter, ...],
    wanted: bool,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """Weighted losses of one chunk, and the gradients of h and of what is trained; its logits are gone after it."""
    logits = head(h)
    _refuse_strangers(logits, [h, *trained])
    z = logits.detach().to(weights.dtype, copy=True)
    losses = loss_and_gradient(z, targets, weights, job.rules, wanted)
    if not wanted:
        return losses, (None,)
    inputs = [*([h] if h.requires_grad else []), *trained]
    found = torch.autograd.grad(logits, inputs, z.to(logits.dtype), allow_unused=True)
    return losses, found if h.requires_grad else (None, *found)


class _Module(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, job: Job, *trained: nn.Parameter
    ) -> Tensor:
        wide = wide_dtype(hidden.dtype)
        weights = weights.to(wide)
        rows = rows_with_weight(weights) if job.skip else None
        losses = weights.new_zeros(len(hidden))
        wanted = any(ctx.needs_input_grad)
        dh = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        # None stays None: an adapter that is not active has no gradient, rather than one of zeros
        sums: list[Tensor | None] = [None] * len(trained)
        size = job.size or chunk_tokens(getattr(head, "out_features", None))
        # no outer hook, such as a checkpoint's, may take hold of a graph that is used up here
        with torch.set_grad_enabled(wanted), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            for place in chunks(len(hidden), size, rows):
                h = hidden[place].detach().requires_grad_(dh is not None and wanted)
                losses[place], found = _chunk(head, h, targets[place], weights[place], job, trained, wanted)
                if dh is not None and found[0] is not None:
                    dh[place] = found[0]
                for index, part in enumerate(found[1:]):
                    total = sums[index]
                    if part is not None:
                        sums[index] = part.to(wide, copy=True) if total is None else total.add_(part)
        ctx.save_for_backward(dh, *(t if t is None else t.to(p.dtype) for t, p in zip(sums, trained, strict=True)))
        return losses if job.each else losses.sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        dh, *sums = (None if t is None else (t * factor).to(t.dtype) for t in ctx.saved_tensors)
        return dh, None, None, None, None, *sums
