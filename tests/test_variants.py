"""The contract of every variant on every kind of layer, in every dtype; a new one is a row in ``variant_cases``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError
from variant_cases import FORMS, LAYERS, Form, Layer, Tensors, is_refused

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ALPHA = 6.0
PAIRS = [(layer, form) for layer in LAYERS for form in FORMS if not is_refused(layer, form)]
REFUSED = [(layer, form) for layer in LAYERS for form in FORMS if is_refused(layer, form)]

pairs = pytest.mark.parametrize(("layer", "form"), PAIRS, ids=lambda v: v.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def config(layer: Layer, form: Form, **changes: Any) -> dict[str, Any]:
    alpha = {} if form.config.get("variant") == "vera" else {"alpha": ALPHA}
    return {"targets": layer.target, "rank": layer.rank, "seed": 5, **alpha, **form.config, **changes}


def worn(layer: Layer, form: Form, dtype: torch.dtype, **changes: Any) -> nn.Module:
    model = layer.build(dtype)
    builders.attach(model, **config(layer, form, **changes))
    perturb(model)
    return model


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0, adapter: str = "default") -> None:
    """Move every trained tensor away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if f".lora.{adapter}." in name:
            p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.1)


def entries(layer: Layer, model: nn.Module, adapter: str = "default") -> Iterator[tuple[list[int] | None, nn.Module]]:
    """(rows, module that holds the tensors) of each part."""
    entry: Any = layer.site(model).lora.get_submodule(adapter)
    if layer.rows:
        yield from ((layer.rows[part], entry.get_submodule(part)) for part in layer.rows)
    else:
        yield None, entry


def tensors_of(holder: Any) -> Tensors:
    return {name: tensor.detach().double().requires_grad_() for name, tensor in holder.tensors().items()}


def dense(layer: Layer, form: Form, model: nn.Module, base: nn.Module, given: list[Tensors]) -> dict[str, Tensor]:
    """The layer's own parameters with the update in them, float64."""
    site = layer.site(base)
    own = {name: p.detach().double() for name, p in site.named_parameters()}
    weight = own[layer.parameter]
    W, bias = layer.matrix(weight), own.get(layer.bias)
    scaling = form.scaling(ALPHA, layer.rank)
    for (rows, _), t in zip(entries(layer, model), given, strict=True):
        index = torch.arange(len(W)) if rows is None else torch.tensor(rows)
        W = W.index_copy(0, index, form.dense(W[index], t, scaling, layer.groups))
        if "bias_B" in t:
            bias = torch.zeros(len(W), dtype=torch.float64) if bias is None else bias
            bias = bias.index_add(0, index, scaling * t["bias_B"])
    return {**own, layer.parameter: layer.stored(W, weight), **({} if bias is None else {layer.bias: bias})}


def reference(layer: Layer, form: Form, model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensors]]:
    base = layer.build(next(layer.site(model).parameters()).dtype)
    given = [tensors_of(holder) for _, holder in entries(layer, model)]
    own = dense(layer, form, model, base, given)
    site = copy.deepcopy(layer.site(base)).double()
    if layer.bias in own and getattr(site, layer.bias, None) is None:
        site.register_parameter(layer.bias, nn.Parameter(own[layer.bias].detach()))
    wide = x.double() if x.is_floating_point() else x
    args = (wide, wide, wide) if layer.several else (wide,)
    out = functional_call(
        site.train() if layer.several else site, own, args, {"need_weights": False} if layer.several else {}
    )
    return (out[0] if layer.several else out), given


def inputs(layer: Layer, dtype: torch.dtype) -> Tensor:
    x = layer.inputs()
    return x.to(dtype) if x.is_floating_point() else x


def close(got: Tensor, want: Tensor, dtype: torch.dtype, factor: float = 24) -> None:
    size = want.abs().max().clamp_min(1.0)
    error = (got.double() - want).abs().max()
    assert error <= factor * UNIT[dtype] * size, f"{float(error):.2e} of {float(size):.2e}"


@pytest.mark.parametrize(("layer", "form"), REFUSED, ids=lambda v: v.name)
def test_what_does_not_apply_is_refused_by_name(layer: Layer, form: Form) -> None:
    model = layer.build()
    before = builders.bits(model)
    with pytest.raises(DeltawError) as caught:
        builders.attach(model, **config(layer, form))
    wanted = form.config.get("init") or form.config["variant"]
    assert any(name in str(caught.value) for name in ([wanted] if isinstance(wanted, str) else wanted))
    assert builders.bits(model) == before and not dw.attached(model)


