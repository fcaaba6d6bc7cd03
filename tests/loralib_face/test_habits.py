"""What code for the original does with its layers, and what differs on purpose: both libraries, side by side."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deltaw as dw
import deltaw.loralib as ours
from deltaw.errors import ConfigError

theirs = pytest.importorskip("loralib")
LIBS = pytest.mark.parametrize("lib", [theirs, ours], ids=["loralib", "deltaw"])


def filled(layer: Any) -> Any:
    with torch.no_grad():
        layer.lora_A.normal_(), layer.lora_B.normal_()
    return layer


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(lib: Any, **kwargs: Any) -> list[Any]:
    fused = lib.MergedLinear(8, 6, r=2, enable_lora=[True, False], **kwargs)
    return [filled(lib.Linear(8, 6, r=2, **kwargs)), filled(fused)]


@LIBS
def test_a_dropout_in_another_s_place_drops(lib: Any) -> None:
    """It was skipped by the fused step, in silence."""
    x = torch.randn(4, 8)
    for layer in layers(lib):
        assert torch.equal(layer(x), layer(x))
        layer.lora_dropout = nn.Dropout(0.5)
        assert not torch.equal(layer(x), layer(x))
    for layer in layers(lib):
        layer.lora_dropout = lambda x: x * 0
        assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@LIBS
def test_every_dropout_of_a_model_is_switched_off_by_its_class(lib: Any) -> None:
    x = torch.randn(4, 8)
    for layer in layers(lib, lora_dropout=0.5):
        assert not torch.equal(layer(x), layer(x))
        for module in layer.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0
        assert torch.equal(layer(x), layer(x))


@LIBS
def test_numbers_may_be_numpy_s(lib: Any) -> None:
    """As they come out of a table of settings; and the checkpoint stays one of tensors and plain values."""
    for layer in (
        filled(lib.Linear(8, 6, r=np.int64(2), lora_alpha=np.float32(6), lora_dropout=np.float32(0.0))),
        filled(lib.Linear(8, 6, r=2, lora_alpha=np.int64(6), lora_dropout=np.float64(0.0))),
    ):
        assert layer.scaling == 3 and layer.r == 2 and layer.lora_A.shape == (2, 8)
        buffer = io.BytesIO()
        torch.save(lib.lora_state_dict(layer), buffer)
        buffer.seek(0)
        assert not layer.load_state_dict(torch.load(buffer, weights_only=True), strict=False).unexpected_keys
        layer(torch.randn(2, 8)).sum().backward()
        assert layer.lora_A.grad.any()


class Own(nn.Module):
    """A layer that a user wrote after the original's, without its mark."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))
        self.register_buffer("lora_mask", torch.ones(4))
        self.register_buffer("lora_seen", torch.ones(4), persistent=False)


@LIBS
def test_layers_that_a_user_wrote_are_trained_and_stored(lib: Any) -> None:
    """They were frozen, and left out of the file."""
    for model in (nn.Sequential(Own()), nn.Sequential(Own(), lib.Linear(4, 4, r=2))):
        lib.mark_only_lora_as_trainable(model)
        names = {f"{i}.lora_{x}" for i in range(len(model)) for x in "AB"}
        assert trained(model) == names and set(lib.lora_state_dict(model)) == names | {"0.lora_mask"}


def test_frozen_factors_of_the_core_are_stored_beside_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    dw.attach(model, dw.LoRAConfig(targets=["0"], rank=2, variant="lora_fa"))
    assert {key.rpartition(".")[2] for key in ours.lora_state_dict(model)} == {"lora_A", "lora_B"}


def test_a_rank_of_zero_while_merged_gives_the_base() -> None:
    """The original leaves the update in the weight then, and never takes it off again."""
    x = torch.randn(2, 8)
    for lib, right in ((theirs, False), (ours, True)):
        layer = layers(lib)[0]
        base = layer.weight.detach().clone()
        layer.eval()
        layer.r = 0
        plain = nn.functional.linear(x, base, layer.bias)
        assert torch.allclose(layer(x), plain, atol=1e-5) is right
        layer.train()
        assert torch.equal(layer.weight, base) is right


