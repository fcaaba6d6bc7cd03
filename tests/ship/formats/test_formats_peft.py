"""PEFT's own files: today's untouched, those of 2023 with a grouped B, and tensors without their configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_for_tests import close, delta, filled, linears, write
from torch.nn import functional as F

import deltaw as dw
from deltaw.errors import CheckpointError
from deltaw.ship.formats import Ask, open_any, read_any

KEY = "base_model.model.h.0.qkv"


def grouped(
    place: Path, enable: list[bool] | None = None, pickled: bool = True, **more: Any
) -> dict[str, torch.Tensor]:
    enable = [True, False, True] if enable is None else enable
    number = sum(enable)
    tensors = filled({f"{KEY}.lora_A.weight": (2 * number, 6), f"{KEY}.lora_B.weight": (4 * number, 2, 1)})
    write(place / ("adapter_model.bin" if pickled else "adapter_model.safetensors"), tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "enable_lora": enable, "lora_dropout": 0.05,
              "merge_weights": False, "target_modules": ["qkv"], "base_model_name_or_path": "some/base", **more}  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize(
    "enable", [[True, False, True], [True, True, True], [False, True], [True, False, False, False]]
)
@pytest.mark.parametrize("pickled", [True, False])
def test_grouped(tmp_path: Path, enable: list[bool], pickled: bool) -> None:
    tensors = grouped(tmp_path / "old", enable, pickled)
    out = 4 * len(enable)
    for model in (linears({"h.0.qkv": (out, 6)}), None):
        adapter = open_any(tmp_path / "old", model=model)
        lora_A, lora_B = tensors[f"{KEY}.lora_A.weight"].double(), tensors[f"{KEY}.lora_B.weight"].double()
        product = F.conv1d(lora_A[None], lora_B, groups=sum(enable))[0]
        expected = torch.zeros(out, 6, dtype=torch.float64)
        rows = [row for i, on in enumerate(enable) if on for row in range(4 * i, 4 * i + 4)]
        expected[rows] = product * 5 / 2
        assert close(delta(adapter, "h.0.qkv"), expected)
        assert adapter.raw["r"] == 2 * sum(enable) and "enable_lora" not in adapter.raw
        assert adapter.raw["base_model_name_or_path"] == "some/base" and adapter.raw["lora_dropout"] == 0.05


def test_grouped_loads_as_a_plain_adapter(tmp_path: Path) -> None:
    grouped(tmp_path / "old")
    model = linears({"h.0.qkv": (12, 6)})
    adapter = open_any(tmp_path / "old", model=model)
    adapter.save(tmp_path / "new")
    dw.load(model, tmp_path / "new")
    layer, x = model.eval().get_submodule("h.0.qkv"), torch.eye(6)
    with torch.no_grad():
        term = layer(x) - x @ layer.weight.t()
    assert torch.allclose(term.t().double(), delta(adapter, "h.0.qkv"), atol=1e-5)


def test_todays_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    model = linears({"q": (4, 4)})
    dw.attach(model, dw.LoRAConfig(rank=2, alpha=3, targets=["q"]))
    dw.save(model, tmp_path / "a")
    opened, taken = dw.Adapter.open(tmp_path / "a"), read_any(tmp_path / "a", Ask())
    assert taken.format == "peft" and taken.adapter.hash == opened.hash and taken.adapter.raw == opened.raw
    assert [item.path for item in taken.mapped] == ["q"]


def test_tensors_alone_need_an_alpha(tmp_path: Path) -> None:
    tensors = filled({f"{KEY}.lora_A.weight": (2, 6), f"{KEY}.lora_B.weight": (4, 2)})
    path = write(tmp_path / "tensors.safetensors", tensors)
    with pytest.raises(CheckpointError, match="does not say its alpha"):
        open_any(path)
    adapter = open_any(path, alpha=3)
    assert close(
        delta(adapter, "h.0.qkv"),
        1.5 * tensors[f"{KEY}.lora_B.weight"].double() @ tensors[f"{KEY}.lora_A.weight"].double(),
    )


def test_alpha_by_module_is_kept(tmp_path: Path) -> None:
    grouped(tmp_path, alpha_pattern={"qkv": 7})
    assert open_any(tmp_path).scaling("h.0.qkv") == 3.5


def test_grouped_without_its_word_is_asked(tmp_path: Path) -> None:
    grouped(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "enable_lora": None}))
    with pytest.raises(CheckpointError, match="which parts of the fused projection"):
        open_any(tmp_path)
    asked = open_any(tmp_path, enable="q,v")
    grouped(tmp_path)
    assert asked.hash == open_any(tmp_path).hash