@pairs
@dtypes
def test_the_start(layer: Layer, form: Form, dtype: torch.dtype) -> None:
    model, plain, x = layer.build(dtype), layer.build(dtype), inputs(layer, dtype)
    before = builders.bits(model)
    # torch takes its fused road where nothing requires a gradient
    plain.requires_grad_(False)
    report = builders.attach(model, **config(layer, form, dropout=0.3))
    assert builders.base_bits(model) == before, "attach changed the base"
    for mode in (False, True):
        out, want = layer.run(model.train(mode), x), layer.run(plain.train(mode), x)
        if form.start or layer.several:
            # attention is computed by another road than torch's fused one
            close(out, want.double(), dtype, 8 + form.start / UNIT[torch.float32])
        else:
            assert torch.equal(out, want)
    names = {name.rpartition(".")[2] for name, _ in dw.trainable(model)}
    assert names == set(form.trained)
    assert sum(p.numel() for _, p in dw.trainable(model)) == report.parameters == report.plan.parameters
    with dw.disabled(model):
        assert torch.equal(layer.run(model.eval(), x), layer.run(plain.eval(), x))


@pairs
@dtypes
def test_forward_and_gradients_are_the_dense_formula(layer: Layer, form: Form, dtype: torch.dtype) -> None:
    model, x = worn(layer, form, dtype), inputs(layer, dtype)
    want, given = reference(layer, form, model, x)
    got = layer.run(model, x)
    assert got.dtype == dtype
    close(got, want, dtype)
    base = layer.run(layer.build(dtype), x).double()
    assert (want - base).abs().max() > 4 * UNIT[dtype], "the adapter does nothing in this case"
    dy = torch.randn(got.shape, generator=torch.Generator().manual_seed(8))
    got.backward(dy.to(dtype))
    trained = [t[name] for t in given for name in form.trained]
    gradients = torch.autograd.grad(want, trained, dy.to(dtype).double())
    found = [getattr(holder, name).grad for _, holder in entries(layer, model) for name in form.trained]
    for mine, other in zip(found, gradients, strict=True):
        assert mine is not None and mine.dtype == torch.float32
        close(mine, other, dtype, 64)
    assert all(p.grad is None for name, p in model.named_parameters() if ".lora." not in name)


@pairs
@dtypes
def test_merge_is_the_forward_and_unmerge_gives_every_bit_back(layer: Layer, form: Form, dtype: torch.dtype) -> None:
    model, x = worn(layer, form, dtype), inputs(layer, dtype)
    before, unmerged = builders.bits(model), layer.run(model, x)
    want, given = reference(layer, form, model, x)
    own = dense(layer, form, model, layer.build(dtype), given)
    if layer.bias in own and layer.bias not in dict(layer.site(model).named_parameters()):
        with pytest.raises(StateError, match="cannot be merged into"):
            dw.merge(model)
        assert builders.bits(model) == before
        return
    for _ in range(3):
        dw.merge(model)
        assert type(layer.site(model)) is type(layer.site(layer.build()))
        assert not [key for key in model.state_dict() if ".lora" in key]
        merged = layer.site(model).get_parameter(layer.parameter).double()
        error = (merged - own[layer.parameter]).abs()
        assert (error <= 1.01 * UNIT[dtype] * own[layer.parameter].abs() + 4e-7).all()
        close(layer.run(model, x), want, dtype)
        dw.unmerge(model)
        assert builders.bits(model) == before and torch.equal(layer.run(model, x), unmerged)


