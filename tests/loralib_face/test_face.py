"""The public behavior of microsoft/LoRA, as its README states it: one suite, run on the original and on deltaw's face.

Where a test takes ``lib``, both must pass it; what only one passes stands in ``test_faults.py``.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from face_values import filled
from torch import Tensor, nn

import deltaw.loralib as ours

theirs = pytest.importorskip("loralib")
LIBS = pytest.mark.parametrize("lib", [theirs, ours], ids=["loralib", "deltaw"])

MAKERS: dict[str, Any] = {
    "Linear": lambda lib, **kw: lib.Linear(8, 6, r=2, lora_alpha=6, **kw),
    "Linear, (in, out)": lambda lib, **kw: lib.Linear(8, 6, r=2, lora_alpha=6, fan_in_fan_out=True, **kw),
    "Linear without bias": lambda lib, **kw: lib.Linear(8, 6, r=2, lora_alpha=6, bias=False, **kw),
    "Embedding": lambda lib, **kw: lib.Embedding(9, 5, r=2, lora_alpha=6, padding_idx=1, **kw),
    "MergedLinear q, v": lambda lib, **kw: lib.MergedLinear(
        8, 12, r=2, lora_alpha=6, enable_lora=[True, False, True], **kw
    ),
    "MergedLinear, (in, out)": lambda lib, **kw: lib.MergedLinear(
        8, 12, r=2, lora_alpha=6, enable_lora=[False, True, True], fan_in_fan_out=True, **kw
    ),
    "MergedLinear, all": lambda lib, **kw: lib.MergedLinear(8, 12, r=2, lora_alpha=6, enable_lora=[True] * 2, **kw),
}
LAYERS = pytest.mark.parametrize("name", MAKERS)


def make(lib: ModuleType, name: str, seed: int = 3, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    return MAKERS[name](lib, **kwargs)


def inputs(layer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, 9, (4, 7), generator=generator)
    return torch.randn(4, 7, 8, generator=generator)


def dense(layer: Any) -> Tensor:
    """The update as the README describes it, in float64, in the stored layout; independent of either package."""
    A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    flags = getattr(layer, "enable_lora", [True])
    width = (layer.weight.shape[0] if isinstance(layer, nn.Embedding) else layer.out_features) // len(flags)
    if isinstance(layer, nn.Embedding):
        return (B @ A).t() * 3.0
    rows, place = [], 0
    for flag in flags:
        block = B[place * width : (place + 1) * width] @ A[place * 2 : place * 2 + 2] if flag else None
        rows.append(torch.zeros(width, A.shape[1], dtype=torch.float64) if block is None else block)
        place += bool(flag)
    out = torch.cat(rows) * 3.0
    return out.t() if layer.fan_in_fan_out else out


def plain(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight)
    weight = weight.t() if layer.fan_in_fan_out else weight
    return F.linear(x.double(), weight, None if layer.bias is None else layer.bias.double())


@LIBS
@LAYERS
def test_the_update_is_alpha_over_r_times_b_a(lib: ModuleType, name: str) -> None:
    layer = make(lib, name)
    x = inputs(layer)
    fresh = plain(layer, layer.weight.double(), x)
    assert torch.allclose(layer(x).double(), fresh, atol=1e-5), "a new layer gives the base's output"
    filled(layer)
    expected = plain(layer, layer.weight.double() + dense(layer), x)
    assert (layer(x).double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert layer.scaling == 3.0 and layer.r == 2 and layer.lora_alpha == 6


@LIBS
@LAYERS
def test_eval_merges_and_train_undoes_it(lib: ModuleType, name: str) -> None:
    layer = filled(make(lib, name))
    before, x = layer.weight.detach().clone(), inputs(layer)
    apart = layer(x)
    layer.eval()
    assert layer.merged and not layer.training
    assert torch.allclose(layer.weight.double(), before.double() + dense(layer), atol=1e-6)
    assert torch.allclose(layer(x), apart, atol=1e-5)
    layer.eval()
    assert torch.allclose(layer.weight.double(), before.double() + dense(layer), atol=1e-6), "merged once"
    layer.train()
    assert not layer.merged and torch.allclose(layer.weight, before, atol=1e-6)


@LIBS
@LAYERS
def test_merge_weights_false_never_merges(lib: ModuleType, name: str) -> None:
    layer = filled(make(lib, name, merge_weights=False))
    before, x = layer.weight.detach().clone(), inputs(layer)
    expected = layer(x)
    layer.eval()
    assert not layer.merged and torch.equal(layer.weight, before) and torch.equal(layer(x), expected)


@LAYERS
def test_names_shapes_first_values_and_random_state_are_the_originals(name: str) -> None:
    """A script with a seed starts from the same numbers after its import line was changed."""
    mine, state = make(ours, name), torch.get_rng_state()
    other = make(theirs, name)
    assert torch.equal(state, torch.get_rng_state())
    assert list(mine.state_dict()) == list(other.state_dict())
    for key, value in other.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value), key
    flags = [p.requires_grad for p in other.parameters()]
    assert [p.requires_grad for p in mine.parameters()] == flags


@LAYERS
def test_outputs_and_gradients_are_the_originals(name: str) -> None:
    mine, other = filled(make(ours, name)), filled(make(theirs, name))
    x = inputs(mine)
    out, wanted = mine(x), other(x)
    assert torch.allclose(out, wanted, atol=1e-5, rtol=1e-5)
    out.square().sum().backward(), wanted.square().sum().backward()
    for key, parameter in mine.named_parameters():
        own, judge = parameter.grad, other.get_parameter(key).grad
        assert (own is None) == (judge is None), key
        assert own is None or torch.allclose(own, judge, atol=1e-4, rtol=1e-4), key


@LAYERS
def test_state_dicts_load_strictly_both_ways(name: str) -> None:
    mine, other = filled(make(ours, name)), filled(make(theirs, name, seed=8), 9)
    judge = copy.deepcopy(other)
    x = inputs(mine)
    expected = mine(x)
    assert not any(other.load_state_dict(mine.state_dict()))
    assert torch.allclose(other(x), expected, atol=1e-5)
    assert not any(mine.load_state_dict(judge.state_dict()))
    assert torch.allclose(mine(x), judge(x), atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "Embedding", "MergedLinear"])
def test_arguments_are_the_originals(name: str) -> None:
    mine = inspect.signature(getattr(ours, name).__init__).parameters
    other = inspect.signature(getattr(theirs, name).__init__).parameters
    assert list(mine) == list(other)
    assert {k: v.kind for k, v in mine.items()} == {k: v.kind for k, v in other.items()}
    defaults = {k: v.default for k, v in other.items() if k != "enable_lora"}
    assert {k: v.default for k, v in mine.items() if k != "enable_lora"} == defaults


@LIBS
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_take_the_originals_arguments(lib: ModuleType, dims: int) -> None:
    layer = getattr(lib, f"Conv{dims}d")(4, 8, 1, 2, 6, 0.0, True, stride=2, bias=False)
    assert (layer.r, layer.lora_alpha, layer.scaling, layer.merge_weights) == (2, 6, 3.0, True)
    x = torch.randn(2, 4, *[5] * dims)
    assert layer(x).shape == (2, 8, *[3] * dims)
    with torch.no_grad():
        layer.lora_B.normal_()
    apart = layer(x)
    layer.eval()
    assert layer.merged and torch.allclose(layer(x), apart, atol=1e-5)
    layer.train()
    assert not layer.merged


@LIBS
def test_every_public_name_is_there(lib: ModuleType) -> None:
    names = ("Linear", "Embedding", "MergedLinear", "Conv1d", "Conv2d", "Conv3d", "ConvLoRA", "LoRALayer")
    assert all(inspect.isclass(getattr(lib, name)) for name in names)
    assert callable(lib.mark_only_lora_as_trainable) and callable(lib.lora_state_dict)
    layers = [lib.Linear(2, 2, r=1), lib.Embedding(2, 2, r=1), lib.MergedLinear(2, 2, r=1, enable_lora=[True])]
    assert all(isinstance(layer, lib.LoRALayer) for layer in [*layers, lib.Conv2d(2, 2, 1, r=1), lib.Linear(2, 2)])
    assert isinstance(layers[0], nn.Linear) and isinstance(layers[1], nn.Embedding) and isinstance(layers[2], nn.Linear)
    assert not isinstance(nn.Linear(2, 2), lib.LoRALayer)


def block(lib: ModuleType) -> nn.Module:
    """The README's attention: two projections adapted, one not, a norm and a head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = lib.Embedding(11, 8, r=2, lora_alpha=4)
            self.q_proj = lib.Linear(8, 8, r=2, lora_alpha=4)
            self.k_proj = nn.Linear(8, 8)
            self.v_proj = lib.Linear(8, 8, r=2, lora_alpha=4, lora_dropout=0.1)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 11)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            return self.head(self.norm(x + self.q_proj(x) * self.k_proj(x) + self.v_proj(x)))

    torch.manual_seed(2)
    return Block()


