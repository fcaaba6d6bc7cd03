"""The portable form, read by a reader that knows r and lora_alpha and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import CheckpointError


def minimal(directory: Path) -> dict[str, Tensor]:
    """What an engine does: delta = lora_alpha / r * B A for every module."""
    raw, tensors = (
        json.loads((directory / "adapter_config.json").read_text()),
        load_file(directory / "adapter_model.safetensors"),
    )
    found = {}
    for key, A in tensors.items():
        for ends in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if key.endswith(ends[0]):
                B = tensors[key.removesuffix(ends[0]) + ends[1]]
                assert len(A) == raw["r"]
                path = key.removesuffix(ends[0]).removeprefix("base_model.model.")
                found[path] = raw["lora_alpha"] / raw["r"] * B.double().flatten(1) @ A.double().flatten(1)
    return found


CONFIGS: list[dict[str, Any]] = [
    {"targets": ["q_proj", "down_proj"], "rank": 3, "alpha": 7.0},
    {"targets": ["q_proj", "down_proj", "embed_tokens"], "rank": 3, "alpha": 7.0, "rank_stabilized": True},
    {"targets": "all-linear", "rank": 2, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"down_proj": 1.0}},
    {"targets": "all-linear", "rank": 2, "init": "pissa"},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_minimal_reader_gets_the_same_updates(config: dict[str, Any], tmp_path: Path) -> None:
    model = builders.llama()
    builders.attach(model, **config)
    builders.randomize(model)
    ids = builders.ids()
    on = model(ids).logits
    dw.save(model, tmp_path / "a")
    adapter = dw.Adapter.open(tmp_path / "a")
    adapter.portable().save(tmp_path / "b")
    read = minimal(tmp_path / "b")
    assert set(read) == set(adapter.modules())
    for path, delta in read.items():
        torch.testing.assert_close(delta.float(), adapter.delta(path), rtol=1e-5, atol=1e-6)
    again = builders.llama()
    dw.load(again, tmp_path / "b")
    torch.testing.assert_close(again(ids).logits, on, rtol=1e-4, atol=1e-5)


def test_one_byte_factors_are_not_left_out(tmp_path: Path) -> None:
    stem = "base_model.model.fc."
    torch.manual_seed(0)
    A, B = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((2, 4), (5, 2)))
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
    tensors = {stem + "lora_A.weight": A, stem + "lora_B.weight": B}
    dw.Adapter(tensors=tensors, raw=raw, metadata={}).portable().save(tmp_path / "b")
    assert torch.equal(minimal(tmp_path / "b")["fc"], 2.0 * B.double() @ A.double())


def test_an_incomplete_pair_is_refused_by_name() -> None:
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
    tensors = {"base_model.model.fc.lora_A.weight": torch.ones(2, 4)}
    with pytest.raises(CheckpointError, match="'fc' has no lora_B"):
        dw.Adapter(tensors=tensors, raw=raw, metadata={}).portable()


def test_slices_convolutions_and_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({
        "c_attn": builders.conv1d(6, 12), "conv": nn.Conv2d(4, 6, 3), "attn": nn.MultiheadAttention(8, 2)
    })  # fmt: skip
    builders.attach(model, targets=["c_attn[q,v]", "conv", "attn"], rank=2, alpha_pattern={"c_attn[v]": 5.0})
    builders.randomize(model)
    dw.save(model, tmp_path / "a")
    adapter = dw.Adapter.open(tmp_path / "a")
    adapter.portable().save(tmp_path / "b")
    for path, delta in minimal(tmp_path / "b").items():
        want = adapter.delta("attn.out_proj" if path.endswith("out_proj") else path)
        torch.testing.assert_close(delta.float(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [{"variant": "dora"}, {"variant": "lora_bias"}, {"variant": "vera", "alpha": 16}, {"train_also": "lm_head"},
     {"bias": "all"}, {"train_rows": {"embed_tokens": [1]}}],
)  # fmt: skip
def test_what_cannot_be_folded_is_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    model = builders.bert() if "bias" in config else builders.llama()
    builders.attach(model, **{"targets": ["query" if "bias" in config else "q_proj"], "rank": 2, **config})
    dw.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="rank and alpha alone"):
        dw.Adapter.open(tmp_path).portable()
