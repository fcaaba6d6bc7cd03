"""ConvLoRA over a class that the caller names, as in the original, and its ``conv``.

What both libraries must do takes ``lib``; the values are checked in float64, independently of either.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from face_values import filled
from torch import Tensor, nn

import deltaw.loralib as ours
from deltaw.errors import ConfigError, StateError, TargetError

theirs = pytest.importorskip("loralib")
LIBS = pytest.mark.parametrize("lib", [theirs, ours], ids=["loralib", "deltaw"])
BASES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Initialized(nn.Conv2d):
    """A class of the user's own that sets its values otherwise, and takes other arguments."""

    def __init__(self, *args: Any, gain: float = 2.0, **kwargs: Any) -> None:
        self.gain = gain
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Extended(ours.ConvLoRA):
    """As the original's source says: can be extended to others like this."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(Initialized, *args, **kwargs)


class Strange(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Padded(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


def hooked(*args: Any, **kwargs: Any) -> nn.Module:
    layer = nn.Conv2d(*args, **kwargs)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    return layer


@LIBS
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_class_is_named_by_the_caller(lib: Any, dims: int) -> None:
    """The original's own runs: one and three axes with a kernel of 1 (BUG3)."""
    kernel = 3 if dims == 2 else 1
    x = torch.randn(2, 4, *[5] * dims)
    layer = filled(lib.ConvLoRA(BASES[dims], 4, 8, kernel, 2, 6, 0.0, True, stride=2, bias=False))
    named = lib.ConvLoRA(
        conv_module=BASES[dims], in_channels=4, out_channels=8, kernel_size=kernel, r=2, lora_alpha=6,
        lora_dropout=0.0, merge_weights=True, stride=2, bias=False,
    )  # fmt: skip
    named.load_state_dict(layer.state_dict())
    assert torch.equal(named(x), layer(x)) and layer(x).shape[:3] == (2, 8, 2 if kernel == 3 else 3)
    assert (layer.r, layer.lora_alpha, layer.scaling, layer.merge_weights, layer.merged) == (2, 6, 3.0, True, False)
    apart = layer(x)
    layer.eval()
    assert layer.merged and torch.allclose(layer(x), apart, atol=1e-5)
    layer.train()
    assert not layer.merged and torch.allclose(layer(x), apart, atol=1e-5)


@LIBS
def test_which_classes_the_layers_are_of(lib: Any) -> None:
    for dims, base in BASES.items():
        cls = getattr(lib, f"Conv{dims}d")
        assert issubclass(cls, lib.ConvLoRA) and issubclass(cls, lib.LoRALayer) and issubclass(cls, nn.Module)
        layer = lib.ConvLoRA(base, 2, 2, 1, r=1)
        assert isinstance(layer, lib.ConvLoRA) and isinstance(layer, lib.LoRALayer)
        assert not isinstance(layer, (lib.Conv1d, lib.Conv2d, lib.Conv3d)) and type(layer).__name__ == "ConvLoRA"
        assert isinstance(layer.conv, base) and not isinstance(layer.conv, lib.LoRALayer)
        assert isinstance(cls(2, 2, 1, r=1).conv, base)


CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "one axis": (nn.Conv1d, (4, 8, 3), {"padding": 1}, (2, 4, 7)),
    "three axes": (nn.Conv3d, (2, 4, 2), {"padding_mode": "circular", "padding": 1}, (1, 2, 3, 4, 3)),
    "a kernel that is not square": (nn.Conv2d, (4, 8, (3, 1)), {"stride": (1, 2)}, (2, 4, 6, 6)),
    "groups": (nn.Conv2d, (4, 8, 3), {"groups": 2, "dilation": 2}, (2, 4, 6, 6)),
    "groups, one axis": (nn.Conv1d, (4, 8, 2), {"groups": 2, "bias": False}, (2, 4, 6)),
    "a class of the user's": (Initialized, (4, 8, 3), {"gain": 0.5}, (4, 6, 6)),
    "a callable": (functools.partial(nn.Conv2d, padding="same"), (4, 8, 3), {}, (2, 4, 6, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_of_convolutions(case: str) -> None:
    """Train, eval and train again against a convolution with W + s B A of each group, in float64 (BUG3 to BUG6)."""
    conv_module, args, kwargs, shape = CASES[case]
    layer = filled(ours.ConvLoRA(conv_module, *args, r=2, lora_alpha=6, **kwargs))
    x, groups = torch.randn(shape), layer.groups
    rank, rows = layer.lora_A.shape[0] // groups, layer.out_channels // groups
    A, B = layer.lora_A.detach().double().flatten(1), layer.lora_B.detach().double().flatten(1)
    update = torch.cat([B[g * rows : (g + 1) * rows] @ A[g * rank : (g + 1) * rank] for g in range(groups)])
    base, bias = layer.weight.detach().clone(), layer.bias
    weight = base.double() + 3 * update.view(base.shape)
    wide = layer._conv_forward(x.double(), weight, None if bias is None else bias.double())
    assert layer.lora_A.numel() + layer.lora_B.numel() == 2 * (base[0].numel() + layer.out_channels // groups)
    assert torch.allclose(layer(x).double(), wide, atol=1e-4)
    assert layer.eval() is layer and layer.merged and torch.allclose(layer.weight.double(), weight, atol=1e-5)
    assert torch.allclose(layer(x).double(), wide, atol=1e-4)
    assert torch.equal(layer.train().weight, base) and not layer.merged
    layer(x).sum().backward()
    assert layer.lora_A.grad.any() and layer.lora_B.grad.any() and layer.weight.grad is None
    assert torch.equal(layer.conv(x), layer._conv_forward(x, base, bias))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("cls", [ours.ConvLoRA, Extended], ids=["ConvLoRA", "of the user's"])
def test_copies_and_pickles_of_layers_made_at_run_time(cls: Any, merged: bool) -> None:
    args = (nn.Conv2d, 4, 8, 3) if cls is ours.ConvLoRA else (4, 8, 3)
    model = nn.Sequential(filled(cls(*args, r=2, lora_alpha=6, lora_dropout=0.1))).train(not merged)
    x = torch.randn(2, 4, 6, 6)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert type(again[0]) is type(model[0]) and again[0].merged is merged
        model.eval(), again.eval()
        assert torch.equal(again(x), model(x))
        assert torch.equal(again.train()[0].weight, model.train()[0].weight)


def test_a_layer_of_the_users_own_class() -> None:
    """Its class, its arguments and its first values are kept, and detach gives the very class back."""
    layer = ours.ConvLoRA(Initialized, 4, 8, 3, r=2, gain=0.5)
    assert isinstance(layer, Initialized) and layer.gain == 0.5 and (layer.weight == 0.5).all()
    assert isinstance(Extended(4, 8, 3, r=2), (Extended, Initialized)) and (Extended(4, 8, 3).weight == 2).all()
    model, x = nn.Sequential(filled(layer)), torch.randn(1, 4, 6, 6)
    expected, weight = model(x), layer.weight
    assert ours.detach(model, merged=True).paths == ("0",)
    assert type(model[0]) is Initialized and model[0].weight is weight and torch.allclose(model(x), expected, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("conv_module", "words"),
    [
        (nn.ConvTranspose2d, "ConvTranspose2d"),
        (nn.Linear, "Linear"),
        (functools.partial(nn.ConvTranspose2d, bias=False), "ConvTranspose2d"),
        (Strange, "Strange, with a forward of its own"),
        (Padded, "Padded, with a forward of its own"),
        (ours.Conv2d, "Conv2d, with a forward of its own"),
        (hooked, "hooks"),
        (nn.Conv2d(4, 8, 3), "from_base"),
        (4, "object of int"),
        ("Conv2d", "object of str"),
    ],
    ids=[
        "transposed", "linear", "a transposed partial", "own forward", "own padding", "ours", "hooked", "an object",
        "a number", "a name",
    ],
)  # fmt: skip
def test_what_cannot_be_a_convolution(conv_module: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        ours.ConvLoRA(conv_module, 4, 8, 3, r=2)


def test_the_original_has_no_meaning_for_these() -> None:
    """Why they are refused: no output at all, or one that is of another forward in training than in evaluation."""
    x = torch.randn(1, 4, 6, 6)
    assert theirs.ConvLoRA(nn.ConvTranspose2d, 4, 8, 3, r=2)(x) is None
    for strange in (Strange, hooked):
        layer = theirs.ConvLoRA(strange, 4, 8, 3, r=2)
        before = layer(x)
        layer.eval()
        assert not torch.allclose(layer(x), before, atol=1e-2)


def test_settings_of_a_named_class_are_checked_as_those_of_the_others() -> None:
    for wrong, words in (({"r": 3, "groups": 2}, "multiple of 2"), ({"r": -1}, "whole number"),
                         ({"r": 2, "lora_dropout": 2.0}, "probability")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            ours.ConvLoRA(nn.Conv2d, 4, 8, 3, **wrong)
    with pytest.raises(ConfigError, match="reshaped"):
        ours.ConvLoRA(nn.Conv1d, 4, 8, 3, r=2, reshaped=True)
    plain = ours.ConvLoRA(nn.Conv2d, 4, 8, 3)
    assert set(plain.state_dict()) == {"weight", "bias"} and plain.weight.requires_grad


# the convolution inside


def both() -> list[Any]:
    """A layer of each library, and one that was made around a convolution."""
    around = ours.Conv2d.from_base(nn.Conv2d(4, 8, 3), r=2, lora_alpha=4)
    return [filled(lib.Conv2d(4, 8, 3, r=2, lora_alpha=4)) for lib in (theirs, ours)] + [filled(around)]


@pytest.mark.parametrize("index", range(3), ids=["loralib", "deltaw", "deltaw around"])
def test_pretrained_values_come_in_through_conv(index: int) -> None:
    """Every way to fill a layer of the original with the values of a convolution that was trained before."""
    x = torch.randn(2, 4, 6, 6)

    def data(layer: Any, source: nn.Conv2d) -> None:
        layer.conv.weight.data.copy_(source.weight)
        layer.conv.bias.data = source.bias.data.clone()

    def assigned(layer: Any, source: nn.Conv2d) -> None:
        layer.conv.weight, layer.conv.bias = source.weight, source.bias

    def loaded(layer: Any, source: nn.Conv2d) -> None:
        assert not any(layer.conv.load_state_dict(source.state_dict()))

    def whole(layer: Any, source: nn.Conv2d) -> None:
        layer.conv = source

    for way in (data, assigned, loaded, whole):
        layer, source = both()[index], nn.Conv2d(4, 8, 3)
        update = layer(x) - layer.conv(x)
        assert update.abs().max() > 1
        way(layer, source)
        expected = (source(x) + update).detach()
        assert torch.equal(layer.conv(x), source(x)) and torch.allclose(layer(x), expected, atol=1e-4)
        assert torch.equal(layer.conv.weight, source.weight) and layer.conv.bias is not None
        assert layer.conv.in_channels == 4 and layer.conv.kernel_size == (3, 3) and layer.conv.stride == (1, 1)
        assert (layer.conv.weight is source.weight) is (way in (assigned, whole))
        layer.eval()
        assert torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize("index", range(3), ids=["loralib", "deltaw", "deltaw around"])
def test_settings_change_through_conv(index: int) -> None:
    layer, x = both()[index], torch.randn(2, 4, 6, 6)
    layer.conv.stride = (2, 2)
    layer.conv.note = "first"
    assert layer(x).shape == (2, 8, 2, 2) and layer.conv.stride == (2, 2) and layer.conv.note == "first"
    layer.conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    assert layer(x).shape == (2, 8, 6, 6) and layer.conv.bias is None
    assert {name for name, _ in layer.named_parameters()} <= {"lora_A", "lora_B", "conv.weight", "weight"}
    layer.conv.eval()
    assert layer.training
    layer.conv = layer.conv
    assert layer(x).shape == (2, 8, 6, 6)


def test_conv_of_a_merged_layer_is_the_base() -> None:
    """Read or loaded while merged, it is the weight without the update; the original's holds the sum."""
    for layer in both()[1:]:
        base = layer.weight.detach().clone()
        layer.eval()
        assert layer.merged and torch.equal(layer.conv.state_dict()["weight"], base)
        assert layer.conv.weight is layer.weight and not torch.equal(layer.weight, base)
        for way in ("load", "put"):
            other = nn.Conv2d(4, 8, 3)
            expected = other.weight.detach().clone()
            if way == "load":
                layer.conv.load_state_dict(other.state_dict())
            else:
                layer.conv = other
            assert layer.merged and torch.equal(layer.conv.state_dict()["weight"], expected)
            assert torch.equal(layer.train().weight, expected) and layer.eval().merged
        assert layer.weight is other.weight


def test_what_would_be_lost_on_conv_is_refused() -> None:
    layer = both()[1]
    for call in (
        lambda: layer.conv.register_forward_hook(lambda *_: None),
        lambda: layer.conv.register_buffer("scale", torch.ones(1)),
        lambda: setattr(layer.conv, "forward", lambda x: x),
        lambda: nn.utils.parametrizations.weight_norm(layer.conv),
    ):
        with pytest.raises(StateError, match="on the layer itself"):
            call()
    for other in (nn.Conv2d(4, 8, 5), nn.Conv2d(2, 8, 3), nn.Conv1d(4, 8, 3), nn.Linear(4, 8), None,
                  nn.Conv2d(4, 8, 3, groups=2), hooked(4, 8, 3)):  # fmt: skip
        with pytest.raises(TargetError):
            layer.conv = other
    assert set(dict(layer.named_modules())) == {""}, "and nothing was registered"
    assert torch.isfinite(layer(torch.randn(1, 4, 6, 6))).all()


def test_one_layers_conv_in_another() -> None:
    """A new rank around the same kernel, as code for the original does it."""
    for old in both()[1:]:
        new = ours.Conv2d(4, 8, 3, r=4)
        new.conv = old.conv
        assert new.weight is old.weight and new.bias is old.bias
        x = torch.randn(1, 4, 6, 6)
        assert torch.equal(new(x), old.conv(x)) and torch.equal(copy.deepcopy(old.conv)(x), old.conv(x))
        model = nn.Sequential(new)
        ours.detach(model)
        assert type(model[0]) is nn.Conv2d and torch.equal(model(x), old.conv(x))
