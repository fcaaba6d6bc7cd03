"""loralib's state dicts: every layer type of the original package, against its own forward written out here."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from formats_for_tests import close, delta, filled, linears, skeleton, value, write
from torch import Tensor, nn
from torch.nn import functional as F

import deltaw as dw
from deltaw.errors import CheckpointError, ConfigError
from deltaw.ship.formats import open_any

ALPHA = 6.0


def merged_delta(lora_A: Tensor, lora_B: Tensor, enable: tuple[bool, ...], out: int, scaling: float) -> Tensor:
    """MergedLinear as the original computes it: a grouped convolution, padded with zeros."""
    product = F.conv1d(lora_A.double()[None], lora_B.double()[..., None], groups=sum(enable))[0]
    mask = torch.zeros(len(enable), out // len(enable), dtype=torch.bool)
    mask[list(enable)] = True
    whole = torch.zeros(out, lora_A.shape[1], dtype=torch.float64)
    whole[mask.flatten()] = product
    return whole * scaling


@pytest.mark.parametrize("wrap", ["plain", "module.", "model_state_dict", "state_dict"])
def test_linear_in_every_wrapper(tmp_path: Path, wrap: str) -> None:
    tensors = filled({"enc.0.query.lora_A": (3, 8), "enc.0.query.lora_B": (4, 3)})
    model = linears({"enc.0.query": (4, 8), "enc.0.value": (4, 8)})
    expected = ALPHA / 3 * tensors["enc.0.query.lora_B"].double() @ tensors["enc.0.query.lora_A"].double()
    if wrap == "module.":
        tensors = {f"module.{key}": tensor for key, tensor in tensors.items()}
    stored = tensors if wrap in ("plain", "module.") else {wrap: tensors, "epoch": 3}
    torch.save(stored, tmp_path / "lora.pt")
    adapter = open_any(tmp_path / "lora.pt", model=model, alpha=ALPHA)
    assert adapter.modules() == ["enc.0.query"]
    assert close(delta(adapter, "enc.0.query"), expected)
    # values are taken bit for bit; only the scaling is written beside them
    assert torch.equal(adapter.factors("enc.0.query")[0], filled({"enc.0.query.lora_A": (3, 8)})["enc.0.query.lora_A"])
    assert adapter.config.rank == 3 and adapter.config.alpha == ALPHA


def test_embedding_is_told_apart_by_the_model(tmp_path: Path) -> None:
    tensors = filled({"wte.lora_A": (2, 7), "wte.lora_B": (5, 2)})
    path = write(tmp_path / "lora.pt", tensors)
    model = skeleton({"wte": nn.Embedding(7, 5)})
    adapter = open_any(path, model=model, alpha=ALPHA)
    assert sorted(key.rpartition("wte")[2] for key in adapter.tensors) == [".lora_embedding_A", ".lora_embedding_B"]
    adapter.save(tmp_path / "out")
    dw.load(model, tmp_path / "out")
    ids = torch.tensor([0, 3, 6])
    table = model.get_parameter("wte.weight").double()
    looked_up = F.embedding(ids, tensors["wte.lora_A"].double().t()) @ tensors["wte.lora_B"].double().t()
    assert torch.allclose(model.get_submodule("wte")(ids).double(), table[ids] + ALPHA / 2 * looked_up, atol=1e-5)


@pytest.mark.parametrize("enable", [(True, False, True), (False, True, False), (True, True, False)])
def test_merged_linear(tmp_path: Path, enable: tuple[bool, ...]) -> None:
    number = sum(enable)
    tensors = filled({"attn.lora_A": (2 * number, 6), "attn.lora_B": (4 * number, 2)})
    path = write(tmp_path / "lora.pt", tensors)
    expected = merged_delta(tensors["attn.lora_A"], tensors["attn.lora_B"], enable, 12, ALPHA / 2)
    for model in (linears({"attn": (12, 6)}), None) if number > 1 else (linears({"attn": (12, 6)}),):
        adapter = open_any(path, model=model, alpha=ALPHA, enable=enable)
        assert adapter.factors("attn")[0].shape[0] == 2 * number
        assert close(delta(adapter, "attn"), expected)


def test_merged_linear_with_every_part_needs_no_word(tmp_path: Path) -> None:
    tensors = filled({"attn.lora_A": (6, 6), "attn.lora_B": (12, 2)})
    adapter = open_any(write(tmp_path / "lora.pt", tensors), model=linears({"attn": (12, 6)}), alpha=ALPHA)
    expected = merged_delta(tensors["attn.lora_A"], tensors["attn.lora_B"], (True,) * 3, 12, ALPHA / 2)
    assert close(delta(adapter, "attn"), expected)


def test_transposed_layers_take_the_same_factors(tmp_path: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    tensors = filled({"h.0.c_attn.lora_A": (4, 6), "h.0.c_attn.lora_B": (12, 2)})
    model = skeleton({"h.0.c_attn": Conv1D(18, 6)})
    adapter = open_any(write(tmp_path / "lora.pt", tensors), model=model, alpha=ALPHA, enable="q,v")
    wanted = merged_delta(*(tensors[f"h.0.c_attn.lora_{x}"] for x in "AB"), (True, False, True), 18, 3.0)
    assert close(delta(adapter, "h.0.c_attn"), wanted)
    assert adapter.raw["fan_in_fan_out"] is True


@pytest.mark.parametrize(("inside", "out", "kernel", "groups", "rank"), [
    (4, 40, 3, 1, 2), (4, 8, 3, 1, 2), (4, 8, 1, 1, 2), (4, 8, 3, 2, 1), (6, 6, 1, 3, 2),
])  # fmt: skip
def test_convolution(tmp_path: Path, inside: int, out: int, kernel: int, groups: int, rank: int) -> None:
    layer = nn.Conv2d(inside, out, kernel, groups=groups, bias=False)
    tensors = filled({
        "conv.lora_A": (rank * kernel, inside * kernel), "conv.lora_B": (out // groups * kernel, rank * kernel)
    })  # fmt: skip
    adapter = open_any(write(tmp_path / "lora.pt", tensors), model=skeleton({"conv": layer}), alpha=ALPHA)
    product = tensors["conv.lora_B"].double() @ tensors["conv.lora_A"].double()
    expected = product.view(layer.weight.shape) * (ALPHA / rank)
    assert close(delta(adapter, "conv").view(expected.shape), expected, 1e-6)
    worn, x = skeleton({"conv": layer}).eval(), value("x", 1, inside, 5, 5)
    merged = F.conv2d(x.double(), layer.weight.double() + expected, groups=groups)
    dw.load(worn, adapter)
    assert close(layer(x).detach(), merged.detach(), 1e-5)


def test_heads_and_biases_saved_beside(tmp_path: Path) -> None:
    model = skeleton({
        "enc.query": nn.Linear(4, 4), "enc.norm": nn.LayerNorm(4),
        "classifier": nn.Sequential(OrderedDict(dense=nn.Linear(4, 4), out_proj=nn.Linear(4, 3))),
    })  # fmt: skip
    tensors = filled({"enc.query.lora_A": (2, 4), "enc.query.lora_B": (4, 2), "enc.query.bias": (4,)})
    tensors |= {
        f"classifier.{k}": value(k, *v.shape) for k, v in model.get_submodule("classifier").state_dict().items()
    }
    adapter = open_any(write(tmp_path / "lora.bin", tensors), model=model, alpha=ALPHA)
    assert adapter.raw["modules_to_save"] == ["classifier"] and adapter.raw["bias"] == "lora_only"
    adapter.save(tmp_path / "out")
    dw.load(model, tmp_path / "out")
    x = value("x", 2, 4)
    base = model.get_submodule("enc.query")
    weight = (
        base.weight.double() + ALPHA / 2 * tensors["enc.query.lora_B"].double() @ tensors["enc.query.lora_A"].double()
    )
    assert torch.allclose(base(x).double(), x.double() @ weight.t() + tensors["enc.query.bias"].double(), atol=1e-5)
    for name in ("dense", "out_proj"):
        x = F.linear(x, tensors[f"classifier.{name}.weight"], tensors[f"classifier.{name}.bias"])
    assert torch.allclose(model.get_submodule("classifier")(value("x", 2, 4)), x)


def test_all_biases(tmp_path: Path) -> None:
    model = skeleton({"q": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    tensors = filled({"q.lora_A": (2, 4), "q.lora_B": (4, 2), "q.bias": (4,), "norm.bias": (4,)})
    adapter = open_any(write(tmp_path / "lora.bin", tensors), model=model, alpha=ALPHA)
    assert adapter.raw["bias"] == "all"
    assert {"base_model.model.q.base_layer.bias", "base_model.model.norm.bias"} <= adapter.tensors.keys()


def test_a_whole_checkpoint_is_refused_unless_only_the_updates_are_wanted(tmp_path: Path) -> None:
    tensors = filled({"q.lora_A": (2, 4), "q.lora_B": (4, 2), "q.weight": (4, 4), "norm.weight": (4,)})
    path = write(tmp_path / "lora.bin", tensors)
    model = skeleton({"q": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(CheckpointError, match="checkpoint of the whole model"):
        open_any(path, model=model, alpha=ALPHA)
    assert open_any(path, model=model, alpha=ALPHA, lora_only=True).modules() == ["q"]


def test_without_a_model_the_assumption_is_said(tmp_path: Path) -> None:
    from deltaw.ship.formats import Ask, read_any

    path = write(tmp_path / "lora.bin", filled({"q.lora_A": (2, 4), "q.lora_B": (4, 2)}))
    found = read_any(path, Ask(alpha=ALPHA))
    assert any("taken as a Linear's" in note for note in found.notes)
    assert found.adapter.raw["target_modules"] == ["q"]


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "lora.bin", filled({"q.lora_A": (2, 4), "q.lora_B": (4, 2)}))
    for said in ({"enable": "q,v"}, {"part": "unet"}, {"lora_only": True}):
        with pytest.raises(ConfigError, match="changes nothing"):
            open_any(path, model=linears({"q": (4, 4)}), alpha=ALPHA, **said)  # type: ignore[arg-type]
