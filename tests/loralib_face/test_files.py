"""Checkpoints: the original's layouts read and written, what they do not say asked for, misfits refused as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deltaw.loralib as lora
from deltaw.errors import CheckpointError, ConfigError, TargetError
from deltaw.ship.formats import open_any


class Net(nn.Module):
    """Every kind of layer, a norm and a head that is trained."""

    def __init__(self, alpha: float = 6, r: int = 2, seed: int = 0, **kwargs: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        own = {"r": r, "lora_alpha": alpha, **kwargs}
        self.embed = lora.Embedding(11, 8, **own)
        self.query = lora.Linear(8, 8, **own)
        self.c_attn = lora.MergedLinear(8, 24, enable_lora=[True, False, True], fan_in_fan_out=True, **own)
        self.conv = lora.Conv1d(8, 8, 3, padding=1, **own)
        self.norm = nn.LayerNorm(8)
        self.classifier = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.query(x) + self.c_attn(x)[..., 16:]
        return self.classifier(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)))


LAYERS = ("embed", "query", "c_attn", "conv")
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def trained(seed: int = 1, **kwargs: Any) -> Net:
    model = Net(**kwargs)
    generator = torch.Generator().manual_seed(seed)
    lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.classifier[1].weight.add_(0.1 * seed)
    return model


def untouched(model: nn.Module, call: Callable[[], Any]) -> CheckpointError:
    """The refusal, and that it wrote nothing."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        call()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(caught.value).splitlines()[-1].startswith("hint: ")
    return caught.value


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.safetensors"])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("onto_merged", [False, True])
def test_save_and_load(tmp_path: Path, name: str, merged: bool, onto_merged: bool) -> None:
    model = trained().train(not merged)
    report = lora.save(model, tmp_path / name, also=["classifier"], bias="lora_only")
    factors = [p for k, p in model.named_parameters() if "lora_" in k]
    assert (report.tensors, report.values, report.others) == (8, sum(p.numel() for p in factors), 7)
    assert report.bytes == (tmp_path / name).stat().st_size
    other = Net().train(not onto_merged)
    loaded = lora.load(other, tmp_path / name)
    assert (loaded.tensors, loaded.values, len(loaded.others)) == (report.tensors, report.values, 7)
    assert loaded.layers == 4 and loaded.alphas == (6.0,) and not loaded.notes and not loaded.left
    assert torch.equal(other.eval()(IDS), model.eval()(IDS))
    other.train(), model.train()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())
    text = str(loaded)
    assert "8 LoRA tensors" in text and "and 7 others" in text and "lora_alpha 6" in text and "4 layers" in text


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_originals_layouts(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    """What is written is what its scripts read, key for key; what they write is read, once alpha is said."""
    model, path = trained(), tmp_path / "lora.pt"
    lora.save(model, path, also=["classifier"], wrapped=wrapped, prefix=prefix)
    stored = torch.load(path, weights_only=True)
    stored = stored["model_state_dict"] if wrapped else stored
    expected = {f"{layer}.lora_{x}" for layer in LAYERS for x in "AB"}
    expected |= {f"classifier.{key}" for key in model.classifier.state_dict()}
    assert set(stored) == {prefix + key for key in expected}
    other = Net()
    assert lora.load(other, path).alphas == (6.0,)
    assert torch.equal(other.eval()(IDS), model.eval()(IDS))
    bare = dict(stored)  # a plain dict says nothing of alpha, as the original's
    torch.save({"model_state_dict": bare, "epoch": 3} if wrapped else bare, path)
    again = Net()
    error = untouched(again, lambda: lora.load(again, path))
    assert error.what == "the file does not say its alpha" and "alpha=NUMBER" in error.hint
    report = lora.load(again, path, alpha=6)
    assert torch.equal(again.eval()(IDS), model(IDS))
    assert any("nothing of its base" in note for note in report.notes)
    assert any("which projections are on is not in the file" in note for note in report.notes)
    assert any("epoch" in note for note in report.notes) is wrapped


def test_the_original_reads_our_files(tmp_path: Path) -> None:
    theirs = pytest.importorskip("loralib")
    model = nn.Sequential(lora.Linear(8, 6, r=2, lora_alpha=4))
    nn.init.normal_(model[0].lora_B)
    lora.save(model, tmp_path / "lora.pt")
    judge = nn.Sequential(theirs.Linear(8, 6, r=2, lora_alpha=4))
    judge.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" not in k}, strict=False)
    assert not judge.load_state_dict(torch.load(tmp_path / "lora.pt"), strict=False).unexpected_keys
    x = torch.randn(3, 8)
    assert torch.allclose(judge(x), model(x), atol=1e-6)


def test_a_directory_of_peft_is_one_command_away(tmp_path: Path) -> None:
    """Converted, a file that this face wrote needs no word on alpha or on the enabled parts."""
    model = trained()
    for name in ("lora.pt", "lora.safetensors"):
        lora.save(model, tmp_path / name, also=["classifier"])
        adapter = open_any(tmp_path / name, model=Net(r=0))
        deltas = {path: adapter.delta(path) for path in adapter.modules()}
        assert set(deltas) == set(LAYERS)
        for path, update in deltas.items():
            layer: Any = model.get_submodule(path)
            base = layer.weight.detach().clone()
            layer.eval()
            changed = layer.weight.detach() - base
            changed = changed.t() if path in ("c_attn", "embed") else changed.flatten(1)
            layer.train()
            assert torch.allclose(update.flatten(1).float(), changed, atol=1e-4), path
        with pytest.raises(ConfigError, match="alpha"):
            open_any(tmp_path / name, model=Net(r=0), alpha=3)


@pytest.mark.parametrize("name", ["lora.pt", "lora.safetensors"])
def test_settings_that_differ_are_refused(tmp_path: Path, name: str) -> None:
    model, path = trained(alpha=6), tmp_path / name
    lora.save(model, path)
    for other, alpha, words in (
        (Net(alpha=8), None, ["lora_alpha=8.0 in the layer, 6.0 in the file", "with that lora_alpha"]),
        (Net(alpha=6), 8, ["lora_alpha=6.0 in the file, 8 as you say"]),
    ):
        text = str(untouched(other, lambda other=other, alpha=alpha: lora.load(other, path, alpha=alpha)))
        assert all(word in text for word in words), text
    swapped = Net(alpha=6)
    swapped.c_attn.enable_lora = [True, True, False]
    text = str(untouched(swapped, lambda: lora.load(swapped, path)))
    assert "enable_lora=[True, True, False] in the layer, [True, False, True] in the file" in text
    silent = tmp_path / "plain.pt"
    torch.save(dict(lora.lora_state_dict(model)), silent)
    other = Net(alpha=8)
    assert "8.0 in the layer, 6 as you say" in str(untouched(other, lambda: lora.load(other, silent, alpha=6)))


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = trained()
    for name in ("lora.pt", "lora.safetensors"):
        lora.save(model, tmp_path / name)
        other = Net(seed=4)
        error = untouched(other, lambda other=other, name=name: lora.load(other, tmp_path / name))
        assert "another base" in error.what and "'query'" in error.got
        assert lora.load(other, tmp_path / name, allow_other_base=True).layers == 4
        assert torch.equal(other.query.lora_A, model.query.lora_A)
        assert lora.load(Net().eval(), tmp_path / name).layers == 4, "the base of a merged model is told as well"


def stored(model: nn.Module, change: Callable[[dict[str, Tensor]], object], path: Path) -> Path:
    state = {key: value.clone() for key, value in lora.lora_state_dict(model).items()}
    change(state)
    torch.save(state, path)
    return path


def put(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("query.lora_A", torch.ones(4, 8)), ["'query.lora_A': (4, 8), the layer holds (2, 8)"]),
        (lambda state: state.pop("conv.lora_B"), ["'conv.lora_B': not in the file"]),
        (put("querry.lora_A", torch.ones(2, 8)), ["'querry': no LoRA layer there; nearest: 'query'"]),
        (put("query.lora_B", torch.full((8, 2), math.nan)), ["'query.lora_B': holds NaN or infinity"]),
        (put("query.weight", torch.ones(8, 8)), ["'query.weight': the base's own weight", "load_state_dict"]),
        (put("conv.conv.weight", torch.ones(8, 8, 3)), ["'conv.conv.weight': the base's own weight"]),
        (put("classifier.1.weight", torch.ones(2, 4)), ["'classifier.1.weight': (2, 4), the model holds (3, 4)"]),
        (put("klassifier.1.bias", torch.ones(3)), ["'klassifier.1.bias': no such parameter", "'classifier.1.bias'"]),
        (lambda state: state.clear(), ["8 problems", "'embed.lora_A': not in the file"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_misfits_are_told_together_and_nothing_is_written(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], words: list[str]
) -> None:
    path = stored(trained(), change, tmp_path / "lora.pt")
    for model in (Net(), Net().eval()):
        text = str(untouched(model, lambda model=model: lora.load(model, path, alpha=6)))
        assert "nothing was loaded" in text and all(word in text for word in words), text


def test_heads_are_left_aside_where_that_is_asked(tmp_path: Path) -> None:
    path = stored(trained(), put("classifier.1.weight", torch.ones(2, 4)), tmp_path / "lora.pt")
    model = Net()
    report = lora.load(model, path, alpha=6, lora_only=True)
    assert report.left == ("classifier.1.weight",) and not report.others
    assert "left aside: classifier.1.weight" in str(report)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    model = Net()
    torch.save({"query.lora_A": Runs()}, tmp_path / "runs.bin")
    assert "asks to load" in str(untouched(model, lambda: lora.load(model, tmp_path / "runs.bin", alpha=1)))
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    assert "cut off or damaged" in str(untouched(model, lambda: lora.load(model, tmp_path / "cut.pt", alpha=1)))
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    assert "no dictionary of tensors" in str(untouched(model, lambda: lora.load(model, tmp_path / "list.pt", alpha=1)))
    assert "'cut.pt'" in str(untouched(model, lambda: lora.load(model, tmp_path / "cutt.pt", alpha=1)))
    assert "a directory" in str(untouched(model, lambda: lora.load(model, tmp_path, alpha=1)))
    lora.save(trained(), tmp_path / "lora.safetensors")
    with safe_open(str(tmp_path / "lora.safetensors"), framework="pt") as opened:
        metadata = dict(opened.metadata())
    assert json.loads(metadata["deltaw.loralib"])["layers"]["query"] == {"r": 2, "lora_alpha": 6.0}
    metadata["deltaw.loralib"] = "{"
    save_file(load_file(tmp_path / "lora.safetensors"), tmp_path / "edited.safetensors", metadata)
    assert "header" in str(untouched(model, lambda: lora.load(model, tmp_path / "edited.safetensors")))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave wrapped out"):
        lora.save(Net(), tmp_path / "lora.safetensors", wrapped=True)
    with pytest.raises(TargetError, match="'classifier'"):
        lora.save(Net(), tmp_path / "lora.pt", also=["clasifier"])
    for call in (lora.save, lora.load):
        with pytest.raises(TargetError, match="no LoRA layer"):
            call(nn.Linear(2, 2), tmp_path / "lora.pt")
    assert not list(tmp_path.iterdir())


def roberta() -> nn.Module:
    """RoBERTa-base as far as its adapter goes: 12 layers of 768, a head of three classes; small tables and MLPs."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(num_labels=3, vocab_size=64, intermediate_size=64, max_position_embeddings=32)
    return RobertaForSequenceClassification(config).eval()


@pytest.mark.shared
@pytest.mark.slow
def test_the_released_roberta_adapter_by_both_roads(shared: Path, tmp_path: Path) -> None:
    """The authors' MNLI file: 48 LoRA tensors, 294,912 values, and a head; alpha 16 is the one of their GLUE runs."""
    file = shared / "adapters" / "loralib" / "roberta_base_lora_mnli.bin"
    import deltaw as dw

    model = roberta()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert lora.attach(model, ["query", "value"], r=8, lora_alpha=16).parameters == 294_912
    error = untouched(model, lambda: lora.load(model, file))
    assert error.what == "the file does not say its alpha"
    untouched(model, lambda: lora.load(model, file, alpha=8))
    report = lora.load(model, file, alpha=16)
    assert (report.layers, report.tensors, report.values, len(report.others)) == (24, 48, 294_912, 4)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged = model(input_ids=ids).logits
        query: Any = model.get_submodule("roberta.encoder.layer.11.attention.self.query")
        prefix = "roberta.encoder.layer.11.attention.self.query"
        dense = 2 * stored[f"{prefix}.lora_B"].double() @ stored[f"{prefix}.lora_A"].double()
        assert torch.linalg.matrix_norm(dense / 2).item() == pytest.approx(6.39, abs=0.01)
        assert torch.allclose(query.weight.double(), weights[f"{prefix}.weight"].double() + dense, atol=1e-6)
        # the second road: the core's adapter on a plain model
        plain = roberta()
        plain.load_state_dict(weights)
        found = dw.load(plain, open_any(file, model=plain, alpha=16))
        assert found.applied == found.total == 25
        factors = [p for name, p in plain.named_parameters() if ".lora.default.lora_" in name]
        assert len(factors) == 48 and sum(p.numel() for p in factors) == 294_912
        assert torch.allclose(plain(input_ids=ids).logits, merged, atol=1e-4)
    # written again and read by the original's own keys
    lora.save(model, tmp_path / "again.bin", also=["classifier"])
    again = torch.load(tmp_path / "again.bin", weights_only=True)
    assert again.keys() == stored.keys() and all(torch.equal(again[key], stored[key]) for key in stored)
    lora.detach(model)
    left = model.state_dict()
    assert left.keys() == weights.keys()
    assert all(torch.equal(left[key], weights[key]) for key in left if not key.startswith("classifier"))
