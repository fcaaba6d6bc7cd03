"""Extraction from two checkpoints: what was added comes back, what no LoRA holds is refused or listed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from values import deltas

import deltaw as dw
from deltaw.algebra.shards import Shards, prefix_between
from deltaw.algebra.truncate import truncate
from deltaw.errors import CheckpointError, ConfigError

Weights = dict[str, Tensor]


def weights(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "h.0.q.weight": (12, 8), "h.0.o.weight": (8, 12), "embed_tokens.weight": (20, 8), "h.0.norm.weight": (8,),
        "h.0.q.bias": (12,), "conv.weight": (4, 3, 3),
    }  # fmt: skip
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def low_rank(key: str, rank: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = weights()[key].shape
    return 0.1 * torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def write(place: Path, held: Mapping[str, Tensor], shards: int = 1, index: bool = True, **config: Any) -> Path:
    """A checkpoint as transformers writes it."""
    place.mkdir()
    keys = sorted(held)
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    )
    for number, name in enumerate(names):
        save_file({key: held[key].contiguous() for key in keys[number::shards]}, place / name, {"format": "pt"})
    if shards > 1 and index:
        home = {key: names[keys.index(key) % shards] for key in keys}
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    if config:
        (place / "config.json").write_text(json.dumps(config))
    return place


def tuned(rank: int = 2, keys: tuple[str, ...] = ("h.0.q.weight", "embed_tokens.weight")) -> Weights:
    held = weights()
    return {**held, **{key: held[key] + low_rank(key, rank) for key in keys}}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("index", [True, False])
def test_an_added_update_comes_back(shards: int, index: bool, tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(), shards, index)
    other = write(tmp_path / "tuned", tuned(), 2, index)
    report = dw.extract(base, other, rank=2)
    assert report.adapter.modules() == ["embed_tokens", "h.0.q"] and report.unchanged == 4 and not report.rest
    found = report.adapter.delta("h.0.q"), report.adapter.delta("embed_tokens").t()
    for delta, key in zip(found, ("h.0.q.weight", "embed_tokens.weight"), strict=True):
        torch.testing.assert_close(delta, tuned()[key] - weights()[key], rtol=1e-4, atol=1e-6)
    assert report.kept > 1 - 1e-9 and all(m.error < 1e-6 and m.method == "exact, float64" for m in report.modules)
    assert report.adapter.raw["target_modules"] == r"(embed_tokens|h\.0\.q)"
    report.adapter.save(tmp_path / "out")
    assert dw.Adapter.open(tmp_path / "out").hash == report.adapter.hash


def test_energy_gives_the_least_rank_for_each_difference(tmp_path: Path) -> None:
    moved = tuned(5, ("h.0.q.weight", "h.0.o.weight"))
    report = dw.extract(write(tmp_path / "base", weights()), write(tmp_path / "tuned", moved), energy=0.8)
    assert len(report.modules) == 2
    for module in report.modules:
        difference = moved[f"{module.path}.weight"] - weights()[f"{module.path}.weight"]
        values = np.linalg.svd(difference.double().numpy(), compute_uv=False) ** 2
        share = values.cumsum() / values.sum()
        assert module.rank == int((share < 0.8).sum()) + 1
        assert module.kept == pytest.approx(share[module.rank - 1], abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "h.0.norm.weight": t["h.0.norm.weight"] + 1},
        lambda t: {**t, "h.0.q.bias": t["h.0.q.bias"] + 1},
        lambda t: {**t, "conv.weight": t["conv.weight"] + 1},
        lambda t: {**t, "embed_tokens.weight": torch.ones(21, 8)},
        lambda t: {**t, "head.weight": torch.ones(2, 8)},
        lambda t: {key: value for key, value in t.items() if key != "h.0.norm.weight"},
    ],
    ids=["norm", "bias", "convolution", "resized table", "new head", "missing"],
)
def test_what_no_lora_holds_is_refused_or_listed(change: Callable[[Weights], Weights], tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    other = write(tmp_path / "tuned", change(tuned()))
    with pytest.raises(CheckpointError, match="no LoRA can hold"):
        dw.extract(base, other, rank=2)
    report = dw.extract(base, other, rank=2, allow_rest=True)
    assert len(report.rest) == 1 and "left over: " in str(report) and "h.0.q" in report.adapter.modules()
    assert report.adapter.own["origin"]["left_over"] == list(report.rest)


def test_a_model_says_what_each_weight_is(tmp_path: Path) -> None:
    """A prefix that the checkpoint lacks, transposed storage, and a head tied to the table."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    after = {key: value.clone() for key, value in before.items()}
    for key in ("h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight", "wte.weight"):
        after[key] += 0.1 * torch.randn(before[key].shape[0], 2) @ torch.randn(2, before[key].shape[1])
    base, other = write(tmp_path / "base", before, model_type="gpt2"), write(tmp_path / "tuned", after)
    with torch.device("meta"):
        shape = GPT2LMHeadModel(config)
    report = dw.extract(base, other, rank=2, model=shape)
    paths = ["lm_head", "transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_fc", "transformer.wte"]
    assert report.adapter.modules() == paths and report.adapter.own["twins"] == {"lm_head": "transformer.wte"}
    assert report.adapter.raw["fan_in_fan_out"] is True
    report.adapter.save(tmp_path / "out")
    ids = torch.arange(6).unsqueeze(0)
    dw.load(model, tmp_path / "out")
    adapted = model(ids).logits
    full = GPT2LMHeadModel(config).eval()
    full.transformer.load_state_dict(after)
    torch.testing.assert_close(adapted, full(ids).logits, rtol=1e-4, atol=1e-4)
    dw.merge(model)
    torch.testing.assert_close(model(ids).logits, full(ids).logits, rtol=1e-4, atol=1e-4)


