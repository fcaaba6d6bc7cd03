"""Adapter dropout: masks from each site's own counter, drawn again in the backward, restorable for a resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.functional import drop, drop_mask

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def worn(seed: int | None = 1, p: float = 0.5, targets: str = "all-linear") -> nn.Module:
    model = builders.mlp(dropout=0.0).train()
    builders.attach(model, targets=targets, rank=2, dropout=p, seed=seed)
    builders.randomize(model, size=0.5)
    return model


def test_eval_has_no_dropout_and_train_has() -> None:
    model, plain = worn(), worn(p=0.0)
    assert not torch.equal(model(X), plain(X))
    assert torch.equal(model.eval()(X), plain.eval()(X))
    assert set(dw.draws(model).values()) == {1}, "eval drew a mask"


def test_statistics() -> None:
    x = torch.ones(200, 500)
    kept = drop(x, 0.3, 5)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=2e-5)]
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.01)
    # neither rows nor columns share a mask
    assert kept.unique(dim=0).shape[0] == 200 and kept.unique(dim=1).shape[1] == 500


@pytest.mark.parametrize("p", [0.0005, 0.004, 0.05, 0.1, 0.5, 0.7, 0.997, 0.9995])
def test_every_probability_is_met(p: float) -> None:
    """Bytes alone would give multiples of 1/256; the mean over 8 million entries tells the two apart."""
    mask, factor = drop_mask(torch.Size([4000, 2000]), p, 3, torch.float32, torch.device("cpu"))
    dropped = 1 - mask.double()
    spread = (p * (1 - p) / mask.numel() + (1 / 256) ** 2 / 4 / len(mask)) ** 0.5
    assert dropped.mean().item() == pytest.approx(p, abs=4.5 * spread)
    assert factor == pytest.approx(1 / (1 - p), rel=2e-4)
    # neighbours do not know of each other
    near = (dropped[:, 1:] * dropped[:, :-1]).mean().item(), (dropped[1:] * dropped[:-1]).mean().item()
    assert near == (pytest.approx(p * p, abs=8 * spread), pytest.approx(p * p, abs=8 * spread))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 5), (0, 4)])
def test_masks_of_any_shape(shape: tuple[int, ...]) -> None:
    mask, _ = drop_mask(torch.Size(shape), 0.5, 3, torch.bfloat16, torch.device("cpu"))
    assert mask.shape == shape and mask.dtype == torch.bfloat16 and bool(((mask == 0) | (mask == 1)).all())


def test_the_mean_over_masks_is_the_term_without_dropout() -> None:
    model = builders.Holder("proj", nn.Linear(6, 5)).train()
    builders.attach(model, targets="proj", rank=2, dropout=0.4, seed=0)
    builders.randomize(model, size=0.5)
    with torch.no_grad():
        drawn = torch.stack([model(X[:4]) for _ in range(2000)])
        error = (drawn.mean(0) - model.eval()(X[:4])).abs()
        assert (error < 4.5 * drawn.std(0) / 2000**0.5).all() and drawn.std(0).min() > 0.1


def test_the_backward_uses_the_forwards_mask() -> None:
    model = builders.Holder("proj", nn.Linear(6, 5)).train()
    builders.attach(model, targets="proj", rank=2, dropout=0.5, seed=0)
    builders.randomize(model, size=0.5)
    entry = model.get_submodule("proj.lora.default")
    x = X.clone().requires_grad_()
    out = model(x)
    base = nn.functional.linear(X, model.site.weight, model.site.bias)
    term = out.detach() - base
    # the linear map from x to the term, recovered from the gradient, is the one that made the output
    grads = torch.stack([torch.autograd.grad(out[:, j].sum(), x, retain_graph=True)[0] for j in range(5)], -1)
    torch.testing.assert_close(torch.einsum("ni,nij->nj", X, grads - model.site.weight.t()), term, rtol=1e-4, atol=1e-5)
    out.sum().backward()
    masked = drop(X, 0.5, _seed(model, 1))
    want = 8.0 * (torch.ones(64, 5) @ entry.lora_B).t() @ masked
    torch.testing.assert_close(entry.lora_A.grad, want, rtol=1e-4, atol=1e-4)


def _seed(model: nn.Module, draw: int) -> int:
    from deltaw.initialize import seed_for

    return seed_for(model.get_submodule("proj.lora.default").drop_seed, str(draw))


def test_draws_replay() -> None:
    model = worn()
    model(X)
    state = dw.draws(model)
    assert state == {"fc1.default": 1, "fc2.default": 1}
    second, third = model(X), model(X)
    assert not torch.equal(second, third)
    dw.set_draws(model, state)
    assert torch.equal(model(X), second) and torch.equal(model(X), third)
    fresh = worn()
    dw.set_draws(fresh, state)
    assert torch.equal(fresh(X), second), "a resumed process does not draw the same masks"


def test_seeds_and_sites_differ() -> None:
    assert torch.equal(worn(1)(X), worn(1)(X))
    assert not torch.equal(worn(1)(X), worn(2)(X))
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)}).train()
    model["b"].load_state_dict(model["a"].state_dict())
    builders.attach(model, targets="all-linear", rank=2, dropout=0.5)
    builders.randomize(model)
    other = model["b"].lora.default
    other.load_state_dict(model["a"].lora.default.state_dict())
    assert not torch.equal(model["a"](X), model["b"](X))


def test_the_global_generator_is_left_alone() -> None:
    model = worn()
    before = torch.get_rng_state()
    model(X).sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_no_mask_is_kept_for_the_backward() -> None:
    model = builders.Holder("proj", nn.Linear(6, 5, bias=False)).train()
    builders.attach(model, targets="proj", rank=2, dropout=0.5)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(X.clone().requires_grad_())
    assert not [t for t in saved if t.dtype == torch.bool]


def test_other_counters_are_refused() -> None:
    model = worn()
    with pytest.raises(ConfigError, match="dropout state of other sites"):
        dw.set_draws(model, {"fc1.default": 1})
    assert dw.draws(model) == {"fc1.default": 0, "fc2.default": 0}


def test_dropout_on_embeddings_is_told() -> None:
    model = builders.lookup()
    report = builders.attach(model, targets=["embed"], rank=2, dropout=0.5)
    assert report.notes == ("dropout does not apply to Embedding: embed",)
    ids = builders.ids(10)
    builders.randomize(model)
    assert torch.equal(model.train()(ids), model(ids))


def test_sliced_sites_share_one_mask_per_forward() -> None:
    model = builders.gpt2().train()
    builders.attach(model, targets=["c_attn[q,v]"], rank=2, dropout=0.5, seed=0)
    builders.randomize(model)
    model(builders.ids())
    assert set(dw.draws(model).values()) == {1}


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x))


def _gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for _, p in dw.trainable(model) if p.grad is not None]


def _stacked(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(_Block(), _Block())
    dw.attach(model, dw.LoRAConfig(rank=2, dropout=0.5, seed=1))
    with torch.no_grad():
        for _, p in dw.trainable(model):
            p.copy_(torch.randn(p.shape))
    return model.train()


def test_forwards_without_gradients_do_not_disturb_a_checkpointed_step() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    grads = []
    for use in (False, True):
        model = _stacked(3)
        with torch.no_grad():
            for _ in range(3):
                model(x)
        h = x
        for block in model:
            h = checkpoint(block, h, use_reentrant=False) if use else block(h)
        h.sum().backward()
        grads.append(_gradients(model))
    assert grads[0] and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_checkpointed_forward_repeats_its_own_mask_after_another_ones_backward() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    grads = []
    for use in (False, True):
        model = _stacked(3)
        h = x
        for block in model:
            h = checkpoint(block, h, use_reentrant=False) if use else block(h)
        other = model(x)
        other.sum().backward()
        h.sum().backward()
        grads.append(_gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_graph_that_is_thrown_away_is_no_longer_open() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = _stacked(3), torch.randn(5, 6)
    model(x)
    h = checkpoint(model, x, use_reentrant=False)
    h.sum().backward()
    assert not any(site.open for site in model.modules() if hasattr(site, "open"))
