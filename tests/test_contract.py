"""The contract: what every kind of site keeps, in every dtype. A new kind is one more row in ``contract_cases``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import builders
import deltaw as dw
import reference
from contract_cases import CASES, DTYPES, UNIT, Case, base_of, flat_inputs, numpy, terms_of
from deltaw.errors import StateError

pytestmark = [
    pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch.")),
    pytest.mark.parametrize("case", CASES, ids=lambda c: c.name),
]


def worn(case: Case, dtype: torch.dtype, dropout: float = 0.0, trained: bool = True) -> Any:
    model = case.build(dtype)
    builders.attach(model, **{"alpha": case.alpha, "dropout": dropout, **case.config})
    if trained:
        builders.randomize(model)
    return model


def bound(case: Case, model: Any, x: torch.Tensor, terms: list[reference.Term], dtype: torch.dtype) -> np.ndarray:
    """Rounding allowed for a forward: the base's products, the casts of A, B and h, and the sums."""
    W, bias = base_of(case, model)
    size = reference.magnitude(W, bias, flat_inputs(case, x), terms)
    return 6 * UNIT[dtype] * size + 1e-7


def expected(case: Case, model: Any, x: torch.Tensor, terms: list[reference.Term]) -> np.ndarray:
    W, bias = base_of(case, model)
    flat = flat_inputs(case, x)
    if case.limit is None:
        return reference.forward(W, bias, flat, terms)
    rows = reference.bounded(W.T, case.limit)
    return reference.bounded(reference.forward(rows.T, bias, flat, terms), case.limit)


@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_adapter_changes_nothing(case: Case, dtype: torch.dtype, training: bool) -> None:
    plain = torch.nn.Sequential(case.build(dtype), torch.nn.Dropout(0.5)).train(training)
    model = torch.nn.Sequential(case.build(dtype), torch.nn.Dropout(0.5)).train(training)
    x = case.inputs(dtype)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    builders.attach(model, **{"alpha": case.alpha, "dropout": 0.3, **case.config})
    assert torch.equal(before, torch.get_rng_state()), "attach drew from the global generator"
    for _ in range(2):
        torch.manual_seed(3)
        # a copy, since torch renormalizes a bounded table in place, again on every call where rounding undid it
        want = copy.deepcopy(plain)(x)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        got = model(x)
        assert torch.equal(got, want)
        assert torch.equal(state, torch.get_rng_state()), "the forward drew from the global generator"


def test_forward_is_the_reference(case: Case, dtype: torch.dtype) -> None:
    model = worn(case, dtype)
    x = case.inputs(dtype)
    terms = terms_of(case, model)
    want = expected(case, model, x, terms)
    got = model(x)
    assert got.dtype == dtype
    error = np.abs(numpy(got).reshape(want.shape) - want)
    assert (error <= bound(case, model, x, terms, dtype)).all(), error.max()
    base = expected(case, model, x, [])
    assert np.abs(want - base).max() > 10 * UNIT[dtype], "the adapter does nothing in this case"


def test_gradients_are_the_reference(case: Case, dtype: torch.dtype) -> None:
    if case.limit is not None:
        pytest.skip("the bound on norms makes the map non-linear; its gradient is torch's")
    model = worn(case, dtype)
    x = case.inputs(dtype)
    if not case.lookup:
        x.requires_grad_()
    out = model(x)
    dy = torch.randn(out.shape, generator=torch.Generator().manual_seed(8)).to(dtype)
    out.backward(dy)
    W, _ = base_of(case, model)
    terms = terms_of(case, model)
    flat, up = flat_inputs(case, x.detach()), numpy(dy).reshape(-1, out.shape[-1])
    pairs, dx = reference.gradients(W, flat, terms, up)
    sizes, size_x = reference.gradients(
        abs(W), abs(flat), [reference.Term(abs(t.A), abs(t.B), t.alpha, t.rows, t.stabilized) for t in terms], abs(up)
    )
    entries = [pair for _, pair in builders.factors(model)]
    for entry, (dA, dB), (size_A, size_B) in zip(entries, pairs, sizes, strict=True):
        if case.lookup:
            dA = reference.lookup_gradient(dA, x.numpy(), case.padding, case.by_frequency)
        for got, want, size in ((entry.lora_A.grad, dA, size_A), (entry.lora_B.grad, dB, size_B)):
            assert got is not None and got.dtype == torch.float32
            assert (np.abs(numpy(got) - want) <= 6 * UNIT[dtype] * size + 1e-7).all()
    if not case.lookup:
        assert x.grad is not None
        assert (np.abs(numpy(x.grad).reshape(dx.shape) - dx) <= 6 * UNIT[dtype] * size_x + 1e-7).all()
    assert all(p.grad is None for name, p in model.named_parameters() if ".lora." not in name)


