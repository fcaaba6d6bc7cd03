"""Initializations that start from data: what they gather, and that the base never notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.gather import Sketch

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("pieces", [1, 4, 50])
def test_a_sketch_is_the_decomposition_of_all_rows(pieces: int) -> None:
    """Exact while nothing is cut off; with a clear spectrum also where it is."""
    left, right = (torch.linalg.qr(torch.randn(n, 6, generator=G)).Q for n in (200, 9))
    rows = left @ torch.diag(torch.tensor([9.0, 7, 5, 0.1, 0.05, 0.01])) @ right.t()
    sketch = Sketch(3)
    for piece in rows.chunk(pieces):
        sketch.update(piece)
    _, S, Vh = np.linalg.svd(rows.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(sketch.values.numpy(), S[:3], rtol=1e-3)
    np.testing.assert_allclose(np.abs(sketch.vectors.double().numpy() @ Vh[:3].T), np.eye(3), atol=1e-2)
    assert sketch.total == pytest.approx(float(rows.double().square().sum()))


class Net(nn.Module):
    """A net with a loss, in training mode, with flags and gradients of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = self.second(self.drop(torch.relu(self.first(x))))
        loss = None if y is None else (out - y).square().mean()
        return type("Output", (), {"logits": out, "loss": loss})()


BATCHES = [{"x": torch.randn(5, 6, generator=G), "y": torch.randn(5, 4, generator=G)} for _ in range(3)]


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_the_base_is_as_it_was(init: str) -> None:
    model, plain = Net().train(), Net().train()
    model.second.weight.grad = torch.ones(4, 8)
    model.first.bias.requires_grad_(False)
    before = builders.bits(model), torch.get_rng_state()
    builders.attach(model, init=init, rank=2, targets="all-linear", batches=BATCHES)
    assert builders.base_bits(model) == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert all(m.training for m in model.modules()) and torch.equal(model.second.weight.grad, torch.ones(4, 8))
    model.eval()
    plain.eval()
    assert torch.equal(model(**BATCHES[0]).logits, plain(**BATCHES[0]).logits)
    assert not model.first._forward_pre_hooks
    dw.detach(model)
    assert not model.first.bias.requires_grad and model.first.weight.requires_grad


def test_eva_spans_the_inputs() -> None:
    model = Net()
    builders.attach(model, init="eva", rank=2, targets="first", batches=iter(BATCHES))
    rows = torch.cat([batch["x"] for batch in BATCHES]).double()
    _, _, Vh = torch.linalg.svd(rows, full_matrices=False)
    lora_A = model.first.lora.default.lora_A.detach().double()
    torch.testing.assert_close((lora_A @ Vh[:2].t()).abs(), torch.eye(2).double(), rtol=1e-3, atol=1e-3)
    assert not model.first.lora.default.lora_B.any()


