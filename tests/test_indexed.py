"""``index_add`` is torch's own, under every transform, and keeps nothing of what it adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap  # type: ignore[attr-defined]

from deltaw.indexed import index_add

ROWS = torch.tensor([4, 0, 3])


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    out, term = (torch.randn(2, 7, size, generator=draws, dtype=torch.float64) for size in (5, 3))
    return out.to(dtype).requires_grad_(), term.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_torchs_bits(dtype: torch.dtype) -> None:
    results = []
    for add in (index_add, lambda out, rows, term, scaling: out.index_add(-1, rows, term, alpha=scaling)):
        out, term = tensors(dtype)
        got = add(out, ROWS, term, 0.3)
        got.square().sum().backward()
        results.append((got.detach(), out.grad, term.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_first_and_second_derivatives() -> None:
    def act(out: Tensor, term: Tensor) -> Tensor:
        return index_add(out, ROWS, term, 0.3) ** 3

    assert torch.autograd.gradcheck(act, tensors(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(act, tensors())


def test_transforms_of_torch_func() -> None:
    out, term = (tensor.detach() for tensor in tensors())
    each = vmap(lambda one, other: index_add(one, ROWS, other, 0.3))(out, term)
    torch.testing.assert_close(each, index_add(out, ROWS, term, 0.3))
    _, tangent = jvp(lambda other: index_add(out, ROWS, other, 0.3), (term,), (term,))
    torch.testing.assert_close(tangent, index_add(torch.zeros_like(out), ROWS, term, 0.3))
    got = grad(lambda other: index_add(out, ROWS, other, 0.3).sum())(term)
    torch.testing.assert_close(got, torch.full_like(term, 0.3))


def test_only_the_indices_are_kept() -> None:
    out, term = tensors()
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        index_add(out, ROWS, term)
    assert [tuple(tensor.shape) for tensor in kept] == [(3,)]


def test_it_compiles_in_one_graph() -> None:
    fast = torch.compile(index_add, backend="aot_eager", fullgraph=True)
    out, term = tensors()
    fast(out, ROWS, term, 0.3).sum().backward()
    assert term.grad is not None
    torch.testing.assert_close(term.grad, torch.full_like(term, 0.3))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    pair = [*tensors()]
    pair[frozen] = pair[frozen].detach()
    index_add(pair[0], ROWS, pair[1]).sum().backward()
    assert pair[frozen].grad is None and pair[1 - frozen].grad is not None
