"""The LoRA step against the composed form: values, gradients, what is kept, and where it steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

import builders
import deltaw as dw
from deltaw import step
from deltaw.functional import drop
from deltaw.step import Frozen, Mask, can_fuse, lora_step

G = torch.Generator().manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64).to(dtype)


def composed(out: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, mask: Mask | None) -> Tensor:
    x = x if mask is None else drop(x, mask.probability, mask.seed)
    return out + scaling * F.linear(F.linear(x, A), B)


MASKS = [None, Mask(0.4, 7, None)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), ()])
def test_values_and_gradients(shape: tuple[int, ...], mask: Mask | None) -> None:
    tensors = [draw(*shape, 6), draw(*shape, 8), draw(3, 8), draw(6, 3)]
    mine, other = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    got, want = lora_step(*mine[1:], 0.7, mask, mine[0]), composed(*other, 0.7, mask)
    torch.testing.assert_close(got, want)
    dy = draw(*shape, 6)
    got.backward(dy)
    want.backward(dy)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert not got._is_view()


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck(mask: Mask | None) -> None:
    tensors = [
        draw(4, 3).requires_grad_(),
        draw(4, 5).requires_grad_(),
        draw(2, 5).requires_grad_(),
        draw(3, 2).requires_grad_(),
    ]
    assert gradcheck(lambda *t: lora_step(*t[1:], -1.3, mask, t[0]), tensors)


@pytest.mark.parametrize("frozen", [(), (2,), (3,), (1,), (1, 2), (0, 1)])
def test_only_what_is_asked_for_gets_a_gradient(frozen: tuple[int, ...]) -> None:
    tensors = [draw(4, 3), draw(4, 5), draw(2, 5), draw(3, 2)]
    mine, other = ([t.clone().requires_grad_(i not in frozen) for i, t in enumerate(tensors)] for _ in range(2))
    lora_step(*mine[1:], 0.7, None, mine[0]).sum().backward()
    composed(*other, 0.7, None).sum().backward()
    for i, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert (a.grad is None) == (i in frozen)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), ()])
def test_the_bases_product_done_within(shape: tuple[int, ...], bias: bool, mask: Mask | None) -> None:
    frozen = Frozen(draw(6, 8), draw(6) if bias else None)
    tensors = [draw(*shape, 8), draw(3, 8), draw(6, 3)]
    mine, other = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    got = lora_step(*mine, 0.7, mask, frozen)
    want = composed(F.linear(other[0], *frozen), *other, 0.7, mask)
    torch.testing.assert_close(got, want)
    dy = draw(*shape, 6)
    got.backward(dy)
    want.backward(dy)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert not got._is_view()
    with torch.no_grad():
        torch.testing.assert_close(lora_step(*mine, 0.7, mask, frozen), want)


@pytest.mark.parametrize("mask", MASKS)
def test_gradcheck_with_the_bases_product(mask: Mask | None) -> None:
    frozen = Frozen(draw(3, 5), draw(3))
    tensors = [draw(4, 5).requires_grad_(), draw(2, 5).requires_grad_(), draw(3, 2).requires_grad_()]
    assert gradcheck(lambda *t: lora_step(*t, -1.3, mask, frozen), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", ["Linear", "Linear without bias", "Conv1D"])
@pytest.mark.parametrize("rows", [7, 100])
def test_the_bases_product_has_the_bases_bits(rows: int, layer: str, dtype: torch.dtype) -> None:
    """As long as B is zero, and so is its gradient to the input."""
    made = plain_layer(layer).to(dtype)
    model = nn.Sequential(made)
    x = draw(2, rows, 24, dtype=torch.float32).to(dtype).requires_grad_()
    before = model(x)
    (dx,) = torch.autograd.grad(before, x, torch.ones_like(before))
    builders.attach(model, targets="0", rank=4)
    after = model(x)
    assert torch.equal(before, after)
    (own,) = torch.autograd.grad(after, x, torch.ones_like(after))
    assert torch.equal(dx, own)


def plain_layer(name: str) -> nn.Module:
    if name == "Conv1D":
        return pytest.importorskip("transformers.pytorch_utils").Conv1D(16, 24)
    return nn.Linear(24, 16, bias="without" not in name)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [4, 400])
def test_the_cheaper_way_is_taken_and_gives_the_same(rows: int, turned: bool) -> None:
    """With many rows the update is added to the weight, in the weight's own layout."""
    frozen = Frozen(draw(8, 6).t() if turned else draw(6, 8), draw(6))
    tensors = [draw(rows, 8), draw(3, 8), draw(6, 3)]
    mine, other = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    assert step._sum_first(mine[0], frozen.weight, mine[1]) == (rows == 400)
    assert not step._sum_first(mine[0].bfloat16(), frozen.weight, mine[1])
    got, want = lora_step(*mine, 0.7, None, frozen), composed(F.linear(other[0], *frozen), *other, 0.7, None)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    updated = step._updated(frozen.weight, *tensors[1:], 0.7)
    assert updated.stride() == frozen.weight.stride()


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_trained_base_gets_its_gradient(trained: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    parameter = getattr(model[0], trained).requires_grad_()
    x = draw(5, 8, dtype=torch.float32)
    model(x).square().sum().backward()
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_closer_than_the_composed_form(dtype: torch.dtype) -> None:
    """One rounding of the sum instead of one of the term and one of the sum."""
    out, x, A, B = draw(64, 32), draw(64, 48), draw(8, 48), draw(32, 8)
    out, x = out.to(dtype), x.to(dtype)
    exact = composed(out.double(), x.double(), A.to(dtype).double(), B.to(dtype).double(), 0.7, None)
    fused = lora_step(x, A.float(), B.float(), 0.7, None, out)
    plain = composed(out, x, A.to(dtype), B.to(dtype), 0.7, None)
    assert fused.dtype == dtype
    assert (fused.double() - exact).abs().mean() <= 1.02 * (plain.double() - exact).abs().mean()


def kept(act: Any) -> int:
    """Bytes of distinct storages saved for the backward."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        act()
    return sum(seen.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_siblings_keep_their_input_once_and_rank_space(dtype: torch.dtype, dropout: float) -> None:
    """x, the factors, and the products with A; no copy in another dtype, no mask."""
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in "qkv"}).to(dtype).train()
    builders.attach(model, targets=["q", "k", "v"], rank=4, dropout=dropout)
    x = torch.randn(128, 64, generator=G).to(dtype).requires_grad_()
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.dim() > 1)
    held = kept(lambda: [model[name](x) for name in "qkv"])
    products = 3 * len(x) * 4 * x.element_size()
    assert held <= x.numel() * x.element_size() + weights + products


def test_lora_fa_does_not_keep_the_input() -> None:
    model = nn.ModuleDict({"q": nn.Linear(64, 64)})
    builders.attach(model, targets="q", rank=4, variant="lora_fa")
    x = torch.randn(512, 64, generator=G)
    held = kept(lambda: model["q"](x))
    assert held < x.numel() * 4 / 2


def test_autocast_is_the_composed_forms() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    x = draw(5, 8, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    got = [p.grad.clone() for _, p in dw.trainable(model)]
    model.zero_grad()
    model(x).sum().backward()
    for low, (_, p) in zip(got, dw.trainable(model), strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, p.grad, rtol=0.05, atol=0.05)


def test_a_second_derivative_is_refused_and_function_transforms_run() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    x = draw(2, 4, dtype=torch.float32).requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model(row)))(x.detach())
    entry = model[0].lora.default
    whole = model[0].weight + entry.part.scaling * entry.lora_B @ entry.lora_A
    torch.testing.assert_close(jacobian, whole.expand(2, -1, -1))


def test_where_it_steps_aside() -> None:
    out, x = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bfloat16)
    assert not can_fuse(out, x) and can_fuse(out, out)