def test_without_a_model_names_and_the_configuration_tell(tmp_path: Path) -> None:
    held = {"h.0.c_proj.weight": torch.zeros(6, 6), "wte.weight": torch.zeros(9, 6)}
    update = torch.zeros(6, 6)
    update[0, 1] = 1
    moved = {**held, "h.0.c_proj.weight": update}
    base, other = write(tmp_path / "base", held), write(tmp_path / "tuned", moved)
    with pytest.raises(ConfigError, match="layout of a weight"):
        dw.extract(base, other, rank=1)
    for kind, expected in (("gpt2", update.t()), ("llama", update)):
        (base / "config.json").write_text(json.dumps({"model_type": kind, "tie_word_embeddings": True}))
        report = dw.extract(base, other, rank=1)
        torch.testing.assert_close(report.adapter.delta("h.0.c_proj"), expected)
        assert any("told by its name" in note for note in report.notes) and any("ties" in note for note in report.notes)


def test_a_fingerprint_of_the_base_is_recorded(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.fc, self.fd = nn.Linear(8, 6), nn.Linear(6, 8)

    first, second = Small(0), Small(0)
    with torch.no_grad():
        second.fc.weight += torch.outer(torch.ones(6), torch.ones(8))
    base, other = (write(tmp_path / name, m.state_dict()) for name, m in (("base", first), ("tuned", second)))
    dw.extract(base, other, rank=1).adapter.save(tmp_path / "out")
    dw.load(first, tmp_path / "out")
    torch.testing.assert_close(first.fc(torch.ones(1, 8)), second.fc(torch.ones(1, 8)), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="another base"):
        dw.load(Small(1), tmp_path / "out")


def test_dtypes_that_differ_are_said(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    other = write(tmp_path / "tuned", {k: t.bfloat16() for k, t in tuned(keys=("h.0.q.weight",)).items()})
    report = dw.extract(base, other, rank=2, allow_rest=True)
    assert any("dtypes" in note for note in report.notes)
    same = write(tmp_path / "same", {k: t.bfloat16().float() for k, t in weights().items()})
    half = write(tmp_path / "half", {k: t.bfloat16() for k, t in weights().items()})
    with pytest.raises(CheckpointError, match="no weight differs"):
        dw.extract(same, half, rank=2)


@pytest.mark.parametrize(
    "given", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"rank": 1.5}, {"energy": 0}, {"energy": 2}]
)
def test_what_cannot_be_asked(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        dw.extract(tmp_path, tmp_path, **given)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    for name in ("absent", "empty"):
        place = tmp_path / name
        if name == "empty":
            place.mkdir()
        with pytest.raises(CheckpointError, match="no weights here"):
            dw.extract(base, place, rank=1)
    cut = write(tmp_path / "cut", tuned())
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        dw.extract(base, cut, rank=1)
    lost = write(tmp_path / "lost", tuned(), 2)
    (lost / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        dw.extract(base, lost, rank=1)
    (lost / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        dw.extract(base, lost, rank=1)
    broken = write(tmp_path / "broken", {**tuned(), "h.0.q.weight": torch.full((12, 8), float("nan"))})
    with pytest.raises(CheckpointError, match="not finite"):
        dw.extract(base, broken, rank=1)
    with pytest.raises(CheckpointError, match="no weight differs"):
        dw.extract(base, base, rank=1)


def test_one_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    base, other = write(tmp_path / "base", weights()), write(tmp_path / "tuned", tuned())
    report = dw.extract(base / "model.safetensors", other / "model.safetensors", rank=2)
    assert report.adapter.hash == dw.extract(base, other, rank=2).adapter.hash
    with Shards(base / "model.safetensors") as opened:
        assert opened.shape("h.0.q.weight") == (12, 8) and opened.config() == {}


def test_prefixes_in_both_directions(tmp_path: Path) -> None:
    assert prefix_between(["a.w"], ["a.w", "x.a.w"]) == "" and prefix_between(["a.w"], []) == ""
    headed = {f"model.{key}": value for key, value in tuned().items()}
    base, other = write(tmp_path / "base", weights()), write(tmp_path / "tuned", headed)
    assert dw.extract(base, other, rank=2).adapter.modules() == ["embed_tokens", "h.0.q"]
    bare, whole = (
        write(tmp_path / "bare", tuned()),
        write(tmp_path / "whole", {f"model.{k}": v for k, v in weights().items()}),
    )
    assert dw.extract(whole, bare, rank=2).adapter.modules() == ["model.embed_tokens", "model.h.0.q"]


def test_the_randomized_method_is_near_the_optimum_and_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(300, 120, generator=generator)).Q for _ in range(2))
    values = torch.logspace(0, -3, 120)
    matrix = left @ torch.diag(values) @ right.t()
    best = float(values[8:].norm() / values.norm())
    found = truncate(matrix, 8, None, "w", exact=64)
    assert found.method.startswith("randomized") and truncate(matrix, 8, None, "w").method == "exact, float64"
    assert best * (1 - 1e-5) <= found.error <= best * (1 + 1e-4)
    missed = float((matrix - found.lora_B @ found.lora_A).norm() / matrix.norm())
    assert found.error == pytest.approx(missed, rel=1e-4)
    again = truncate(matrix, 8, None, "w", exact=64)
    assert torch.equal(found.lora_A, again.lora_A)
    share = truncate(matrix, None, 0.9, "w", exact=64)
    assert share.lora_A.shape[0] == truncate(matrix, None, 0.9, "w").lora_A.shape[0]
    demanding = truncate(matrix, None, 1 - 1e-9, "w", exact=64)
    assert demanding.method == "exact, float64", "more than a quarter of the directions is asked for"


def test_the_report_prints(tmp_path: Path) -> None:
    base, other = write(tmp_path / "base", weights()), write(tmp_path / "tuned", tuned())
    report = dw.extract(base, other, rank=2)
    assert "extracted 2 modules" in str(report) and "4 tensors are equal" in str(report)
    many = dataclasses.replace(report, modules=report.modules * 30)
    assert "count" in str(many) and "count" not in str(dataclasses.replace(many, every=True))
    assert deltas(report.adapter) == {}
