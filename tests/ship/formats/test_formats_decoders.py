"""litgpt, torchtune and mlx-lm: their own names and layouts, put on transformers' modules.

The reference is each tool's weight in its own layout plus its own update; converting weight and update by the tool's
published rule must give transformers' weight plus ours.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_for_tests import close, delta, filled, value, write
from torch import Tensor, nn

import deltaw as dw
from deltaw.errors import CheckpointError
from deltaw.ship.formats import open_any

ALPHA, RANK = 6, 2
HIDDEN, HEADS, GROUPS, SIZE, INNER = 16, 4, 2, 4, 24
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 2, "vocab_size": 32,
         "intermediate_size": INNER, "max_position_embeddings": 16, "pad_token_id": 0}  # fmt: skip


@functools.cache
def model(kind: str, groups: int = GROUPS) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    more: dict[str, Any] = {"falcon": {"new_decoder_architecture": True, "num_kv_heads": groups, "bias": False}}.get(
        kind, {} if kind == "gpt_neox" else {"num_key_value_heads": groups}
    )
    config = AutoConfig.for_model(kind, **SIZES, **more)
    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(config)
    return made


# ---- litgpt


def lit(place: Path, tensors: dict[str, Tensor], heads: tuple[int, int] = (HEADS, GROUPS), **switches: bool) -> Path:
    torch.save({"model": tensors}, place / "lit_model.pth.lora")
    lines = [f"lora_r: {RANK}", f"lora_alpha: {ALPHA}", "data:", "  class_path: litgpt.data.JSON", "devices: 1"]
    lines += [f"lora_{name}: {str(on).lower()}" for name, on in switches.items()]
    (place / "hyperparameters.yaml").write_text("\n".join(lines) + "\n")
    config = {"name": "tiny", "n_head": heads[0], "n_query_groups": heads[1], "head_size": SIZE, "n_embd": HIDDEN}
    (place / "model_config.yaml").write_text("".join(f"{key}: {entry}\n" for key, entry in config.items()))
    return place


def qkv_delta(
    tensors: dict[str, Tensor], stem: str, enable: tuple[bool, bool, bool], groups: int
) -> list[Tensor | None]:
    """The updates of q, k and v, as LoRAQKVLinear splits its factors."""
    widths = [HEADS * SIZE, groups * SIZE, groups * SIZE]
    on = [width for width, used in zip(widths, enable, strict=True) if used]
    parts = zip(
        tensors[f"{stem}.lora_A"].double().chunk(len(on)), tensors[f"{stem}.lora_B"].double().split(on), strict=True
    )
    made = [ALPHA / RANK * lora_B @ lora_A for lora_A, lora_B in parts]
    return [made.pop(0) if used else None for used in enable]


@pytest.mark.parametrize(
    "enable", [(True, False, True), (True, True, True), (False, True, False), (True, False, False)]
)
@pytest.mark.parametrize("name", ["attn.qkv", "attn.attn"])
@pytest.mark.parametrize("stated", [True, False])
def test_litgpt_split_projections(tmp_path: Path, enable: tuple[bool, bool, bool], name: str, stated: bool) -> None:
    stem, widths = f"transformer.h.1.{name}", (HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE)
    rows = sum(width for width, on in zip(widths, enable, strict=True) if on)
    tensors = filled({f"{stem}.lora_A": (RANK * sum(enable), HIDDEN), f"{stem}.lora_B": (rows, RANK)})
    switches = dict(zip(("query", "key", "value"), enable, strict=True)) if stated else {}
    # the shapes alone leave two readings of one key-sized part, or of q and one more
    ask = {} if stated or enable in ((True, True, True), (True, False, False)) else {"enable": enable}
    adapter = open_any(lit(tmp_path, tensors, **switches), model=model("llama"), **ask)
    for role, expected in zip("qkv", qkv_delta(tensors, stem, enable, GROUPS), strict=True):
        path = f"model.layers.1.self_attn.{role}_proj"
        assert (path in adapter.modules()) == (expected is not None)
        if expected is not None:
            assert close(delta(adapter, path), expected)
            assert adapter.factors(path)[0].shape[0] == RANK


@pytest.mark.parametrize(("kind", "groups"), [("gpt_neox", HEADS), ("falcon", GROUPS), ("phi3", GROUPS)])
def test_litgpt_fused_projections(tmp_path: Path, kind: str, groups: int) -> None:
    stem = "transformer.h.0.attn.qkv"
    enable = (True, False, True)
    rows = (HEADS + groups) * SIZE
    tensors = filled({f"{stem}.lora_A": (RANK * 2, HIDDEN), f"{stem}.lora_B": (rows, RANK)})
    source = lit(tmp_path, tensors, (HEADS, groups), query=True, key=False, value=True)
    adapter = open_any(source, model=model(kind, groups))
    (path,) = adapter.modules()
    q, _, v = qkv_delta(tensors, stem, enable, groups)
    assert q is not None and v is not None
    k = torch.zeros(groups * SIZE, HIDDEN, dtype=torch.float64)
    whole = torch.cat([q, k, v])
    if kind != "phi3":
        # each group's queries, its key and its value lie together
        share = HEADS // groups
        parts = (q.view(groups, share * SIZE, HIDDEN), k.view(groups, SIZE, HIDDEN), v.view(groups, SIZE, HIDDEN))
        whole = torch.cat(parts, dim=1).reshape(-1, HIDDEN)
    assert close(delta(adapter, path), whole)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi", "falcon", "phi3"])
def test_litgpt_other_modules(tmp_path: Path, kind: str) -> None:
    inner = 4 * HIDDEN if kind == "falcon" else INNER
    gated = kind in ("llama", "phi3")
    shapes = {"attn.proj": (HIDDEN, HIDDEN), "mlp.proj": (HIDDEN, inner)}
    shapes |= {"mlp.fc_1": (inner, HIDDEN), "mlp.fc_2": (inner, HIDDEN)} if gated else {"mlp.fc": (inner, HIDDEN)}
    tensors = filled({f"transformer.h.0.{n}.lora_A": (RANK, i) for n, (_, i) in shapes.items()})
    tensors |= filled({f"transformer.h.0.{n}.lora_B": (o, RANK) for n, (o, _) in shapes.items()})
    tensors |= filled({"lm_head.lora_A": (RANK, HIDDEN), "lm_head.lora_B": (32, RANK)})
    adapter = open_any(lit(tmp_path, tensors), model=model(kind))
    made = {name: ALPHA / RANK * tensors[f"transformer.h.0.{name}.lora_B"].double()
            @ tensors[f"transformer.h.0.{name}.lora_A"].double() for name in shapes}  # fmt: skip
    ends = {"attn.proj": ("o_proj", "dense"), "mlp.proj": ("down_proj", "dense_4h_to_h", "fc2")}
    for name, leaves in ends.items():
        where = [p for p in adapter.modules() if p.endswith(leaves)]
        assert len(where) == 1 and close(delta(adapter, where[0]), made[name])
    assert len(adapter.modules()) == len(shapes) + 1 - (kind == "phi3")
    if kind == "phi3":
        fused = delta(adapter, "model.layers.0.mlp.gate_up_proj")
        assert close(fused, torch.cat([made["mlp.fc_1"], made["mlp.fc_2"]]))


def test_litgpt_needs_its_words(tmp_path: Path) -> None:
    stem = "transformer.h.0.attn.qkv"
    tensors = filled({f"{stem}.lora_A": (RANK * 2, HIDDEN), f"{stem}.lora_B": ((HEADS + GROUPS) * SIZE, RANK)})
    lit(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="may be several of q, k, v"):
        open_any(tmp_path, model=model("llama"))
    with pytest.raises(CheckpointError, match="family is not known"):
        open_any(tmp_path)
    (tmp_path / "hyperparameters.yaml").unlink()
    with pytest.raises(CheckpointError, match="does not say its alpha"):
        open_any(tmp_path, model=model("llama"), enable="q,v")
    (tmp_path / "model_config.yaml").unlink()
    # the base's configuration says the heads as well
    adapter = open_any(tmp_path, model=model("llama"), enable="q,v", alpha=ALPHA)
    assert adapter.modules() == [f"model.layers.0.self_attn.{x}_proj" for x in "qv"]


# ---- torchtune


def pairs(tensor: Tensor, heads: int) -> Tensor:
    """torchtune's ``hf_to_tune`` on the rows of a weight."""
    return tensor.view(heads, 2, SIZE // 2, -1).transpose(1, 2).reshape(heads * SIZE, -1)


def tune(place: Path, kind: str = "w") -> dict[str, Tensor]:
    shapes = {"attn.q_proj": (HEADS * SIZE, HIDDEN), "attn.k_proj": (GROUPS * SIZE, HIDDEN),
              "attn.v_proj": (GROUPS * SIZE, HIDDEN), "attn.output_proj": (HIDDEN, HIDDEN), "mlp.w1": (INNER, HIDDEN),
              "mlp.w2": (HIDDEN, INNER), "mlp.w3": (INNER, HIDDEN)}  # fmt: skip
    tensors = filled({f"layers.1.{name}.lora_a.weight": (RANK, i) for name, (_, i) in shapes.items()})
    tensors |= filled({f"layers.1.{name}.lora_b.weight": (o, RANK) for name, (o, _) in shapes.items()})
    write(place / "adapter_0.pt", tensors)
    (place / "adapter_config.json").write_text(
        json.dumps({"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "peft_type": "LORA"})
    )
    return tensors


TUNE = {"attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
        "attn.output_proj": "self_attn.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj",
        "mlp.w3": "mlp.up_proj"}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma", "qwen2"])
def test_torchtune(tmp_path: Path, kind: str) -> None:
    tensors = tune(tmp_path)
    base = model(kind) if kind != "gemma" else gemma()
    adapter = open_any(tmp_path, model=base)
    assert len(adapter.modules()) == len(TUNE)
    for name, path in TUNE.items():
        theirs = (
            ALPHA
            / RANK
            * tensors[f"layers.1.{name}.lora_b.weight"].double()
            @ tensors[f"layers.1.{name}.lora_a.weight"].double()
        )
        ours = delta(adapter, f"model.layers.1.{path}")
        heads = {"attn.q_proj": HEADS, "attn.k_proj": GROUPS}.get(name)
        assert close(ours if heads is None or kind == "qwen2" else pairs(ours, heads), theirs)


@functools.cache
def gemma() -> nn.Module:
    from transformers import AutoModelForCausalLM, GemmaConfig

    with torch.device("meta"):
        made: nn.Module = AutoModelForCausalLM.from_config(
            GemmaConfig(**SIZES, num_key_value_heads=GROUPS, head_dim=SIZE)
        )
    return made


def test_torchtune_rotary_products_are_those_of_transformers() -> None:
    """The permutation is the one under which both ways to rotate give the same attention."""
    from deltaw.ship.formats.torchtune import halves

    angle = value("angles", SIZE // 2)
    theirs = value("q", 1, HEADS, SIZE)
    a, b = theirs[..., 0::2], theirs[..., 1::2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2)
    ours = halves(theirs.reshape(-1), HEADS).view(1, HEADS, SIZE)
    c, d = ours.chunk(2, -1)
    rotated = torch.cat([c * angle.cos() - d * angle.sin(), d * angle.cos() + c * angle.sin()], -1)
    assert torch.equal(halves(turned.reshape(-1), HEADS), rotated.reshape(-1))


def test_torchtune_phi3_is_fused(tmp_path: Path) -> None:
    tensors = tune(tmp_path)
    adapter = open_any(tmp_path, model=model("phi3"))
    made = {name: ALPHA / RANK * tensors[f"layers.1.{name}.lora_b.weight"].double()
            @ tensors[f"layers.1.{name}.lora_a.weight"].double() for name in TUNE}  # fmt: skip
    expected = torch.cat([made[f"attn.{x}_proj"] for x in "qkv"])
    assert close(delta(adapter, "model.layers.1.self_attn.qkv_proj"), expected)
    assert close(delta(adapter, "model.layers.1.mlp.gate_up_proj"), torch.cat([made["mlp.w1"], made["mlp.w3"]]))


def test_torchtune_magnitudes_follow_their_rows(tmp_path: Path) -> None:
    tensors = tune(tmp_path)
    tensors |= filled({"layers.1.attn.q_proj.magnitude": (HEADS * SIZE,)})
    write(tmp_path / "adapter_0.pt", {key: t for key, t in tensors.items() if "q_proj" in key})
    adapter = open_any(tmp_path, model=model("llama"))
    magnitude = adapter.tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"]
    assert torch.equal(pairs(magnitude[:, None], HEADS)[:, 0], tensors["layers.1.attn.q_proj.magnitude"])


def test_torchtune_inside_a_checkpoint(tmp_path: Path) -> None:
    tensors = tune(tmp_path / "a") if (tmp_path / "a").mkdir() is None else {}
    torch.save(
        {"adapter": tensors, "adapter_config": {"r": RANK, "lora_alpha": ALPHA}, "epochs_run": 1}, tmp_path / "c.pt"
    )
    assert open_any(tmp_path / "c.pt", model=model("llama")).hash == open_any(tmp_path / "a", model=model("llama")).hash


def test_torchtune_needs_the_family_and_the_heads(tmp_path: Path) -> None:
    tune(tmp_path)
    with pytest.raises(CheckpointError, match="family is not known"):
        open_any(tmp_path, model=[name for name, _ in model("llama").named_modules() if name])


# ---- mlx-lm


def mlx(place: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    write(place / "adapters.safetensors", tensors)
    stated = {
        "fine_tune_type": "lora",
        "num_layers": 4,
        "lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0},
    }
    (place / "adapter_config.json").write_text(json.dumps({**stated, **config}))
    return place


def test_mlx(tmp_path: Path) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    tensors = filled({f"{stem}.lora_a": (HIDDEN, RANK), f"{stem}.lora_b": (RANK, HIDDEN)})
    tensors |= filled({"model.embed_tokens.lora_a": (32, RANK), "model.embed_tokens.lora_b": (RANK, HIDDEN)})
    for base in (model("llama"), None):
        adapter = open_any(mlx(tmp_path, tensors), model=base)
        for path, turned in ((stem, True), ("model.embed_tokens", False)):
            product = 20.0 * tensors[f"{path}.lora_a"].double() @ tensors[f"{path}.lora_b"].double()
            # an embedding's update as a matrix is (D, V), the table's own is (V, D)
            assert close(delta(adapter, path), product.t()) and (turned or path.endswith("embed_tokens"))
        assert "base_model.model.model.embed_tokens.lora_embedding_A" in adapter.tensors


def test_mlx_dora(tmp_path: Path) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    tensors = filled({f"{stem}.lora_a": (HIDDEN, RANK), f"{stem}.lora_b": (RANK, HIDDEN), f"{stem}.m": (HIDDEN,)})
    adapter = open_any(mlx(tmp_path, tensors, fine_tune_type="dora"), model=model("llama"))
    assert adapter.raw["use_dora"] is True
    assert torch.equal(adapter.tensors[f"base_model.model.{stem}.lora_magnitude_vector"], tensors[f"{stem}.m"])


def test_mlx_with_scale_and_alpha_has_two_meanings(tmp_path: Path) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    tensors = filled({f"{stem}.lora_a": (HIDDEN, RANK), f"{stem}.lora_b": (RANK, HIDDEN)})
    both = {"rank": RANK, "scale": 10.0, "alpha": 16.0}
    mlx(tmp_path, tensors, lora_parameters=both)
    with pytest.raises(CheckpointError, match="--alpha 20 or --alpha 160"):
        open_any(tmp_path)
    assert open_any(tmp_path, alpha=160).scaling(stem) == 80.0
    mlx(tmp_path, tensors, lora_parameters={**both, "alpha": RANK})
    assert open_any(tmp_path).scaling(stem) == 10.0


def test_mlx_refuses_what_is_no_module(tmp_path: Path) -> None:
    stem = "model.layers.0.mlp.switch_mlp.up_proj"
    tensors = filled({f"{stem}.lora_a": (4, RANK, HIDDEN), f"{stem}.lora_b": (4, HIDDEN, RANK)})
    with pytest.raises(CheckpointError, match="stack of experts"):
        open_any(mlx(tmp_path, tensors))
    mlx(tmp_path, {"model.norm.weight": value("w", 4)}, fine_tune_type="full")
    with pytest.raises(CheckpointError, match="no low-rank update"):
        open_any(tmp_path)


@pytest.mark.parametrize("kind", ["torchtune", "mlx", "litgpt"])
def test_it_loads(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    path = "model.layers.1.self_attn.v_proj"
    if kind == "torchtune":
        write(tmp_path / "adapter_0.pt", {k: t for k, t in tune(tmp_path).items() if "v_proj" in k})
    elif kind == "mlx":
        mlx(tmp_path, filled({f"{path}.lora_a": (HIDDEN, RANK), f"{path}.lora_b": (RANK, GROUPS * SIZE)}))
    else:
        stem = "transformer.h.1.attn.qkv"
        shapes = {f"{stem}.lora_A": (RANK, HIDDEN), f"{stem}.lora_B": (GROUPS * SIZE, RANK)}
        lit(tmp_path, filled(shapes), value=True)
    base = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_key_value_heads=GROUPS)).eval()
    adapter = open_any(tmp_path, model=base)
    adapter.save(tmp_path / "out")
    layer, x = base.get_submodule(path), torch.eye(HIDDEN)
    before = layer(x)
    dw.load(base, tmp_path / "out")
    assert torch.allclose((layer(x) - before).t().double(), delta(adapter, path), atol=1e-4)