@LIBS
def test_the_quickstart(lib: ModuleType, tmp_path: Path) -> None:
    model = block(lib)
    torch.save(model.state_dict(), tmp_path / "pretrained.pt")
    lib.mark_only_lora_as_trainable(model)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {f"{layer}.lora_{x}" for layer in ("embed", "q_proj", "v_proj") for x in "AB"}
    frozen = {k: v.clone() for k, v in model.state_dict().items() if "lora_" not in k}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.randint(0, 11, (4, 6))
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten())
        losses.append(loss.item())
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in frozen.items())
    torch.save(lib.lora_state_dict(model), tmp_path / "lora.pt")
    expected = model.eval()(ids)
    again = block(lib)
    again.load_state_dict(torch.load(tmp_path / "pretrained.pt"), strict=False)
    result = again.load_state_dict(torch.load(tmp_path / "lora.pt"), strict=False)
    assert not result.unexpected_keys and len(torch.load(tmp_path / "lora.pt")) == 6
    assert torch.allclose(again.eval()(ids), expected, atol=1e-6)


@LIBS
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_biases(lib: ModuleType, bias: str) -> None:
    model = block(lib)
    lib.mark_only_lora_as_trainable(model, bias=bias)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {f"{layer}.lora_{x}" for layer in ("embed", "q_proj", "v_proj") for x in "AB"}
    own = {"q_proj.bias", "v_proj.bias"}
    every = own | {"k_proj.bias", "norm.bias", "head.bias"}
    assert names == factors | {"none": set(), "lora_only": own, "all": every}[bias]
    assert set(lib.lora_state_dict(model, bias=bias)) == names


