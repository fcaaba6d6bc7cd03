"""The loss head against cross-entropy on full logits: values, gradients, what it makes and keeps, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
from deltaw import chunked
from deltaw.chunked import Rules, chunk_tokens, token_losses
from deltaw.errors import ConfigError, ModelError, StateError


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def targets_of(count: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed))


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, rules: Rules
) -> Tensor:
    """Written out from the definitions, with no chunk and no library loss."""
    a = rules.logit_scale * (hidden @ weight.T + (0 if bias is None else bias))
    z = a if rules.soft_cap is None else rules.soft_cap * torch.tanh(a / rules.soft_cap)
    log_p = z - z.exp().sum(1, keepdim=True).log()
    hit = log_p[torch.arange(len(targets)), targets]
    e = rules.label_smoothing
    return -(weights * ((1 - e) * hit + e * log_p.mean(1))).sum()


SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 13), st.integers(1, 5), st.integers(1, 10))


@settings(deadline=None, max_examples=60)
@given(
    sizes=SHAPES, smoothing=st.sampled_from([0.0, 0.1, 1.0]), scale=st.sampled_from([1.0, 0.25, -2.0]),
    cap=st.sampled_from([None, 1.5, 30.0]), biased=st.booleans(), zeros=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_values_and_gradients(
    sizes: tuple[int, int, int, int], smoothing: float, scale: float, cap: float | None, biased: bool, zeros: bool,
    seed: int,
) -> None:  # fmt: skip
    count, vocab, width, chunk = sizes
    rules = Rules(smoothing, scale, cap)
    tensors = [draw(count, width, seed=seed), draw(vocab, width, seed=seed + 1)]
    tensors += [draw(vocab, seed=seed + 2)] if biased else []
    weights = draw(count, seed=seed + 3).abs()
    weights = torch.where(weights < 0.5, 0.0, weights) if zeros else weights
    mine, other = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    targets = targets_of(count, vocab, seed)
    got = dw.linear_cross_entropy(
        mine[0], mine[1], targets, bias=mine[2] if biased else None, weights=weights, label_smoothing=smoothing,
        logit_scale=scale, soft_cap=cap, chunk=chunk,
    )  # fmt: skip
    want = reference(other[0], other[1], other[2] if biased else None, targets, weights, rules)
    torch.testing.assert_close(got, want)
    (got * 0.7).backward()
    (want * 0.7).backward()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradcheck(cap: float | None, reduction: str) -> None:
    targets, weights = targets_of(5, 7), draw(5, seed=9).abs()

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return dw.linear_cross_entropy(
            h, w, targets, bias=b, weights=weights, label_smoothing=0.2, logit_scale=1.3, soft_cap=cap,
            reduction=reduction, chunk=2,
        )  # fmt: skip

    tensors = [draw(5, 3).requires_grad_(), draw(7, 3, seed=1).requires_grad_(), draw(7, seed=2).requires_grad_()]
    assert gradcheck(loss, tensors)


def test_the_plain_form_is_torchs() -> None:
    """``token_losses`` is what everything else is compared with in training; smoothing means what torch means."""
    z, targets = draw(6, 9), targets_of(6, 9)
    for smoothing in (0.0, 0.3):
        got = token_losses(z, targets, Rules(label_smoothing=smoothing))
        log_p = F.log_softmax(z, -1)
        want = (1 - smoothing) * -log_p.gather(1, targets[:, None])[:, 0] - smoothing * log_p.mean(1)
        torch.testing.assert_close(got, want)
        each = dw.linear_cross_entropy(z, torch.eye(9).double(), targets, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(each, want)


def test_ignored_tokens_and_tokens_without_weight_are_never_projected() -> None:
    """Not a number anywhere in them, and a target outside of the vocabulary, change nothing."""
    hidden, weight, targets = draw(6, 4), draw(8, 4, seed=1), targets_of(6, 8)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    hidden[1], hidden[4], targets[4] = math.nan, math.nan, -100
    h = hidden.clone().requires_grad_()
    got = dw.linear_cross_entropy(h, weight, targets, weights=weights, chunk=2)
    got.backward()
    kept = [0, 2, 3, 5]
    torch.testing.assert_close(got, reference(hidden[kept], weight, None, targets[kept], weights[kept], Rules()))
    assert h.grad is not None and h.grad[[1, 4]].abs().sum() == 0 and h.grad[kept].isfinite().all()
    each = dw.linear_cross_entropy(h, weight, targets, weights=weights, reduction="none")
    assert each[[1, 4]].tolist() == [0.0, 0.0] and torch.allclose(each.sum(), got)


def test_no_tokens_at_all() -> None:
    h, w = draw(0, 4).requires_grad_(), draw(8, 4).requires_grad_()
    loss = dw.linear_cross_entropy(h, w, targets_of(0, 8))
    loss.backward()
    assert loss.item() == 0 and h.grad is not None and w.grad is not None and w.grad.abs().sum() == 0
    h = draw(2, 4).requires_grad_()
    dw.linear_cross_entropy(h, w, torch.tensor([-100, -100])).backward()
    assert h.grad is not None and h.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [None, 10.0])
def test_low_precision_is_no_worse_than_full_logits(dtype: torch.dtype, cap: float | None) -> None:
    hidden, weight = draw(48, 32, dtype=dtype), (draw(301, 32, seed=1)).to(dtype)
    targets, rules = targets_of(48, 301), Rules(soft_cap=cap)
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    want = reference(exact[0], exact[1], None, targets, torch.ones(48), rules)
    want.backward()
    full = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain = token_losses(F.linear(*full), targets, rules).sum()
    plain.backward()
    mine = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    got = dw.linear_cross_entropy(mine[0], mine[1], targets, soft_cap=cap, chunk=16)
    got.backward()
    assert got.dtype == torch.float32
    assert abs(got.item() - want.item()) <= abs(plain.item() - want.item()) + 1e-6 * want.item()
    for a, b, c in zip(mine, full, exact, strict=True):
        assert a.grad is not None and a.grad.dtype == dtype and b.grad is not None and c.grad is not None
        error, theirs = (a.grad - c.grad).abs().mean(), (b.grad - c.grad).abs().mean()
        assert error <= 1.02 * theirs


def test_the_way_of_devices_that_multiply_in_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has its own products in bfloat16; here they are emulated, so that its way runs too."""
    plain = chunked._Projection.__init__

    def natively(self: Any, *args: Any) -> None:
        plain(self, *args)
        self.blocks, self.low = 0, self.weight.new_empty(self.z.shape)

    monkeypatch.setattr(chunked._Projection, "__init__", natively)
    hidden, weight, targets = draw(20, 16, dtype=torch.bfloat16), draw(40, 16, dtype=torch.bfloat16), targets_of(20, 40)
    mine, exact = (
        [t.to(dtype, copy=True).requires_grad_() for t in (hidden, weight)] for dtype in (torch.bfloat16, torch.double)
    )
    got = dw.linear_cross_entropy(mine[0], mine[1], targets, bias=draw(40, dtype=torch.bfloat16), chunk=8)
    want = reference(exact[0], exact[1], draw(40, dtype=torch.bfloat16).double(), targets, torch.ones(20), Rules())
    assert got.item() == pytest.approx(want.item(), rel=1e-2)
    got.backward()
    want.backward()
    for a, b in zip(mine, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() <= 0.02 * b.grad.abs().max()


class Seen(TorchDispatchMode):
    """The largest tensor that any operation makes, and how many products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += "mm" in str(func)
        made = [t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *made])
        return out


@pytest.mark.parametrize("kind", ["matrix", "adapter"])
def test_memory_does_not_grow_with_tokens_times_vocabulary(kind: str) -> None:
    vocab, width, chunk = 512, 8, 16
    head = nn.Linear(width, vocab, bias=False).requires_grad_(False)
    if kind == "adapter":
        builders.attach(head_of := nn.Sequential(head), targets="0", rank=2)
        assert head_of[0] is head
    for tokens in (64, 256):
        hidden, targets = torch.randn(tokens, width).requires_grad_(), targets_of(tokens, vocab)
        kept: dict[int, int] = {}

        def pack(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        given = {t.untyped_storage().nbytes() for t in head.parameters()}
        with Seen() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = dw.linear_cross_entropy(hidden, head, targets, chunk=chunk)
        assert seen.largest <= max(4 * chunk * vocab, *given)
        # dh, and of an adapter the gradients of A and B
        factors = sum(4 * p.numel() for p in head.parameters() if p.requires_grad)
        assert sum(kept.values()) <= 4 * tokens * width + factors
        loss.backward()


def test_a_frozen_head_costs_two_products_a_chunk_and_reading_costs_one() -> None:
    hidden, weight, targets = torch.randn(32, 8).requires_grad_(), torch.randn(64, 8), targets_of(32, 64)
    with Seen() as trained:
        dw.linear_cross_entropy(hidden, weight, targets, chunk=8).backward()
    with Seen() as read, torch.no_grad():
        dw.linear_cross_entropy(hidden, weight, targets, chunk=8)
    targets[8:] = -100
    with Seen() as few:
        dw.linear_cross_entropy(hidden, weight, targets, chunk=8).backward()
    assert (trained.products, read.products, few.products) == (8, 4, 2)


def test_the_chunk_is_chosen_by_the_vocabulary() -> None:
    assert [chunk_tokens(v) for v in (1, 1000, 32_000, 152_064, 10**7)] == [2**23, 8388, 262, 256, 256]
    assert chunk_tokens(None) == 256


def heads() -> dict[str, nn.Module]:
    def make(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 11))
        builders.attach(net, **options)
        builders.randomize(net)
        return net[0]  # type: ignore[no-any-return]

    hooked = nn.Linear(6, 11)
    hooked.register_forward_hook(lambda module, inputs, out: out * 2)
    return {
        "plain": nn.Linear(6, 11),
        "adapter": make(targets="0", rank=2),
        "dora": make(targets="0", rank=2, variant="dora"),
        "raw weight": make(targets="0.weight", rank=2),
        "copy": make(targets="0", rank=2, train_also=[]),
        "bias": make(targets="0", rank=2, bias="all"),
        "hook": hooked,
        "module": nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 11)),
    }


@pytest.mark.parametrize("name", list(heads()))
@pytest.mark.parametrize("way", ["as it is", "checkpoint", "reentrant checkpoint"])
def test_any_module_is_a_head(name: str, way: str) -> None:
    head, targets = heads()[name].double(), targets_of(9, 11)
    weights = draw(9, seed=4).abs()
    weights[3] = 0
    trained = [p for p in head.parameters() if p.requires_grad]

    def loss(h: Tensor) -> Tensor:
        return dw.linear_cross_entropy(h, head, targets, weights=weights, label_smoothing=0.1, soft_cap=3.0, chunk=4)

    mine, other = draw(9, 6).requires_grad_(), draw(9, 6).requires_grad_()
    got = loss(mine) if way == "as it is" else checkpoint(loss, mine, use_reentrant=way.startswith("re"))
    got.backward()
    found = [p.grad for p in trained]
    head.zero_grad(set_to_none=True)
    want = (token_losses(head(other), targets, Rules(0.1, 1.0, 3.0)) * weights).sum()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(mine.grad, other.grad)
    assert trained
    for a, p in zip(found, trained, strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("name", ["plain", "adapter"])
def test_autocast_is_a_linear_layers(name: str) -> None:
    head, targets = heads()[name], targets_of(9, 11)
    h = draw(9, 6, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dw.linear_cross_entropy(h, head, targets, chunk=4)
        want = F.cross_entropy(head(h).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=0.02, atol=0.02)
    (got,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(got, torch.autograd.grad(want, h)[0], rtol=0.05, atol=0.02)
    assert got.dtype == torch.float32


def test_a_compiled_graph_holds_it_whole() -> None:
    weight, targets = draw(11, 6).requires_grad_(), targets_of(9, 11)
    targets[2] = -100

    def loss(h: Tensor) -> Tensor:
        return dw.linear_cross_entropy(h * 2, weight, targets, chunk=4) * 0.5

    h = draw(9, 6, seed=1).requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(loss(h), (h, weight))
    for a, b in zip(torch.autograd.grad(compiled(h), (h, weight)), want, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(compiled(h), loss(h))


def test_a_compiled_head_with_an_adapter_is_right() -> None:
    head, targets = heads()["adapter"], targets_of(9, 11)
    h = draw(9, 6, dtype=torch.float32).requires_grad_()
    trained = [h, *(p for p in head.parameters() if p.requires_grad)]

    def loss(h: Tensor) -> Tensor:
        return dw.linear_cross_entropy(h, head, targets, chunk=4)

    want = torch.autograd.grad(loss(h), trained)
    for a, b in zip(torch.autograd.grad(torch.compile(loss, backend="aot_eager")(h), trained), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["plain", "adapter"])
def test_a_second_derivative_is_refused_by_name(name: str) -> None:
    h = draw(9, 6, dtype=torch.float32).requires_grad_()
    loss = dw.linear_cross_entropy(h, heads()[name], targets_of(9, 11))
    with pytest.raises(StateError, match="no second derivative"):
        torch.autograd.grad(loss, h, create_graph=True)


def test_a_backward_may_come_twice() -> None:
    h, w = draw(9, 6).requires_grad_(), draw(11, 6).requires_grad_()
    loss = dw.linear_cross_entropy(h, w, targets_of(9, 11))
    first = torch.autograd.grad(loss, (h, w), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss * 2, (h, w)), strict=True):
        torch.testing.assert_close(2 * a, b)


H, W, T = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"logit_scale": math.inf}, "logit_scale"),
        ({"soft_cap": 0.0}, "soft_cap"),
        ({"reduction": "mean"}, "divide the sum by the sum of the weights"),
        ({"chunk": 0}, "chunk"),
        ({"head": nn.Linear(4, 5), "bias": torch.ones(5)}, "a bias beside Linear"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dw.linear_cross_entropy(**{"hidden": H, "head": W, "targets": T, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": torch.ones(5, 3)}, r"got: shape \(5, 3\)"),
        ({"head": W.double()}, "torch.float64, hidden torch.float32"),
        ({"targets": T[:2]}, r"hidden \(3, 4\), targets \(2,\)"),
        ({"hidden": H[None]}, "where: targets"),
        ({"bias": torch.ones(4)}, "where: bias"),
        ({"weights": torch.ones(2)}, "where: weights"),
        ({"weights": torch.ones(3, requires_grad=True)}, "with a gradient"),
    ],
)
def test_tensors_that_do_not_meet_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        dw.linear_cross_entropy(**{"hidden": H, "head": W, "targets": T, **options})


def test_losses_of_single_tokens_through_a_module_are_for_reading() -> None:
    head = heads()["adapter"]
    with pytest.raises(StateError, match="losses of single tokens"):
        dw.linear_cross_entropy(torch.ones(3, 6), head, T, reduction="none")
    with torch.no_grad():
        each = dw.linear_cross_entropy(torch.ones(3, 6), head, T, reduction="none")
    torch.testing.assert_close(each, F.cross_entropy(head(torch.ones(3, 6)), T, reduction="none").detach())


def test_an_adapter_that_is_not_active_gets_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(4, 5))
    builders.attach(net, targets="0", rank=2, name="one")
    builders.attach(net, targets="0", rank=2, name="two")
    with dw.active(net, "one"):
        dw.linear_cross_entropy(H, net[0], T).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if ".lora." in name}
    assert {name for name, grad in grads.items() if grad is not None} == {n for n in grads if ".one." in n}


def test_a_head_that_trains_what_is_not_its_own_is_refused() -> None:
    class Borrower(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * stranger

    stranger = torch.ones(5, requires_grad=True)
    with pytest.raises(ModelError, match="not among its parameters"):
        dw.linear_cross_entropy(H, Borrower(4, 5), T)


def test_a_sharded_head_is_refused() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sharded = distribute_tensor(W, init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(ModelError, match="DTensor"):
            dw.linear_cross_entropy(H, sharded, T)
    finally:
        dist.destroy_process_group()