# what differs on purpose; docs/loralib.md tells each


def test_settings_that_train_nothing_are_refused() -> None:
    x = torch.randn(4, 8)
    for settings in ({"lora_alpha": 0}, {"lora_dropout": 1.0}):
        layer = filled(theirs.Linear(8, 6, r=2, **settings))
        layer(x).sum().backward()
        assert not layer.lora_A.grad.any() and not layer.lora_B.grad.any(), "no gradient ever, in silence"
        with pytest.raises(ConfigError, match=next(iter(settings))):
            ours.Linear(8, 6, r=2, **settings)
    assert "lora_A" not in theirs.Linear(8, 6, r=-2).state_dict()
    with pytest.raises(ConfigError, match="whole number"):
        ours.Linear(8, 6, r=-2)


def test_factors_that_were_frozen_are_trained_again() -> None:
    for lib, names in ((theirs, set()), (ours, {"0.lora_A", "0.lora_B"})):
        model = nn.Sequential(lib.Linear(4, 4, r=2)).requires_grad_(False)
        lib.mark_only_lora_as_trainable(model)
        assert trained(model) == names


def test_lora_only_means_the_same_for_training_and_storing() -> None:
    """The original trains the bias of a layer without factors and does not store it; a convolution's, neither."""
    for lib, right in ((theirs, False), (ours, True)):
        model = nn.Sequential(lib.Linear(2, 2), lib.Linear(2, 2, r=1), lib.Conv2d(2, 2, 1, r=1))
        lib.mark_only_lora_as_trainable(model, bias="lora_only")
        assert (trained(model) == set(lib.lora_state_dict(model, bias="lora_only"))) is right
        assert ("2.bias" in trained(model)) is right and ("0.bias" in trained(model)) is not right


def test_max_norm_bounds_the_sum_and_leaves_the_table_alone() -> None:
    ids = torch.tensor([1, 2])
    for lib, right in ((theirs, False), (ours, True)):
        torch.manual_seed(0)
        layer = filled(lib.Embedding(5, 4, r=2, max_norm=1.0))
        table, factor = layer.weight.detach().clone(), layer.lora_A.detach().clone()
        assert bool((layer(ids).norm(dim=1) <= 1 + 1e-5).all()) is right
        assert (torch.equal(layer.weight, table) and torch.equal(layer.lora_A, factor)) is right


def test_a_sparse_table_can_be_trained() -> None:
    for lib, right in ((theirs, False), (ours, True)):
        layer = filled(lib.Embedding(5, 4, r=2, sparse=True))
        out = layer(torch.tensor([1, 2])).sum()
        if right:
            out.backward()
            assert layer.lora_A.grad[:, 1:3].any() and not layer.lora_A.grad[:, 3:].any()
        else:
            with pytest.raises(RuntimeError, match="sparse"):
                out.backward()


def test_a_rank_that_groups_do_not_share_is_refused_by_default() -> None:
    x = torch.randn(1, 8, 4, 4)
    assert theirs.Conv2d(8, 8, 3, r=2, groups=8)(x).shape == (1, 8, 2, 2)
    with pytest.raises(ConfigError, match="reshaped=True"):
        ours.Conv2d(8, 8, 3, r=2, groups=8)
    assert ours.Conv2d(8, 8, 3, r=2, groups=8, reshaped=True)(x).shape == (1, 8, 2, 2)


def test_a_weight_stored_the_other_way_round_is_contiguous() -> None:
    assert not theirs.Linear(8, 6, r=2, fan_in_fan_out=True).weight.is_contiguous()
    assert ours.Linear(8, 6, r=2, fan_in_fan_out=True).weight.is_contiguous()