def test_merge_is_the_forward_and_unmerge_gives_every_bit_back(case: Case, dtype: torch.dtype) -> None:
    model = worn(case, dtype)
    x = case.inputs(dtype)
    terms = terms_of(case, model)
    base, keys = builders.base_bits(model), list(model.state_dict())
    before, unmerged = builders.bits(model), model(x)
    allowed = bound(case, model, x, terms, dtype)
    want = expected(case, model, x, terms)
    W, _ = base_of(case, model)
    if not case.mergeable:
        with pytest.raises(StateError, match="cannot be merged into"):
            dw.merge(model)
        assert builders.bits(model) == before and torch.equal(model(x), unmerged)
        return
    dw.merge(model)
    assert type(model.site) is type(case.build(dtype).site)
    assert not [key for key in model.state_dict() if ".lora" in key]
    merged, _ = base_of(case, model)
    if case.limit is None:
        exact = W + reference.delta(terms, W.shape[0])
        single = 2.0**-24 * (np.abs(W) + 8 * reference.delta(
            [reference.Term(abs(t.A), abs(t.B), t.alpha, t.rows, t.stabilized) for t in terms], W.shape[0]
        ))  # fmt: skip
        assert (np.abs(merged - exact) <= 1.01 * UNIT[dtype] * np.abs(exact) + single + 1e-7 * UNIT[dtype]).all()
    out = model(x)
    assert (np.abs(numpy(out).reshape(want.shape) - want) <= allowed).all()
    dw.unmerge(model)
    assert builders.bits(model) == before and builders.base_bits(model) == base
    assert torch.equal(model(x), unmerged) and list(model.state_dict()) == keys


def test_save_and_load_keep_every_bit(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    model = worn(case, dtype)
    x = case.inputs(dtype)
    out = model(x)
    dw.save(model, tmp_path / "a")
    fresh = case.build(dtype)
    report = dw.load(fresh, tmp_path / "a")
    assert report.applied == report.total == 1
    same_scaling = len(set(case.ranks.values()) | {case.config["rank"]}) == 1
    if same_scaling:
        assert builders.bits(fresh) == builders.bits(model)
        assert torch.equal(fresh(x), out)
    dw.save(fresh, tmp_path / "b")
    first, second = dw.Adapter.open(tmp_path / "a"), dw.Adapter.open(tmp_path / "b")
    if same_scaling:
        assert first.hash == second.hash
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (path,) = first.modules()
    width = base_of(case, model)[0].shape[0]
    np.testing.assert_allclose(
        numpy(first.delta(path)), reference.delta(terms_of(case, model), width), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(numpy(second.delta(path)), numpy(first.delta(path)), rtol=1e-5, atol=1e-6)


def test_exactly_the_adapter_is_trained(case: Case, dtype: torch.dtype) -> None:
    model = case.build(dtype)
    report = builders.attach(model, **{"alpha": case.alpha, **case.config})
    names = [name for name, _ in dw.trainable(model)]
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [name for name, _ in model.named_parameters() if ".lora.default." in name]
    assert sum(p.numel() for _, p in dw.trainable(model)) == report.parameters == report.plan.parameters
    assert {p.dtype for _, p in dw.trainable(model)} == {torch.float32}
    base = builders.base_bits(model)
    optimizer = torch.optim.SGD([p for _, p in dw.trainable(model)], lr=0.1)
    model(case.inputs(dtype)).float().square().mean().backward()
    optimizer.step()
    assert builders.base_bits(model) == base, "a step changed the base"


def test_disabled_is_the_base(case: Case, dtype: torch.dtype) -> None:
    plain, model = case.build(dtype), worn(case, dtype)
    x = case.inputs(dtype)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    on = model(x)
    with dw.disabled(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(on, plain(x))
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    if case.limit is None:
        assert torch.equal(model(x), on)


def test_detach_leaves_no_trace(case: Case, dtype: torch.dtype) -> None:
    model = case.build(dtype)
    site = model.site
    site.register_forward_hook(lambda *_: None)
    next(iter(model.parameters())).requires_grad_(False)
    objects = {name: id(p) for name, p in model.named_parameters()}

    def state() -> Any:
        return (
            [(name, type(module)) for name, module in model.named_modules()],
            [(name, sorted(vars(module))) for name, module in model.named_modules()],
            {name: p.requires_grad for name, p in model.named_parameters()},
            list(model.state_dict()),
            len(site._forward_hooks),
            {name: module.training for name, module in model.named_modules()},
            builders.bits(model),
        )

    before = state()
    builders.attach(model, **{"alpha": case.alpha, **case.config})
    assert isinstance(model.site, before[0][1][1]), "the ancestry is kept"
    assert set(before[3]) <= set(model.state_dict())
    builders.attach(model, "second", **{"alpha": case.alpha, **case.config})
    dw.detach(model, "default")
    assert dw.attached(model) == ("second",)
    dw.detach(model)
    assert state() == before and model.site is site
    assert objects == {name: id(p) for name, p in model.named_parameters()}


def test_a_mix_is_the_sum_of_the_updates(case: Case, dtype: torch.dtype) -> None:
    if case.limit is not None:
        pytest.skip("under a bound on norms a sum of updates is bounded as a whole, not term by term")
    model = worn(case, dtype)
    builders.attach(model, "other", **{"alpha": case.alpha, **case.config})
    builders.randomize(model, seed=4, adapter="other")
    x = case.inputs(dtype)
    terms = terms_of(case, model, "default", 0.7) + terms_of(case, model, "other", -0.3)
    want, allowed = expected(case, model, x, terms), bound(case, model, x, terms, dtype)
    with dw.active(model, {"default": 0.7, "other": -0.3}):
        got = model(x)
    assert (np.abs(numpy(got).reshape(want.shape) - want) <= allowed).all()
    if not case.mergeable:
        return
    before = builders.bits(model)
    dw.merge(model, {"default": 0.7, "other": -0.3})
    assert (np.abs(numpy(model(x)).reshape(want.shape) - want) <= allowed).all()
    dw.unmerge(model)
    assert builders.bits(model) == before
