"""The tools themselves as judges: a file written by each, applied by each, and by deltaw.

None of them is needed to run the other tests; where one is not installed, its test is skipped and says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_for_tests import skeleton, value
from torch import Tensor, nn

import deltaw as dw
from deltaw.ship.formats import open_any

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def fill(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(value(name, *parameter.shape) * 0.3)


@pytest.mark.parametrize("kind", ["Linear", "Embedding", "MergedLinear", "Conv2d"])
def test_loralib(tmp_path: Path, kind: str) -> None:
    loralib = pytest.importorskip("loralib", reason="the original package is not installed")
    theirs, plain, x = {
        "Linear": lambda: (loralib.Linear(6, 4, r=2, lora_alpha=3), nn.Linear(6, 4), value("x", 3, 6)),
        "Embedding": lambda: (loralib.Embedding(7, 4, r=2, lora_alpha=3), nn.Embedding(7, 4), torch.arange(7)),
        "MergedLinear": lambda: (
            loralib.MergedLinear(6, 12, r=2, lora_alpha=3, enable_lora=[True, False, True]),
            nn.Linear(6, 12),
            value("x", 1, 3, 6),
        ),
        "Conv2d": lambda: (loralib.Conv2d(3, 5, 3, r=2, lora_alpha=3), nn.Conv2d(3, 5, 3), value("x", 1, 3, 5, 5)),
    }[kind]()
    fill(theirs)
    base = {key.removeprefix("conv."): t for key, t in theirs.state_dict().items() if "lora_" not in key}
    plain.load_state_dict(base)
    theirs.train()
    whole, ours = skeleton({"site": theirs}), skeleton({"site": plain})
    torch.save(loralib.lora_state_dict(whole), tmp_path / "lora.pt")
    enable = "q,v" if kind == "MergedLinear" else None
    adapter = open_any(tmp_path / "lora.pt", model=ours, alpha=3, enable=enable)
    adapter.save(tmp_path / "out")
    dw.load(ours, tmp_path / "out")
    assert torch.allclose(ours.get_submodule("site")(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("name", ["Llama-2-7b-hf", "pythia-14m"])
@pytest.mark.parametrize("enable", [(True, False, True), (True, True, True), (False, True, False)])
def test_litgpt(tmp_path: Path, name: str, enable: tuple[bool, bool, bool]) -> None:
    """A whole model: litgpt's logits with its own LoRA, and transformers' with the converted one."""
    lora = pytest.importorskip("litgpt.lora", reason="litgpt is not installed")
    scripts = pytest.importorskip("litgpt.scripts.convert_lit_checkpoint")
    neox = name.startswith("pythia")
    config = lora.Config.from_name(
        name, n_layer=2, n_head=4, n_embd=32, n_query_groups=4 if neox else 2, intermediate_size=24, head_size=8,
        padded_vocab_size=32, vocab_size=32, block_size=16, lora_r=2, lora_alpha=6, lora_query=enable[0],
        lora_key=enable[1], lora_value=enable[2], lora_projection=True, lora_mlp=True, lora_head=True,
    )  # fmt: skip
    theirs = lora.GPT(config)
    fill(theirs)
    theirs.eval()
    state = theirs.state_dict()
    torch.save({"model": {k: t for k, t in state.items() if "lora_" in k}}, tmp_path / "lit_model.pth.lora")
    switches = {f"lora_{x}": on for x, on in zip(("query", "key", "value"), enable, strict=True)}
    stated: dict[str, Any] = {"lora_r": 2, "lora_alpha": 6, **switches}
    (tmp_path / "hyperparameters.yaml").write_text("".join(f"{k}: {str(v).lower()}\n" for k, v in stated.items()))
    plain = {key.replace(".linear.", "."): t for key, t in state.items() if "lora_" not in key}
    converted: dict[str, Tensor] = {}
    (scripts.copy_weights_gpt_neox if neox else scripts.copy_weights_llama)(config, converted, plain)
    ours = _transformers(neox, config)
    missing = ours.load_state_dict({k: t for k, t in converted.items() if k in ours.state_dict()}, strict=False)
    head = "embed_out.weight" if "embed_out.weight" in converted else "lm_head.weight"
    ours.get_output_embeddings().weight.data.copy_(converted[head])
    assert not [key for key in missing.missing_keys if "inv_freq" not in key and "lm_head" not in key]
    ids = torch.arange(10)[None]
    bare = ours(ids).logits.detach()
    open_any(tmp_path, model=ours).save(tmp_path / "out")
    dw.load(ours, tmp_path / "out")
    expected = theirs(ids)
    assert not torch.allclose(bare, expected, **CLOSE)
    assert torch.allclose(ours(ids).logits, expected, **CLOSE)


def _transformers(neox: bool, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 32,
             "intermediate_size": 24, "max_position_embeddings": 16, "tie_word_embeddings": False}  # fmt: skip
    if neox:
        made = GPTNeoXConfig(**sizes, rotary_pct=config.rotary_percentage, layer_norm_eps=config.norm_eps,
                             use_parallel_residual=config.parallel_residual)  # fmt: skip
    else:
        made = LlamaConfig(**sizes, num_key_value_heads=2, rms_norm_eps=config.norm_eps, rope_theta=config.rope_base)
    return AutoModelForCausalLM.from_config(made).eval()


def test_torchtune(tmp_path: Path) -> None:
    """torchtune's own export of the same tensors to PEFT."""
    import importlib.util

    spec = importlib.util.find_spec("torchtune")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchtune is not installed")
    file = Path(spec.submodule_search_locations[0]) / "models" / "convert_weights.py"
    found = importlib.util.spec_from_file_location("torchtune_convert_weights", file)
    assert found is not None and found.loader is not None
    convert = importlib.util.module_from_spec(found)
    found.loader.exec_module(convert)
    from test_formats_decoders import GROUPS, HEADS, HIDDEN, SIZE, model, tune

    tensors = tune(tmp_path)
    theirs = convert.tune_to_peft_adapter_weights(dict(tensors), HEADS, GROUPS, HIDDEN, SIZE)
    ours = open_any(tmp_path, model=model("llama"))
    assert ours.tensors.keys() == theirs.keys()
    assert all(torch.equal(ours.tensors[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("kind", ["lora", "dora", "embedding"])
def test_mlx(tmp_path: Path, kind: str) -> None:
    """mlx-lm's fused weight against the base plus the converted update."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    tuner = pytest.importorskip("mlx_lm.tuner.dora" if kind == "dora" else "mlx_lm.tuner.lora")
    from mlx import nn as layers

    table = kind == "embedding"
    layer = layers.Embedding(7, 4) if table else layers.Linear(6, 4, bias=False)
    made = {"lora": "LoRALinear", "dora": "DoRALinear", "embedding": "LoRAEmbedding"}[kind]
    theirs = getattr(tuner, made).from_base(layer, r=2, scale=3.0)
    sizes = (7, 4) if table else (6, 4)
    tensors = {"site.lora_a": value("a", sizes[0], 2), "site.lora_b": value("b", 2, sizes[1])}
    weight = value("w", *((7, 4) if table else (4, 6)))
    theirs.lora_a, theirs.lora_b = (mx.array(t.numpy()) for t in tensors.values())
    (theirs.embedding if table else theirs.linear).weight = mx.array(weight.numpy())
    if kind == "dora":
        tensors["site.m"] = value("m", 4).abs()
        theirs.m = mx.array(tensors["site.m"].numpy())
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "adapters.safetensors")
    stated = {"fine_tune_type": "dora" if kind == "dora" else "lora", "lora_parameters": {"rank": 2, "scale": 3.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    ours = skeleton({"site": nn.Embedding(7, 4) if table else nn.Linear(6, 4, bias=False)})
    ours.get_submodule("site").weight.data.copy_(weight)
    adapter = open_any(tmp_path, model=ours)
    fused = torch.tensor(theirs.fuse().weight.tolist())
    adapter.save(tmp_path / "out")
    dw.load(ours, tmp_path / "out")
    dw.merge(ours)
    assert torch.allclose(ours.get_submodule("site").weight, fused, **CLOSE)
