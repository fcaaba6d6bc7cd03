"""Adapters of other tools that cannot be converted, one case per kind; each callable gets an empty directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.cli import _run
from deltaw.ship.formats import open_any

sys.path.insert(0, str(Path(__file__).parents[1] / "ship" / "formats"))
from formats_for_tests import linears, write

PAIR = {"encoder.query.lora_A": (2, 4), "encoder.query.lora_B": (4, 2)}
FUSED = {"h.0.c_attn.lora_A": (4, 4), "h.0.c_attn.lora_B": (8, 2)}
KOHYA = {"lora_unet_mid_q.lora_down.weight": (2, 4), "lora_unet_mid_q.lora_up.weight": (4, 2)}
STEM = "transformer.h.0.attn.qkv"


def convert(
    shapes: Mapping[str, tuple[int, ...]],
    *words: str,
    name: str = "lora.safetensors",
    tree: Mapping[str, tuple[int, int]] | None = None,
    beside: dict[str, Any] | None = None,
) -> Callable[[Path], None]:
    """``deltaw convert`` of a file with these tensors, against a tree given by path -> (O, I)."""

    def run(tmp: Path) -> None:
        tensors: dict[str, Tensor] = {key: torch.ones(shape) for key, shape in shapes.items()}
        write(tmp / name, tensors)
        if beside is not None:
            (tmp / "adapter_config.json").write_text(json.dumps(beside))
        said = [word.replace("{tmp}", str(tmp)) for word in words]
        if tree is not None:
            (tmp / "tree.json").write_text(json.dumps({path: list(sizes) for path, sizes in tree.items()}))
            said += ["--tree", str(tmp / "tree.json")]
        _run(["convert", str(tmp / name), "--output", str(tmp / "out"), *said])

    return run


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def dangerous(tmp: Path) -> None:
    torch.save({"q.lora_A": Runs()}, tmp / "lora.bin")
    open_any(tmp / "lora.bin", alpha=1)


def nothing(tmp: Path) -> None:
    (tmp / "lora.bin").write_bytes(b"no pickle")
    open_any(tmp / "lora.bin", alpha=1)


def cut(tmp: Path) -> None:
    write(tmp / "lora.pt", {"q.lora_A": torch.ones(2, 64), "q.lora_B": torch.ones(64, 2)})
    (tmp / "lora.pt").write_bytes((tmp / "lora.pt").read_bytes()[:300])
    open_any(tmp / "lora.pt", alpha=1)


def wrapped(tmp: Path) -> None:
    torch.save({"model": {"layers": [1, 2], "rank": 4}}, tmp / "lora.pt")
    open_any(tmp / "lora.pt", alpha=1)


def several(tmp: Path) -> None:
    for name in ("first.pt", "second.pt"):
        write(tmp / name, {"q.lora_A": torch.ones(1, 2)})
    open_any(tmp)


def infinite(tmp: Path) -> None:
    write(tmp / "lora.pt", {"q.lora_A": torch.full((1, 2), float("nan")), "q.lora_B": torch.ones(2, 1)})
    open_any(tmp / "lora.pt", model=linears({"q": (2, 2)}), alpha=1)


def head_of_other_size(tmp: Path) -> None:
    tensors = {"q.lora_A": torch.ones(1, 2), "q.lora_B": torch.ones(2, 1), "classifier.weight": torch.ones(3, 2)}
    write(tmp / "lora.pt", tensors)
    open_any(tmp / "lora.pt", model=nn.ModuleDict({"q": nn.Linear(2, 2), "classifier": nn.Linear(2, 5)}), alpha=1)


def missing(tmp: Path) -> None:
    write(tmp / "lora.safetensors", {"q.lora_A": torch.ones(1, 2)})
    _run(["convert", str(tmp / "lora.safetensor"), "--output", str(tmp / "out")])


def twice_named(tmp: Path) -> None:
    (tmp / "out").mkdir()
    convert(PAIR, "--alpha", "4")(tmp)


MLX = {"layers.0.q.lora_a": (4, 2), "layers.0.q.lora_b": (2, 4)}
BOTH = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 10.0, "alpha": 16.0}}
TUNE = {"layers.0.attn.q_proj.lora_a.weight": (2, 4), "layers.0.attn.q_proj.lora_b.weight": (4, 2)}
WHOLE = {**PAIR, "encoder.query.weight": (4, 4)}
GROUPED = {"base_model.model.q.lora_A.weight": (4, 4), "base_model.model.q.lora_B.weight": (8, 2, 1)}
TEXT = {"lora_te_q.lora_down.weight": (2, 4), "lora_te_q.lora_up.weight": (4, 2)}

CASES: dict[str, Callable[[Path], None]] = {
    "convert_alpha_missing": convert(PAIR),
    "convert_alpha_zero": convert(PAIR, "--alpha", "0"),
    "convert_option_without_effect": convert(PAIR, "--alpha", "4", "--enable", "q,v"),
    "convert_format_unknown": convert(PAIR, "--from", "kohia"),
    "convert_format_of_nobody": convert({"encoder.query.weight": (4, 4), "encoder.query.bias": (4,)}),
    "convert_source_missing": missing,
    "convert_output_exists": twice_named,
    "convert_model_and_tree": convert(PAIR, "--model", "gpt2", tree={"q": (4, 4)}),
    "convert_tree_missing": convert(PAIR, "--alpha", "4", "--tree", "{tmp}/none.txt"),
    "convert_half_a_pair": convert({**PAIR, "encoder.value.lora_A": (2, 4)}, "--alpha", "4"),
    "convert_ranks_differ": convert({"q.lora_A": (3, 4), "q.lora_B": (4, 2)}, "--alpha", "4"),
    "convert_module_unknown": convert(PAIR, "--alpha", "4", tree={"encoder.q_query": (4, 4)}),
    "convert_sizes_differ": convert(PAIR, "--alpha", "4", tree={"encoder.query": (6, 6)}),
    "convert_enable_missing": convert(FUSED, "--alpha", "4", tree={"h.0.c_attn": (12, 4)}),
    "convert_enable_wrong": convert(FUSED, "--alpha", "4", "--enable", "1,1,0,0", tree={"h.0.c_attn": (12, 4)}),
    "convert_enable_unreadable": convert(FUSED, "--alpha", "4", "--enable", "q,w"),
    "convert_whole_checkpoint": convert(WHOLE, "--alpha", "4"),
    "convert_head_of_other_size": head_of_other_size,
    "convert_not_finite": infinite,
    "convert_pickle_runs_code": dangerous,
    "convert_pickle_cut": cut,
    "convert_no_tensors": wrapped,
    "convert_several_files": several,
    "convert_names_without_a_tree": convert(KOHYA),
    "convert_name_ambiguous": convert(KOHYA, tree={"mid.q": (4, 4), "mid_q": (4, 4)}),
    "convert_name_unknown": convert(KOHYA, tree={"mid.qq": (4, 4), "down.q": (4, 4)}),
    "convert_other_method": convert({"lora_unet_q.hada_w1_a": (4, 2), "lora_unet_q.lokr_w1": (2, 2)}),
    "convert_stray_tensor": convert({**KOHYA, "lora_unet_mid_q.scale": (1,)}, tree={"mid.q": (4, 4)}),
    "convert_dora_over_inputs": convert({**KOHYA, "lora_unet_mid_q.dora_scale": (1, 4)}, tree={"mid.q": (4, 4)}),
    "convert_several_models": convert({**KOHYA, **TEXT}, tree={"mid.q": (4, 4)}),
    "convert_component_absent": convert({**KOHYA, **TEXT}, "--part", "prior", tree={"mid.q": (4, 4)}),
    "convert_tree_lacks_component": convert({**KOHYA, **TEXT}, tree={"unet.mid.q": (4, 4)}),
    "convert_family_unknown": convert(TUNE, beside={"r": 2, "lora_alpha": 4}),
    "convert_litgpt_heads": convert({f"{STEM}.lora_A": (4, 4), f"{STEM}.lora_B": (8, 2)}, "--alpha", "4",
                                    tree={"model.layers.0.self_attn.q_proj": (4, 4),
                                          "model.layers.0.self_attn.o_proj": (4, 4),
                                          "model.layers.0.mlp.gate_proj": (4, 4)}),
    "convert_mlx_scale_and_alpha": convert(MLX, beside=BOTH),
    "convert_mlx_full": convert({"layers.0.q.weight": (4, 4)}, beside={"fine_tune_type": "full"}),
    "convert_pickle_of_nothing": nothing,
    "convert_grouped_unsaid": convert(GROUPED,
                                      beside={"peft_type": "LORA", "r": 2, "lora_alpha": 4}),
}  # fmt: skip
