"""Real files of others, on models of their shape: plain arithmetic on the stored tensors, PEFT as judge, and applied."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_for_tests import close, delta, skeleton, value
from safetensors.torch import load_file
from torch import Tensor, nn

import deltaw as dw
from deltaw.adapter import Adapter
from deltaw.fit import fit
from deltaw.ship.formats import open_any

sys.path.insert(0, str(Path(__file__).parents[2]))

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def bare(out: int, inside: int) -> nn.Module:
    """A Linear whose weight is zero, so that its output is the update's alone."""
    layer = torch.nn.utils.skip_init(nn.Linear, inside, out, bias=False)
    layer.weight.data.zero_()
    return layer


def unet(context: int, device: str = "cpu") -> nn.Module:
    """The attention projections of Stable Diffusion's UNet, named as diffusers does."""
    widths = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280, "mid_block": 1280,
              "up_blocks.1": 1280, "up_blocks.2": 640, "up_blocks.3": 320}  # fmt: skip
    count = {"down": 2, "mid_": 1, "up_b": 3}
    leaves: dict[str, nn.Module] = {}
    with torch.device(device):
        for block, width in widths.items():
            for index in range(count[block[:4]]):
                for attention, inside in (("attn1", width), ("attn2", context)):
                    at = f"{block}.attentions.{index}.transformer_blocks.0.{attention}"
                    leaves |= {f"{at}.to_q": bare(width, width), f"{at}.to_k": bare(width, inside)}
                    leaves |= {f"{at}.to_v": bare(width, inside), f"{at}.to_out.0": bare(width, width)}
    return skeleton(leaves)


def judged(model: nn.Module, adapter: Adapter, place: Path) -> dict[str, Tensor]:
    """PEFT's own reading of the directory: its dense update of every module."""
    from peft import PeftModel

    # a task would ask the skeleton for methods of a language model
    Adapter(tensors=adapter.tensors, raw={**adapter.raw, "task_type": None}).save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worn = PeftModel.from_pretrained(model, str(place))
    found = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in worn.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
    worn.unload()
    return found


def applied(model: nn.Module, adapter: Adapter, place: Path, paths: Iterable[str]) -> None:
    """Load the directory and run every layer it adapts."""
    adapter.save(place)
    dw.load(model.eval(), place)
    with torch.no_grad():
        for path in paths:
            layer: Any = model.get_submodule(path)
            x = value(path, 2, layer.in_features)
            term = layer(x) - nn.functional.linear(x, layer.weight, layer.bias)
            expected = (x.double() @ delta(adapter, path).t()).float()
            assert close(term, expected, 1e-5), path
    dw.detach(model)


def test_loralib_roberta(adapters: Path, tmp_path: Path) -> None:
    """The authors' MNLI adapter; alpha 16 is the one of their GLUE runs (rank 8, scaling 2)."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    stored = torch.load(adapters / "loralib" / "roberta_base_lora_mnli.bin", map_location="cpu", weights_only=True)
    config = RobertaConfig(num_labels=3, vocab_size=64, intermediate_size=64, max_position_embeddings=32)
    model = RobertaForSequenceClassification(config).eval()
    adapter = open_any(adapters / "loralib", model=model, alpha=16)
    assert len(adapter.modules()) == 24 and adapter.raw["modules_to_save"] == ["classifier"]
    theirs = judged(model, adapter, tmp_path / "peft")
    assert theirs.keys() == set(adapter.modules())
    for path in adapter.modules():
        expected = 2 * stored[f"{path}.lora_B"].double() @ stored[f"{path}.lora_A"].double()
        assert close(delta(adapter, path), expected) and close(theirs[path], expected, 1e-5)
        assert close(adapter.delta(path), expected, 1e-5)
    fitted = fit(model, adapter)
    assert len(fitted.plan.sites) == 24 and list(fitted.copies) == ["classifier"]
    assert all(torch.equal(t, stored[f"classifier.{name}"]) for name, t in fitted.copies["classifier"].items())
    applied(model, adapter, tmp_path / "ours", adapter.modules())


def test_bloom_of_2023(adapters: Path, tmp_path: Path) -> None:
    """Every layer of BLOOM-560m by name and size; PEFT itself cannot read enable_lora any more."""
    from transformers import BloomConfig, BloomForCausalLM

    place = adapters / "bloom560m-mergedlinear"
    stored = torch.load(place / "adapter_model.bin", map_location="cpu", weights_only=True)
    with torch.device("meta"):
        whole = BloomForCausalLM(BloomConfig(hidden_size=1024, n_layer=24, n_head=16, vocab_size=64))
    adapter = open_any(place, model=whole)
    assert len(fit(whole, adapter).plan.sites) == 24
    paths = [f"transformer.h.{i}.self_attention.query_key_value" for i in range(24)]
    assert adapter.modules() == sorted(paths)
    for path in paths:
        lora_A = stored[f"base_model.model.{path}.lora_A.weight"].double()
        lora_B = stored[f"base_model.model.{path}.lora_B.weight"].double().squeeze(-1)
        first, last = (2 * lora_B[i * 1024 : i * 1024 + 1024] @ lora_A[i * 8 : i * 8 + 8] for i in (0, 1))
        assert close(delta(adapter, path), torch.cat([first, torch.zeros(1024, 1024), last]))
    small = skeleton({path: bare(3072, 1024) for path in paths})
    theirs = judged(small, adapter, tmp_path / "peft")
    assert all(close(theirs[path], delta(adapter, path), 1e-5) for path in paths)
    applied(small, adapter, tmp_path / "ours", paths)


@pytest.mark.parametrize("name", ["kohya-like", "diffusers"])
def test_unet(adapters: Path, tmp_path: Path, name: str) -> None:
    place = adapters / name
    stored = load_file(next(place.glob("*.safetensors")))
    model = unet(768 if name == "kohya-like" else 1024)
    adapter = open_any(place, model=model)
    paths = adapter.modules()
    assert len(paths) == 128 and len(stored) == 2 * len(paths) and len(fit(model, adapter).plan.sites) == 128
    for path in paths:
        if name == "diffusers":
            ends = [f"unet.{path}.lora.{way}.weight" for way in ("up", "down")]
        else:
            ends = [f"lora_unet_unet_{path.replace('.', '_')}_lora_{way}.weight" for way in ("up", "down")]
        up, down = (stored[key].double() for key in ends)
        assert close(delta(adapter, path), up @ down) and adapter.scaling(path) == 1.0
    # only the tensors are needed for a whole pipeline's tree, so the base may be on the meta device
    pipeline = nn.ModuleDict({"unet": unet(768 if name == "kohya-like" else 1024, "meta")})
    assert open_any(place, model=pipeline).modules() == [f"unet.{path}" for path in paths]
    theirs = judged(model, adapter, tmp_path / "peft")
    assert all(close(theirs[path], delta(adapter, path), 1e-5) for path in paths)
    applied(model, adapter, tmp_path / "ours", paths)


@pytest.mark.parametrize("name", ["peft-gpt2-seqcls", "distilbert-imdb"])
def test_peft_directories_are_taken_as_they_are(adapters: Path, name: str) -> None:
    assert open_any(adapters / name).hash == Adapter.open(adapters / name).hash