@pytest.mark.parametrize("own", [False, True])
def test_lora_ga_takes_the_gradient_of_the_loss(own: bool) -> None:
    model, plain = Net(), Net().eval()
    loss = (lambda out: out.logits.square().mean()) if own else None
    builders.attach(model, init="lora_ga", rank=2, alpha=4, targets="second", batches=BATCHES, loss=loss)
    total = torch.zeros(4, 8)
    for batch in BATCHES:
        plain.zero_grad()
        out = plain(**batch)
        (out.logits.square().mean() if own else out.loss).backward()
        total += plain.second.weight.grad / 3
    U, _, Vh = torch.linalg.svd(total, full_matrices=False)
    entry = model.second.lora.default
    size = 4**0.25 / 4 / 2**0.5
    torch.testing.assert_close((entry.lora_A.detach() @ Vh[:2].t()).abs(), size * torch.eye(2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((entry.lora_B.detach().t() @ U[:, 2:4]).abs(), size * torch.eye(2), rtol=1e-3, atol=1e-4)
    on = model.eval()(BATCHES[0]["x"]).logits
    assert torch.equal(on, plain(BATCHES[0]["x"]).logits)


@pytest.mark.parametrize("form", ["mapping", "tuple", "tensor"])
def test_batches_come_in_any_form(form: str) -> None:
    batch: Any = {"mapping": BATCHES[0], "tuple": (BATCHES[0]["x"],), "tensor": BATCHES[0]["x"]}[form]
    model = Net()
    builders.attach(model, init="eva", rank=2, targets="first", batches=[batch])
    assert model.first.lora.default.lora_A.any()


def test_ranks_follow_the_spread_of_the_inputs() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    model.forward = lambda x, y: model["a"](x) + model["b"](y)
    thin = torch.randn(20, 1, generator=G) @ torch.randn(1, 6, generator=G)
    batches = [(thin, torch.randn(20, 6, generator=G))]
    made = dw.plan(model, dw.LoRAConfig(targets=["a", "b"], rank=3))
    ranks = dw.eva_ranks(model, made, batches)
    assert sum(ranks.values()) == 6 and ranks["a"] == 1 and ranks["b"] == 5
    assert dw.eva_ranks(model, made, batches, spread=1) == {"a": 3, "b": 3}
    config = dw.LoRAConfig(targets=["a", "b"], init="eva", rank_pattern=ranks)
    report = dw.attach(model, config, batches=batches)
    assert [site.rank for site in report.sites] == [1, 5]
    with pytest.raises(ConfigError, match="spread"):
        dw.eva_ranks(model, made, batches, spread=0.5)


def test_a_run_that_fails_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().train()
    with pytest.raises(TypeError):
        builders.attach(model, init="eva", rank=2, targets="first", batches=[{"wrong": 1}])
    assert not model.first._forward_pre_hooks and model.training and not dw.attached(model)
    assert all(p.requires_grad for p in model.parameters())


def test_slices_take_their_rows_of_the_gradient() -> None:
    model = nn.ModuleDict({"c_attn": nn.Linear(6, 12)})
    model.forward = lambda x: model["c_attn"](x)
    x = torch.randn(9, 6, generator=G)
    loss = lambda out: (out * torch.arange(12.0)).sum()  # noqa: E731
    builders.attach(model, init="lora_ga", rank=1, targets=["c_attn[q,v]"], batches=[x], loss=loss)
    gradient = torch.arange(12.0)[:, None] * x.sum(0)
    _, _, Vh = torch.linalg.svd(gradient[8:], full_matrices=False)
    lora_A = model["c_attn"].lora.default.v.lora_A.detach()
    torch.testing.assert_close((lora_A / lora_A.norm()).abs(), Vh[:1].abs(), rtol=1e-3, atol=1e-4)
    assert model["c_attn"].lora.default.q.lora_B.shape == (4, 1)


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, q: Tensor, kv: Tensor | None = None) -> Tensor:
        kv = q if kv is None else kv
        return self.attn(q, kv, kv)[0]


@pytest.mark.parametrize("fused", [False, True])
def test_eva_hears_both_projections_of_an_attention(fused: bool) -> None:
    torch.manual_seed(0)
    model: Any = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) if fused else Crossed()
    x = torch.randn(2, 5, 8, generator=G)
    base = model.eval()(x)
    target = "self_attn" if fused else "attn"
    builders.attach(model, init="eva", rank=2, targets=target, batches=[x])
    for site in (target, f"{target}.out_proj"):
        lora_A = model.get_submodule(site).lora.default.lora_A.detach()
        torch.testing.assert_close(lora_A @ lora_A.t(), torch.eye(2), rtol=1e-4, atol=1e-4)
        assert "forward" not in vars(model.get_submodule(site))
    torch.testing.assert_close(model(x), base)


def test_eva_between_two_sequences_is_refused() -> None:
    model, x = Crossed(), torch.randn(2, 5, 8, generator=G)
    with pytest.raises(ConfigError, match="no one input"):
        builders.attach(model, init="eva", rank=2, targets="attn[k]", batches=[(x, x * 2)])
    assert "forward" not in vars(model.attn) and not dw.attached(model)


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_a_site_that_hears_nothing_is_named(init: str) -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    loss = torch.sum if init == "lora_ga" else None
    with pytest.raises(ConfigError, match="idle"), torch.no_grad():
        builders.attach(model, init=init, rank=2, targets="all-linear", batches=[torch.ones(3, 4)], loss=loss)


def test_ranks_are_found_on_the_resting_base() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    before, batches = builders.bits(model), [torch.randn(6, 8, generator=G)] * 3
    ranks = dw.eva_ranks(model, dw.plan(model, dw.LoRAConfig(rank=2)), batches)
    assert builders.bits(model) == before and all(m.training for m in model.modules())
    assert ranks == dw.eva_ranks(model.eval(), dw.plan(model, dw.LoRAConfig(rank=2)), batches)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="no batch"):
        builders.attach(Net(), init="eva", rank=2, targets="first", batches=[3])
    with pytest.raises(ConfigError, match="the data, which has fewer"):
        builders.attach(Net(), init="eva", rank=3, targets="first", batches=[torch.randn(1, 6)])
