"""kohya's files: names inverted against a tree, scales, convolutions, and what is no LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from formats_for_tests import close, delta, filled, linears, skeleton, value, write
from torch import Tensor, nn
from torch.nn import functional as F

import deltaw as dw
from deltaw.errors import CheckpointError
from deltaw.ship.formats import open_any
from deltaw.ship.formats.unet_names import original_names

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def pair(stem: str, down: tuple[int, ...], up: tuple[int, ...], sep: str = ".") -> dict[str, Tensor]:
    return filled({f"{stem}{sep}lora_down.weight": down, f"{stem}{sep}lora_up.weight": up})


def unet() -> nn.Module:
    """The modules of a small UNet, named as diffusers names them."""
    leaves: dict[str, nn.Module] = {"conv_in": nn.Conv2d(4, 8, 3), "conv_out": nn.Conv2d(8, 4, 3)}
    leaves |= {f"time_embedding.linear_{i}": nn.Linear(8, 8) for i in (1, 2)}
    for way, block, layers in (
        ("down_blocks.", 0, 2),
        ("down_blocks.", 1, 2),
        ("up_blocks.", 0, 3),
        ("up_blocks.", 1, 3),
    ):
        for layer in range(layers):
            residual = f"{way}{block}.resnets.{layer}"
            leaves |= {f"{residual}.conv1": nn.Conv2d(8, 8, 3), f"{residual}.time_emb_proj": nn.Linear(8, 8)}
            leaves[f"{residual}.conv_shortcut"] = nn.Conv2d(8, 8, 1)
            if block == (1 if way == "down_blocks." else 0):
                at = f"{way}{block}.attentions.{layer}"
                leaves |= {
                    f"{at}.proj_in": nn.Conv2d(8, 8, 1),
                    f"{at}.transformer_blocks.0.attn1.to_q": nn.Linear(8, 8),
                }
    leaves |= {
        "down_blocks.0.downsamplers.0.conv": nn.Conv2d(8, 8, 3),
        "up_blocks.0.upsamplers.0.conv": nn.Conv2d(8, 8, 3),
    }
    leaves |= {f"mid_block.resnets.{i}.conv2": nn.Conv2d(8, 8, 3) for i in (0, 1)}
    leaves["mid_block.attentions.0.proj_in"] = nn.Conv2d(8, 8, 1)
    return skeleton(leaves)


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 1.0), (0.0, 1.0), (2.0, 0.5), (1.5, 0.375)])
@pytest.mark.parametrize("sep", [".", "_"])
def test_scale(tmp_path: Path, alpha: float | None, scaling: float, sep: str) -> None:
    stem = "lora_unet_" + BLOCK.replace(".", "_")
    tensors = pair(stem, (4, 8), (6, 4), sep)
    if alpha is not None:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=linears({BLOCK: (6, 8)}))
    assert adapter.scaling(BLOCK) == scaling
    up, down = tensors[f"{stem}{sep}lora_up.weight"], tensors[f"{stem}{sep}lora_down.weight"]
    assert close(delta(adapter, BLOCK), scaling * up.double() @ down.double())


def test_names_are_looked_up_and_not_taken_apart(tmp_path: Path) -> None:
    tensors = pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (2, 4), (4, 2))
    model = linears({"text_model.encoder.layers.0.self_attn.q_proj": (4, 4)})
    for tree in (model, ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1"]):
        adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=tree)
        assert adapter.modules() == ["text_model.encoder.layers.0.self_attn.q_proj"]


def test_two_modules_with_one_spelling(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", pair("lora_unet_a_b_c", (2, 4), (4, 2)))
    with pytest.raises(CheckpointError, match=r"may be any of 'a.b_c', 'a_b.c'"):
        open_any(path, model=linears({"a.b_c": (4, 4), "a_b.c": (4, 4)}))
    # a size that only one of them has settles it
    assert open_any(path, model=linears({"a.b_c": (4, 4), "a_b.c": (8, 4)})).modules() == ["a.b_c"]


def test_components_of_a_pipeline(tmp_path: Path) -> None:
    tensors = pair("lora_unet_mid_q", (2, 4), (4, 2)) | pair("lora_te1_enc_q", (2, 4), (4, 2))
    tensors |= pair("lora_te2_enc_q", (2, 6), (6, 2))
    path = write(tmp_path / "a.safetensors", tensors)
    whole = {"unet.mid.q": (4, 4), "text_encoder.enc.q": (4, 4), "text_encoder_2.enc.q": (6, 6)}
    assert set(open_any(path, model=linears(whole)).modules()) == set(whole)
    with pytest.raises(CheckpointError, match="updates of several models"):
        open_any(path, model=linears({"mid.q": (4, 4)}))
    assert open_any(path, model=linears({"mid.q": (4, 4)}), part="unet").modules() == ["mid.q"]
    assert open_any(path, model=linears(whole), part="text_encoder_2").modules() == ["text_encoder_2.enc.q"]
    with pytest.raises(CheckpointError, match="holds nothing for this component"):
        open_any(path, model=linears(whole), part="text_encoder_3")


def test_original_block_names(tmp_path: Path) -> None:
    """Names of the original UNet, as SDXL's files have them, land on diffusers' modules."""
    names = {
        "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding.linear_1",
        "time_embed_2": "time_embedding.linear_2", "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_2_0_emb_layers_1": "down_blocks.0.resnets.1.time_emb_proj",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
        "input_blocks_5_1_transformer_blocks_0_attn1_to_q":
            "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q",
        "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        "output_blocks_1_0_skip_connection": "up_blocks.0.resnets.1.conv_shortcut",
        "output_blocks_2_1_proj_in": "up_blocks.0.attentions.2.proj_in",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_3_0_in_layers_2": "up_blocks.1.resnets.0.conv1",
    }  # fmt: skip
    model, tensors = unet(), {}
    for name, path in names.items():
        weight = model.get_parameter(f"{path}.weight")
        tensors |= pair(f"lora_unet_{name}", (2, *weight.shape[1:]), (weight.shape[0], 2, *(1,) * (weight.dim() - 2)))
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=model)
    assert set(adapter.modules()) == set(names.values())


def test_the_name_of_every_module_is_its_own() -> None:
    paths = [name for name, module in unet().named_modules() if not module._modules and name]
    found = original_names(paths)
    assert sorted(found.values()) == sorted(paths)


@pytest.mark.parametrize("mid", [False, True])
def test_convolution(tmp_path: Path, mid: bool) -> None:
    layer, stem = nn.Conv2d(5, 7, 3, padding=1, bias=False), "lora_unet_mid_conv"
    tensors = filled({
        f"{stem}.lora_down.weight": (2, 5, 1, 1) if mid else (2, 5, 3, 3), f"{stem}.lora_up.weight": (7, 2, 1, 1)
    })  # fmt: skip
    if mid:
        tensors[f"{stem}.lora_mid.weight"] = value("mid", 2, 2, 3, 3)
    tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    model = skeleton({"mid.conv": layer})
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=model)
    x = value("x", 1, 5, 6, 6).double()
    at = F.conv2d(x, tensors[f"{stem}.lora_down.weight"].double(), padding=0 if mid else 1)
    at = F.conv2d(at, tensors[f"{stem}.lora_mid.weight"].double(), padding=1) if mid else at
    expected = 0.5 * F.conv2d(at, tensors[f"{stem}.lora_up.weight"].double())
    kernel = delta(adapter, "mid.conv").view(7, 5, 3, 3)
    assert close(F.conv2d(x, kernel, padding=1), expected, 1e-6 if mid else 1e-12)
    with torch.no_grad():
        bare = layer(x.float())
        dw.load(model.eval(), adapter)
        assert close(layer(x.float()) - bare, expected, 1e-5)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_kernels_of_one_are_squared_with_the_layer(tmp_path: Path, kernels: bool, convolution: bool) -> None:
    ones = (1, 1) if kernels else ()
    tensors = pair("lora_unet_proj_in", (2, 5, *ones), (7, 2, *ones))
    layer = nn.Conv2d(5, 7, 1) if convolution else nn.Linear(5, 7)
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=skeleton({"proj_in": layer}))
    shapes = [tuple(tensor.shape) for _, tensor in sorted(adapter.tensors.items())]
    assert shapes == ([(2, 5, 1, 1), (7, 2, 1, 1)] if convolution else [(2, 5), (7, 2)])
    up, down = (tensors[f"lora_unet_proj_in.lora_{x}.weight"].double().flatten(1) for x in ("up", "down"))
    assert close(delta(adapter, "proj_in"), up @ down)


def test_dora_over_outputs_is_kept_and_over_inputs_refused(tmp_path: Path) -> None:
    tensors = pair("lora_unet_q", (2, 5), (7, 2))
    out = write(tmp_path / "out.safetensors", {**tensors, "lora_unet_q.dora_scale": value("m", 7, 1)})
    adapter = open_any(out, model=linears({"q": (7, 5)}))
    assert adapter.raw["use_dora"] is True
    magnitude = adapter.tensors["base_model.model.q.lora_magnitude_vector"]
    assert magnitude.shape == (7,) and torch.equal(magnitude, value("m", 7, 1).flatten())
    worn = linears({"q": (7, 5)}).eval()
    layer = worn.get_submodule("q")
    whole = layer.weight.detach().double() + delta(adapter, "q")
    dw.load(worn, adapter)
    expected = value("x", 3, 5).double() @ (value("m", 7, 1) * whole / whole.norm(dim=1, keepdim=True)).t()
    assert close(layer(value("x", 3, 5)).detach(), expected.detach(), 1e-5)
    inside = write(tmp_path / "in.safetensors", {**tensors, "lora_unet_q.dora_scale": value("m", 1, 5)})
    with pytest.raises(CheckpointError, match="DoRA over input channels"):
        open_any(inside, model=linears({"q": (7, 5)}))


def test_dora_of_a_convolution(tmp_path: Path) -> None:
    tensors = pair("lora_unet_c", (2, 4, 3, 3), (6, 2, 1, 1)) | {"lora_unet_c.dora_scale": value("m", 6, 1, 1, 1)}
    layer = nn.Conv2d(4, 6, 3, bias=False)
    model = skeleton({"c": layer}).eval()
    adapter = open_any(write(tmp_path / "a.safetensors", tensors), model=model)
    assert adapter.tensors["base_model.model.c.lora_magnitude_vector"].shape == (1, 6, 1, 1)
    whole = layer.weight.detach().double().flatten(1) + delta(adapter, "c")
    kernel = value("m", 6, 1, 1, 1).double().flatten(1) * whole / whole.norm(dim=1, keepdim=True)
    dw.load(model, adapter)
    x = value("x", 1, 4, 5, 5)
    assert close(layer(x).detach(), F.conv2d(x.double(), kernel.view(6, 4, 3, 3)), 1e-5)


@pytest.mark.parametrize(
    ("leaf", "name"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"), ("diff", "full difference")]
)
def test_other_methods_are_named(tmp_path: Path, leaf: str, name: str) -> None:
    path = write(tmp_path / "a.safetensors", {f"lora_unet_q.{leaf}": value(leaf, 2, 2)})
    with pytest.raises(CheckpointError, match=name):
        open_any(path, model=linears({"q": (2, 2)}))


def test_it_loads(tmp_path: Path) -> None:
    stem = "lora_unet_" + BLOCK.replace(".", "_")
    tensors = pair(stem, (2, 8), (6, 2)) | {f"{stem}.alpha": torch.tensor(1.0)}
    model = linears({BLOCK: (6, 8)}).eval()
    open_any(write(tmp_path / "a.safetensors", tensors), model=model).save(tmp_path / "out")
    dw.load(model, tmp_path / "out")
    layer, x = model.get_submodule(BLOCK), value("x", 3, 8)
    expected = (
        x @ layer.weight.t() + 0.5 * x @ tensors[f"{stem}.lora_down.weight"].t() @ tensors[f"{stem}.lora_up.weight"].t()
    )
    assert torch.allclose(layer(x), expected, atol=1e-5)
