"""diffusers' files in every spelling it has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from formats_for_tests import close, delta, filled, linears, skeleton, value, write
from torch import Tensor, nn

from deltaw.errors import CheckpointError
from deltaw.ship.formats import Ask, open_any, read_any

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn"

SPELLINGS = {
    f"{ATTENTION}.processor.to_q_lora.down.weight": f"{ATTENTION}.to_q",
    f"{ATTENTION}.processor.to_out_lora.down.weight": f"{ATTENTION}.to_out.0",
    f"unet.{ATTENTION}.processor.to_v_lora.down.weight": f"{ATTENTION}.to_v",
    f"unet.{ATTENTION}.to_k.lora.down.weight": f"{ATTENTION}.to_k",
    f"unet.{ATTENTION}.to_out.0.lora.down.weight": f"{ATTENTION}.to_out.0",
    f"unet.{ATTENTION}.to_q.lora_A.weight": f"{ATTENTION}.to_q",
    f"text_encoder.{TEXT}.to_q_lora.down.weight": f"{TEXT}.q_proj",
    f"text_encoder.{TEXT}.to_out_lora.down.weight": f"{TEXT}.out_proj",
    f"text_encoder.{TEXT}.k_proj.lora_linear_layer.down.weight": f"{TEXT}.k_proj",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "transformer_blocks.0.attn.to_q",
    "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": "single_transformer_blocks.0.proj_mlp",
}


def both(down: str) -> dict[str, Tensor]:
    up = down.replace(".down.", ".up.").replace("lora_A", "lora_B")
    return {down: value(down, 2, 5), up: value(up, 7, 2)}


@pytest.mark.parametrize("key", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_spelling(tmp_path: Path, key: str, alpha: float | None) -> None:
    tensors, path = both(key), SPELLINGS[key]
    down, up = tensors.values()
    if alpha is not None:
        tensors[key.replace(".down.weight", "").replace(".lora_A.weight", "") + ".alpha"] = torch.tensor(alpha)
    file = write(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    component = key.partition(".")[0] if key.startswith(("unet", "text", "transformer.")) else "unet"
    for model in (linears({path: (7, 5)}), None, linears({f"{component}.{path}": (7, 5)})):
        found = read_any(tmp_path, Ask()) if model is None else None
        adapter = found.adapter if found else open_any(file, model=model)
        (where,) = adapter.modules()
        assert where in (path, f"{component}.{path}") and (model is None) <= (where == path)
        assert close(delta(adapter, where), (1.0 if alpha is None else alpha / 2) * up.double() @ down.double())


def test_metadata_of_newer_files(tmp_path: Path) -> None:
    tensors = both("transformer.transformer_blocks.0.attn.to_q.lora_A.weight")
    stated = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q"]}
    path = write(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=json.dumps(stated))
    assert open_any(path).scaling("transformer_blocks.0.attn.to_q") == 4.0
    patterned = {**stated, "transformer.alpha_pattern": {"attn.to_q": 5}, "transformer.use_rslora": True}
    path = write(tmp_path / "b.safetensors", tensors, lora_adapter_metadata=json.dumps(patterned))
    assert open_any(path).scaling("transformer_blocks.0.attn.to_q") == pytest.approx(5 / 2**0.5, rel=1e-15)
    path = write(tmp_path / "c.safetensors", tensors, lora_adapter_metadata="{")
    with pytest.raises(CheckpointError, match="metadata cannot be read"):
        open_any(path)


def test_bias_and_magnitude(tmp_path: Path) -> None:
    tensors = both("unet.mid.q.lora_A.weight")
    tensors |= filled({"unet.mid.q.lora_B.bias": (7,), "unet.mid.q.lora_magnitude_vector": (7,)})
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=linears({"mid.q": (7, 5)}))
    assert adapter.raw["lora_bias"] is True and adapter.raw["use_dora"] is True
    assert {
        "base_model.model.mid.q.lora_B.bias",
        "base_model.model.mid.q.lora_magnitude_vector",
    } <= adapter.tensors.keys()


def test_convolution(tmp_path: Path) -> None:
    tensors = filled({"unet.conv.lora.down.weight": (2, 4, 3, 3), "unet.conv.lora.up.weight": (6, 2, 1, 1)})
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=skeleton({"conv": nn.Conv2d(4, 6, 3)}))
    down, up = (tensors[f"unet.conv.lora.{x}.weight"].double().flatten(1) for x in ("down", "up"))
    assert close(delta(adapter, "conv"), up @ down)


def test_a_language_model_behind_the_name_transformer_is_none_of_it(tmp_path: Path) -> None:
    tensors = filled(
        {"transformer.h.0.attn.c_attn.lora_A.weight": (2, 4), "transformer.h.0.attn.c_attn.lora_B.weight": (6, 2)}
    )
    with pytest.raises(CheckpointError, match="no format that deltaw knows"):
        open_any(write(tmp_path / "a.safetensors", tensors))
