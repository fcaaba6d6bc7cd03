"""Getting a layer's input back from what the autograd graph keeps anyway, instead of keeping it once more.

The backward of a low-rank term needs the layer's input x. A frozen model does not keep every such x, but mostly keeps
what x was made of: a norm keeps its input and its factor, ``silu(gate) * up`` keeps both operands, an attention kernel
keeps its output. ``Input`` looks at the operation that made x and notes that graph node instead of x; in the backward,
the node's saved tensors make x again by one or two elementwise operations. The node runs its own backward later than
the layer does, so what it saved is still there.

A recipe is followed only after it has been seen to give x back: the first time that a chain of operations occurs, its
result is compared with x. Whatever has no recipe is kept by reference, which costs nothing where siblings or the model
keep it too. So is everything under hooks on saved tensors, such as checkpointing's: they decide what is kept. Hooks
that only look say so by an attribute ``only_looks``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Input", "input_of"]

_DEPTH = 8
_TRUSTED: dict[tuple[Any, ...], bool] = {}
_HERE = threading.local()


class _Unknown(Exception):
    """No recipe makes this tensor."""


class _Recipe(NamedTuple):
    """How a graph node's output is made from what the node saved.

    Args:
        make: (node, operands) -> output.
        reads: names of the saved tensors that are operands.
        inputs: so many of them are the node's inputs; one that was not saved is made by its own node. With more inputs
            than names, the rest are always made.
    """

    make: Callable[..., Tensor]
    reads: tuple[str, ...] = ()
    inputs: int = 0


def _layer_norm(
    node: Any, x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    x = (x - mean) * factor
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _transposed(node: Any, x: Tensor) -> Tensor:
    # graph nodes hold negative axes as unsigned numbers
    first, second = (dim - 2**64 if dim >= 2**63 else dim for dim in (node._saved_dim0, node._saved_dim1))
    return x.transpose(first, second)


def _same(node: Any, x: Tensor) -> Tensor:
    return x


_SHAPED = _Recipe(lambda node, x: x.reshape(node._input_metadata[0].shape), inputs=1)
_RESULT = _Recipe(_same, ("result",))
_OUTPUT = _Recipe(_same, ("output",))
_RECIPES: dict[str, _Recipe] = {
    "MulBackward0": _Recipe(lambda node, left, right: left * right, ("self", "other"), inputs=2),
    "DivBackward0": _Recipe(lambda node, left, right: left / right, ("self", "other"), inputs=2),
    "SiluBackward0": _Recipe(lambda node, x: F.silu(x), ("self",)),
    "GeluBackward0": _Recipe(lambda node, x: F.gelu(x, approximate=node._saved_approximate), ("self",)),
    "ReluBackward0": _RESULT,
    "TanhBackward0": _RESULT,
    "SigmoidBackward0": _RESULT,
    "NativeLayerNormBackward0": _Recipe(_layer_norm, ("input", "result1", "result2", "weight", "bias")),
    "ToCopyBackward0": _Recipe(lambda node, x: x.to(node._input_metadata[0].dtype), inputs=1),
    "CloneBackward0": _Recipe(_same, inputs=1),
    "TransposeBackward0": _Recipe(_transposed, inputs=1),
    "ViewBackward0": _SHAPED,
    "UnsafeViewBackward0": _SHAPED,
    "ReshapeAliasBackward0": _SHAPED,
    "ScaledDotProductFlashAttentionForCpuBackward0": _OUTPUT,
    "ScaledDotProductFlashAttentionBackward0": _OUTPUT,
    "ScaledDotProductEfficientAttentionBackward0": _OUTPUT,
}


class _Plan(NamedTuple):
    """A recipe at one node: its operands are names of saved tensors, or plans."""

    node: Any
    recipe: _Recipe
    operands: tuple[Any, ...]
    key: tuple[Any, ...]

    def make(self) -> Tensor:
        """Follow it."""
        values = (o.make() if isinstance(o, _Plan) else getattr(self.node, f"_saved_{o}") for o in self.operands)
        return self.recipe.make(self.node, *values)


def _is_there(node: Any, name: str) -> bool:
    """Whether a node saved a tensor; refuses one that hooks have moved, or that sharding may empty."""
    raw = getattr(node, f"_raw_saved_{name}")
    if raw.unpack_hook is not None and not getattr(raw.unpack_hook, "only_looks", False):
        raise _Unknown
    saved = getattr(node, f"_saved_{name}")
    # a sharded parameter's storage is empty between one module's forward and its backward
    if saved is not None and saved.is_leaf and saved.dim() and _is_distributed():
        raise _Unknown
    return saved is not None


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _plan(node: Any, depth: int = 0) -> _Plan:
    recipe = None if node is None or depth > _DEPTH else _RECIPES.get(node.name())
    if recipe is None:
        raise _Unknown
    operands: list[Any] = []
    for place in range(max(recipe.inputs, len(recipe.reads))):
        name = recipe.reads[place] if place < len(recipe.reads) else None
        there = name is not None and _is_there(node, name)
        operands.append(name if there or place >= recipe.inputs else _plan(node.next_functions[place][0], depth + 1))
    kind = node._input_metadata[0]
    keys = (operand.key if isinstance(operand, _Plan) else operand for operand in operands)
    return _Plan(node, recipe, tuple(operands), (node.name(), kind.dtype, *keys))


@torch.no_grad()
def _gives(plan: _Plan, x: Tensor) -> bool:
    """Whether a plan gives x back; tried out the first time that its chain of operations occurs."""
    known = _TRUSTED.get(plan.key)
    if known is None:
        made = plan.make()
        known = (made.shape, made.dtype, made.device) == (x.shape, x.dtype, x.device)
        # a norm's kernel may round once where its recipe rounds twice
        bound = 8 * torch.finfo(x.dtype).eps * x.abs().amax()
        _TRUSTED[plan.key] = known = known and bool((made - x).abs().amax() <= bound)
    return known


def _find(x: Tensor) -> _Plan | None:
    """A plan that gives x back, if there is one."""
    if x.grad_fn is None or not x.numel():
        return None
    try:
        plan = _plan(x.grad_fn)
        return plan if _gives(plan, x) else None
    except (_Unknown, AttributeError, TypeError, RuntimeError):
        return None


class Input:
    """The input of one layer, or of several that are called on it one after another.

    Args:
        x: the input, any shape, floating.
        watched: hooks decide what is kept.

    Attributes:
        plan: how it is made again, or None where x itself has to be kept.
    """

    def __init__(self, x: Tensor, watched: bool) -> None:
        self.plan = None if watched else _find(x)
        self.watched = watched
        self._waiting = 0
        self._made: Tensor | None = None

    def share(self) -> Input:
        """Count one more layer whose backward will ask for it.

        Returns:
            Itself.
        """
        self._waiting += 1
        return self

    def get(self) -> Tensor:
        """The input, in a backward; it is made once for all layers that share it.

        Returns:
            x, without a graph.
        """
        assert self.plan is not None
        if self._made is None:
            with torch.no_grad():
                self._made = self.plan.make().detach()
        x = self._made
        self._waiting -= 1
        if self._waiting <= 0:
            self._made = None
        return x


def _watched() -> bool:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and not getattr(hooks[0], "only_looks", False)


def input_of(x: Tensor) -> Input:
    """What a layer's backward will get its input from; layers that follow each other on one tensor share it.

    Args:
        x: input of a layer, any shape, floating.

    Returns:
        Its record.

    Example:
        >>> gate, up = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
        >>> x = F.silu(gate) * up
        >>> torch.equal(input_of(x).get(), x), input_of(gate).plan
        (True, None)
    """
    watched = _watched()
    last: tuple[Any, ...] | None = getattr(_HERE, "last", None)
    known: Input | None = last[2]() if last is not None and last[0]() is x and last[1] == x._version else None
    if known is None or known.watched != watched:
        known = Input(x, watched)
        # weakly, so that nothing of a graph outlives it
        _HERE.last = (weakref.ref(x), x._version, weakref.ref(known))
    return known.share()
