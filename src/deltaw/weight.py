"""Mechanism 2: a weight that others read themselves, as an object that knows how to be multiplied, indexed, transposed.

Fused losses, tied heads written as ``x @ table.T`` and the like never call the layer whose weight they use, so a LoRA
layer would be bypassed. A target that names the parameter, ``lm_head.weight``, makes the attribute read as a
``LoRAWeight`` while an adapter is active, whoever reads it and wherever. It stands for W + scaling * L R and never
forms that sum by itself; an operation it has no rule for raises by name, and ``dense()`` says when a copy is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.errors import StateError
from deltaw.functional import compute_dtype

__all__ = ["LoRAWeight", "Term"]


class Term(NamedTuple):
    """One low-rank part of a weight.

    Args:
        left: L, shape (rows, R).
        right: R, shape (R, columns).
        scaling: factor on the product.
    """

    left: Tensor
    right: Tensor
    scaling: float


class _NoRule(StateError, AttributeError):
    """An operation that this weight does not know; also what ``hasattr`` expects."""


def _no_rule(name: str) -> _NoRule:
    return _NoRule(
        "this operation has no rule for a weight with an adapter",
        where="LoRAWeight",
        got=name,
        expected="a product, a lookup, rows or columns of it, a transposition or a cast",
        hint="use weight.dense() for a copy with the update in it, or deltaw.merge(model) first.",
    )


class LoRAWeight:
    """W + the sum of scaling * L R, kept apart.

    Args:
        base: W, shape (rows, columns), frozen.
        terms: the low-rank parts.

    Example:
        >>> w = LoRAWeight(torch.eye(2), (Term(torch.ones(2, 1), torch.ones(1, 2), 0.5),))
        >>> (torch.ones(1, 2) @ w.t()).tolist(), w[:1].dense().tolist()
        ([[2.0, 2.0]], [[1.5, 0.5]])
    """

    __slots__ = ("base", "terms")
    _RULES: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    def __init__(self, base: Tensor, terms: tuple[Term, ...]) -> None:
        self.base, self.terms = base, terms

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Send what torch is asked to do with this weight to its rule."""
        rule = cls._RULES.get(func)
        if rule is None:
            raise _no_rule(getattr(func, "__name__", repr(func)))
        return rule(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """Refuse by name what a tensor has and this does not."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise _no_rule(name)

    def __repr__(self) -> str:
        """Sizes and ranks."""
        ranks = "+".join(str(term.right.shape[0]) for term in self.terms)
        return f"LoRAWeight({tuple(self.base.shape)}, {self.base.dtype}, rank {ranks})"

    shape = property(lambda self: self.base.shape)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)
    ndim = property(lambda self: 2)
    is_cuda = property(lambda self: self.base.is_cuda)
    is_nested = property(lambda self: False)
    T = property(lambda self: self.t())
    mT = property(lambda self: self.t())

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient reaches the factors."""
        return any(t.requires_grad for term in self.terms for t in term[:2])

    def size(self, dim: int | None = None) -> Any:
        """Sizes, as a tensor's."""
        return self.base.size() if dim is None else self.base.size(dim)

    def dim(self) -> int:
        """Number of axes: 2."""
        return 2

    def numel(self) -> int:
        """Number of values."""
        return self.base.numel()

    def is_floating_point(self) -> bool:
        """Whether the base is floating."""
        return self.base.is_floating_point()

    def dense(self) -> Tensor:
        """A copy with the update in it, added in at least fp32 and rounded once.

        Returns:
            Shape (rows, columns), dtype of the base; gradients reach the factors.
        """
        wide = compute_dtype(self.base.dtype)
        total = self.base.to(wide)
        for left, right, scaling in self.terms:
            total = total + (left.to(wide) @ right.to(wide)) * scaling
        return total.to(self.base.dtype)

    def t(self) -> LoRAWeight:
        """The transposed weight.

        Returns:
            A weight of shape (columns, rows).
        """
        return LoRAWeight(self.base.t(), tuple(Term(r.t(), l.t(), s) for l, r, s in self.terms))  # noqa: E741

    def transpose(self, dim0: int, dim1: int) -> LoRAWeight:
        """The transposed weight, or itself where both axes are one.

        Args:
            dim0: an axis.
            dim1: an axis.

        Returns:
            A weight.
        """
        return self if dim0 % 2 == dim1 % 2 else self.t()

    def __getitem__(self, index: Any) -> LoRAWeight:
        """Some rows, or some columns; both axes stay."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        if not all(isinstance(i, slice) or (isinstance(i, Tensor) and i.dim() == 1) for i in (rows, columns)):
            raise _no_rule(f"indexing with {index!r}")
        terms = tuple(Term(left[rows], right[:, columns], s) for left, right, s in self.terms)
        return LoRAWeight(self.base[rows][:, columns], terms)

    def to(self, *args: Any, **kwargs: Any) -> LoRAWeight:
        """Cast or move, as a tensor's ``to``.

        Args:
            *args: dtype, device or a tensor to be like.
            **kwargs: as a tensor's ``to``.

        Returns:
            A weight.
        """
        terms = tuple(Term(left.to(*args, **kwargs), right.to(*args, **kwargs), s) for left, right, s in self.terms)
        return LoRAWeight(self.base.to(*args, **kwargs), terms)

    def float(self) -> LoRAWeight:
        """Cast to fp32."""
        return self.to(torch.float32)

    def half(self) -> LoRAWeight:
        """Cast to fp16."""
        return self.to(torch.float16)

    def bfloat16(self) -> LoRAWeight:
        """Cast to bf16."""
        return self.to(torch.bfloat16)

    def contiguous(self) -> LoRAWeight:
        """Itself; its parts are laid out as they are."""
        return self

    def detach(self) -> LoRAWeight:
        """Without gradient.

        Returns:
            A weight.
        """
        return LoRAWeight(self.base.detach(), tuple(Term(r.detach(), c.detach(), s) for r, c, s in self.terms))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[LoRAWeight, ...]:
        """Pieces, as a tensor's ``chunk``.

        Args:
            chunks: how many.
            dim: along which axis.

        Returns:
            The pieces.
        """
        bounds = torch.arange(self.base.shape[dim]).chunk(chunks)
        slices = [slice(int(piece[0]), int(piece[-1]) + 1) for piece in bounds]
        return tuple(self[piece] if dim % 2 == 0 else self[:, piece] for piece in slices)

    def split(self, size: int | list[int], dim: int = 0) -> tuple[LoRAWeight, ...]:
        """Pieces, as a tensor's ``split``.

        Args:
            size: rows or columns of a piece, or of each piece.
            dim: along which axis.

        Returns:
            The pieces.
        """
        pieces: tuple[Tensor, ...] = torch.arange(self.base.shape[dim]).split(size)  # type: ignore[no-untyped-call]
        slices = [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece)]
        return tuple(self[piece] if dim % 2 == 0 else self[:, piece] for piece in slices)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.base)

    def __mul__(self, other: Any) -> Any:
        """Refused by name: a scaled weight is another weight."""
        raise _no_rule("a product with a number or elementwise")

    __rmul__ = __mul__

    def __matmul__(self, other: Tensor) -> Tensor:
        """W x + the terms' products, from the right."""
        return _matmul(self, other)

    def __rmatmul__(self, other: Tensor) -> Tensor:
        """x W + the terms' products."""
        return _matmul(other, self)


def _cast(term: Term, x: Tensor) -> tuple[Tensor, Tensor]:
    """Factors in the activation's dtype: they are small, it is not."""
    return term.left.to(x.dtype), term.right.to(x.dtype)


def _right(x: Tensor, weight: LoRAWeight) -> Tensor:
    """x W + scaling * (x L) R."""
    out = torch.matmul(x, weight.base)
    for term in weight.terms:
        left, right = _cast(term, x)
        out = out.add(torch.matmul(torch.matmul(x, left), right).to(out.dtype), alpha=term.scaling)
    return out


def _left(weight: LoRAWeight, x: Tensor) -> Tensor:
    """W x + scaling * L (R x)."""
    out = torch.matmul(weight.base, x)
    for term in weight.terms:
        left, right = _cast(term, x)
        out = out.add(torch.matmul(left, torch.matmul(right, x)).to(out.dtype), alpha=term.scaling)
    return out


def _matmul(a: Any, b: Any) -> Tensor:
    if isinstance(a, LoRAWeight) and isinstance(b, LoRAWeight):
        raise _no_rule("a product of two adapted weights")
    return _right(a, b) if isinstance(b, LoRAWeight) else _left(a, b)


def _linear(x: Tensor, weight: LoRAWeight, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias + scaling * (x R^T) L^T."""
    if not isinstance(weight, LoRAWeight):
        raise _no_rule("an adapted weight as an input or a bias")
    out = F.linear(x, weight.base, bias)
    for term in weight.terms:
        left, right = _cast(term, x)
        out = out.add(F.linear(F.linear(x, right), left).to(out.dtype), alpha=term.scaling)
    return out


def _embedding(ids: Tensor, weight: LoRAWeight, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """Rows of W + scaling * rows of L times R."""
    out = F.embedding(ids, weight.base, padding_idx, *args, **kwargs)
    for term in weight.terms:
        rows = F.embedding(ids, term.left, padding_idx)
        out = out.add(torch.matmul(rows.to(out.dtype), term.right.to(out.dtype)), alpha=term.scaling)
    return out


def _addmm(bias: Tensor, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _matmul(x, weight).mul(alpha).add(bias, alpha=beta)


_PRODUCTS: tuple[Any, ...] = (
    torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__,
)  # fmt: skip
_OTHERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.addmm: _addmm,
    torch.t: LoRAWeight.t,
    torch.transpose: LoRAWeight.transpose,
    torch.chunk: LoRAWeight.chunk,
    torch.split: LoRAWeight.split,
}
LoRAWeight._RULES.update(_OTHERS)
LoRAWeight._RULES.update(dict.fromkeys(_PRODUCTS, _matmul))
