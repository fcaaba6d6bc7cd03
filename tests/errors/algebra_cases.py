"""Adapters and command lines that adapter algebra refuses, one case per kind."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import deltaw as dw
from deltaw.algebra import subspace_similarity
from deltaw.cli import _run

sys.path.insert(0, str(Path(__file__).parents[1] / "algebra"))
from values import PREFIX, adapter

PRINT = '{"fingerprint": {"id": "%s", "dtype": "float32", "sites": {"fc": [[8, 6], [%s]]}}}'


def line(*words: object) -> Callable[[Path], None]:
    """A command line in a directory with the adapters a and b; ``{tmp}`` in a word is the directory."""

    def run(tmp: Path) -> None:
        adapter(("fc", "conv"), 4, seed=1).save(tmp / "a")
        adapter(("fc",), 2, seed=2).save(tmp / "b")
        _run([str(word).replace("{tmp}", str(tmp)) for word in words])

    return run


def based(name: str, value: float, **fields: Any) -> dw.Adapter:
    made = dataclasses.replace(adapter(**fields), metadata={"deltaw": PRINT % (name, ", ".join([str(value)] * 8))})
    return dataclasses.replace(made, where=name)


def changed(key: str, tensor: Tensor | None, **raw: Any) -> dw.Adapter:
    made = adapter()
    tensors = {name: value for name, value in made.tensors.items() if name != PREFIX + key}
    if tensor is not None:
        tensors[PREFIX + key] = tensor
    return dataclasses.replace(made, tensors=tensors, raw={**made.raw, **raw})


def extracting(before: dict[str, Tensor], after: dict[str, Tensor], **given: Any) -> Callable[[Path], None]:
    """Two checkpoints."""

    def run(tmp: Path) -> None:
        for name, held in (("base", before), ("tuned", after)):
            (tmp / name).mkdir()
            save_file(held, tmp / name / "model.safetensors", {"format": "pt"})
        dw.extract(tmp / "base", tmp / "tuned", **{"rank": 1, **given})

    return run


def cut(tmp: Path) -> None:
    try:
        extracting({"q.weight": torch.zeros(9, 9)}, {"q.weight": torch.zeros(9, 9)})(tmp)
    except dw.DeltawError:
        file = tmp / "tuned" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-30])
        dw.extract(tmp / "base", tmp / "tuned", rank=1)


ONE = {"q.weight": torch.zeros(3, 3), "norm.weight": torch.zeros(3), "q.bias": torch.zeros(3)}
OTHER = {"q.weight": torch.ones(3, 3), "norm.weight": torch.ones(3), "q.bias": torch.ones(3)}
DORA = {PREFIX + "fc.lora_magnitude_vector": torch.ones(8)}
COPY = {PREFIX + "head.weight": torch.ones(2, 2)}

CASES: dict[str, Callable[[Path], Any]] = {
    # Resizing
    "algebra_resize_no_measure": line("resize", "{tmp}/a", "-o", "{tmp}/out"),
    "algebra_resize_two_measures": line("resize", "{tmp}/a", "--rank", 2, "--energy", 0.9, "-o", "{tmp}/out"),
    "algebra_resize_rank_too_large": line("resize", "{tmp}/a", "--rank", 64, "-o", "{tmp}/out"),
    "algebra_resize_energy_above_one": line("resize", "{tmp}/a", "--energy", 90, "-o", "{tmp}/out"),
    "algebra_resize_budget_too_small": line("resize", "{tmp}/a", "--budget", 5, "-o", "{tmp}/out"),
    "algebra_output_exists": line("resize", "{tmp}/a", "--rank", 2, "-o", "{tmp}/b"),
    "algebra_output_missing": line("resize", "{tmp}/a", "--rank", 2),
    # Combining
    "algebra_combine_nothing": lambda tmp: dw.combine([]),
    "algebra_combine_weight_missing": lambda tmp: dw.combine([adapter(), adapter()], [1.0]),
    "algebra_combine_weight_not_finite": lambda tmp: dw.combine([adapter()], [float("nan")]),
    "algebra_combine_weights_zero": lambda tmp: dw.combine([adapter(), adapter(seed=1)], [0, 0.0]),
    "algebra_combine_weight_word": line("combine", "{tmp}/a:half", "{tmp}/b", "-o", "{tmp}/out"),
    "algebra_combine_method": line("combine", "{tmp}/a", "{tmp}/b", "--method", "exakt", "-o", "{tmp}/out"),
    "algebra_combine_density_unread": line("combine", "{tmp}/a", "{tmp}/b", "--density", 0.5, "-o", "{tmp}/out"),
    "algebra_combine_seed_unread": lambda tmp: dw.combine([adapter(), adapter()], method="ties", seed=1),
    "algebra_combine_density_range": lambda tmp: dw.combine([adapter(), adapter()], method="dare", density=1.5),
    "algebra_combine_ties_ranks": lambda tmp: dw.combine([adapter(), adapter(rank=2)], method="ties"),
    "algebra_combine_other_base": lambda tmp: based("first", 0.5) + based("second", 0.25),
    "algebra_combine_shapes": lambda tmp: adapter() + changed("fc.lora_A.weight", torch.ones(4, 7)),
    "algebra_combine_dora": lambda tmp: adapter() + adapter(extra=DORA),
    "algebra_combine_copies": lambda tmp: adapter(extra=COPY) + adapter(extra=COPY, seed=1),
    "algebra_scale_copy": lambda tmp: 0.5 * adapter(extra=COPY),
    # Damaged and foreign adapters
    "algebra_other_method": lambda tmp: 2 * changed("", None, peft_type="VERA"),
    "algebra_no_update": lambda tmp: (
        dw.Adapter(tensors=COPY, raw={"peft_type": "LORA", "r": 4}).resize(rank=1)
    ),
    "algebra_half_a_pair": lambda tmp: changed("fc.lora_B.weight", None).resize(rank=1),
    "algebra_ranks_differ": lambda tmp: changed("fc.lora_B.weight", torch.ones(8, 3)).resize(rank=1),
    "algebra_not_finite": lambda tmp: changed("fc.lora_B.weight", torch.full((8, 4), float("inf"))).resize(rank=1),
    # Comparing
    "algebra_nothing_in_common": lambda tmp: adapter().similarity(adapter(("conv",), seed=1)),
    "algebra_compare_one": line("compare", "{tmp}/a"),
    "algebra_compare_absent": line("compare", "{tmp}/a", "{tmp}/c"),
    "algebra_subspace_unknown": lambda tmp: adapter().similarity(adapter(seed=1)).phi("fcc"),
    "algebra_subspace_directions": lambda tmp: subspace_similarity(torch.eye(2, 5), torch.eye(3, 5), 3, 1),
    # Extracting
    "algebra_extract_no_measure": line("extract", "--base", "{tmp}", "--tuned", "{tmp}", "-o", "{tmp}/out"),
    "algebra_extract_rank": extracting(ONE, OTHER, rank=0),
    "algebra_extract_energy": extracting(ONE, OTHER, rank=None, energy=90),
    "algebra_extract_no_weights": line(
        "extract", "--base", "{tmp}/a", "--tuned", "{tmp}/b", "--rank", 1, "-o", "{tmp}/o"
    ),
    "algebra_extract_cut": cut,
    "algebra_extract_rest": extracting(ONE, OTHER),
    "algebra_extract_same": extracting(ONE, ONE),
    "algebra_extract_layout": extracting({"h.c_proj.weight": torch.zeros(2, 2)}, {"h.c_proj.weight": torch.ones(2, 2)}),
    "algebra_extract_not_finite": extracting(ONE, {**ONE, "q.weight": torch.full((3, 3), float("nan"))}),
}  # fmt: skip