@LIBS
def test_rank_zero_is_the_plain_layer(lib: ModuleType) -> None:
    for layer, base, x in (
        (lib.Linear(8, 6), nn.Linear(8, 6), torch.randn(2, 8)),
        (lib.Embedding(9, 5), nn.Embedding(9, 5), torch.tensor([1, 2])),
        (lib.MergedLinear(8, 6, enable_lora=[True, True]), nn.Linear(8, 6), torch.randn(2, 8)),
    ):
        assert layer.weight.requires_grad and "lora_A" not in layer.state_dict()
        layer.load_state_dict(base.state_dict())
        assert torch.equal(layer(x), base(x))
        layer.eval()
        assert torch.equal(layer(x), base(x)) and torch.equal(layer.weight, base.weight)


@LIBS
def test_the_gpt2_example(lib: ModuleType, tmp_path: Path) -> None:
    """A fused c_attn stored as (in, out), never merged, and a checkpoint as its DDP run writes it."""

    def attention() -> nn.Module:
        fused = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "fan_in_fan_out": True, "merge_weights": False}
        return nn.ModuleDict({"c_attn": lib.MergedLinear(16, 48, enable_lora=[True, False, True], **fused)})

    model = attention()
    assert model["c_attn"].weight.shape == (16, 48)
    assert model["c_attn"].lora_A.shape == (8, 16) and model["c_attn"].lora_B.shape == (32, 4)
    filled(model["c_attn"])
    stored = {f"module.{key}": value for key, value in lib.lora_state_dict(model).items()}
    torch.save({"model_state_dict": stored}, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt")["model_state_dict"]
    again = attention()
    again["c_attn"].weight.data.copy_(model["c_attn"].weight)
    again["c_attn"].bias.data.copy_(model["c_attn"].bias)
    again.load_state_dict({key.removeprefix("module."): value for key, value in state.items()}, strict=False)
    x = torch.randn(2, 5, 16)
    key = model["c_attn"](x)[..., 16:32]
    assert torch.equal(again["c_attn"](x), model["c_attn"](x))
    assert torch.allclose(key, F.linear(x, model["c_attn"].weight.t()[16:32], model["c_attn"].bias[16:32]), atol=1e-5)