@pairs
@dtypes
def test_save_and_load_keep_every_bit(layer: Layer, form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = worn(layer, form, dtype), inputs(layer, dtype)
    dw.save(model, tmp_path / "a")
    fresh = layer.build(dtype)
    report = dw.load(fresh, tmp_path / "a", trainable=True)
    assert report.applied == report.total
    assert builders.bits(fresh) == builders.bits(model)
    assert torch.equal(layer.run(fresh, x), layer.run(model, x))
    assert [n for n, _ in dw.trainable(fresh)] == [n for n, _ in dw.trainable(model)]
    dw.save(fresh, tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pairs
def test_detach_leaves_no_trace(layer: Layer, form: Form) -> None:
    model = layer.build()

    def state() -> Any:
        return (
            [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()],
            [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()],
            builders.bits(model),
        )

    before = state()
    builders.attach(model, **config(layer, form))
    builders.attach(model, "second", **config(layer, form))
    dw.detach(model, "default")
    assert dw.attached(model) == ("second",)
    perturb(model, adapter="second")
    layer.run(model, inputs(layer, torch.float32))
    dw.detach(model)
    assert state() == before


@pairs
def test_a_mix_is_the_sum_of_the_updates_or_is_refused(layer: Layer, form: Form) -> None:
    model, x = worn(layer, form, torch.float32), inputs(layer, torch.float32)
    builders.attach(model, "other", **config(layer, form, seed=5 if form.name == "vera" else 6))
    perturb(model, 4, "other")
    mix = {"default": 0.7, "other": -0.3}
    if not form.mixes:
        with pytest.raises(StateError, match="cannot be mixed"):
            dw.activate(model, mix)
        return
    before = builders.bits(model)
    with dw.active(model, mix):
        got = layer.run(model, x)
        if "bias_B" not in form.trained or layer.name not in ("linear-no-bias", "conv2d-same"):
            dw.merge(model, mix)
            close(layer.run(model, x), got.detach().double(), torch.float32)
            dw.unmerge(model)
    assert builders.bits(model) == before
    if not layer.several:
        out = []
        for name in mix:
            with dw.active(model, name):
                out.append(layer.run(model, x).double())
        with dw.disabled(model):
            base = layer.run(model, x).double()
        close(got, base + 0.7 * (out[0] - base) - 0.3 * (out[1] - base), torch.float32)


@pairs
def test_life_after_attach(layer: Layer, form: Form) -> None:
    """Copies are independent, pickles rebuild, casts run, state dicts go round."""
    model, x = worn(layer, form, torch.float32), inputs(layer, torch.float32)
    out = layer.run(model, x)
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, again):
        assert torch.equal(layer.run(other, x), out) and builders.bits(other) == builders.bits(model)
    perturb(twin, 9)
    assert torch.equal(layer.run(model, x), out) and not torch.equal(layer.run(twin, x), out)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(layer.run(twin, x), out)
    twin.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert torch.equal(layer.run(twin, x), out)
    again.load_state_dict(layer.build().state_dict())
    assert torch.equal(layer.run(again, x), out), "a strict load of the base alone took the adapter along"
    half = copy.deepcopy(model).to(torch.bfloat16)
    close(layer.run(half, x.bfloat16() if x.is_floating_point() else x), out.detach().double(), torch.bfloat16, 64)
    model.requires_grad_(False)
    assert not dw.trainable(model)
    dw.unfreeze(model, "default")
    assert {name.rpartition(".")[2] for name, _ in dw.trainable(model)} == set(form.trained)
    dw.merge(twin) if layer.bias in dict(layer.site(model).named_parameters()) or "bias_B" not in form.trained else None


@pytest.mark.parametrize(("layer", "form"), PAIRS, ids=lambda v: v.name)
def test_from_the_meta_device(layer: Layer, form: Form) -> None:
    """Factors that need nothing of the weight are drawn when memory comes; the others are refused at once."""
    model = layer.build().to("meta")
    kwargs = config(layer, form)
    if set(form.trained) & {"magnitude", "vera_b"} or form.config.get("init") in ("pissa", "olora", "pissa_fast"):
        with pytest.raises(DeltawError, match="meta device has no values"):
            builders.attach(model, **kwargs)
        assert not dw.attached(model)
        return
    builders.attach(model, **kwargs)
    model.to_empty(device="cpu")
    straight = layer.build()
    builders.attach(straight, **kwargs)
    model.load_state_dict(layer.build().state_dict())
    x = inputs(layer, torch.float32)
    assert builders.bits(model) == builders.bits(straight)
    assert torch.equal(layer.run(model, x), layer.run(straight, x))


def _in_another_process(model: nn.Module, x: Tensor, queue: Any) -> None:
    queue.put((model(x).detach().tolist(), dw.attached(model)))


@pytest.mark.slow
def test_a_spawned_process_gets_the_adapters() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    builders.attach(model, rank=2, variant=["dora", "lora_bias"])
    perturb(model)
    x = torch.ones(2, 8)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_another_process, args=(model, x, queue))
    process.start()
    values, names = queue.get(timeout=120)
    process.join()
    torch.testing.assert_close(torch.tensor(values), model(x).detach())
    assert names == ("default",)
