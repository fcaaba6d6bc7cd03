"""The numbers of the paper that follow from shapes alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import nn

import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.presets import PRESETS, preset
from deltaw.train.shape import meta_model

QV = ["c_attn[q,v]"]
ROBERTA = ["query", "value"]
DEBERTA = ["query_proj", "value_proj"]


@functools.cache
def model(name: str, labels: int | None = None) -> Any:
    return meta_model(name, labels=labels)


def lora(name: str, targets: list[str], rank: int, labels: int | None = None) -> int:
    return dw.plan(model(name, labels), dw.LoRAConfig(targets=targets, rank=rank)).parameters


TOTALS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt3-175b": 174_604_259_328,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", TOTALS)
def test_model_totals(name: str) -> None:
    assert sum(p.numel() for p in model(name).parameters()) == TOTALS[name]


LORA = [
    ("roberta-base", ROBERTA, 8, 294_912),
    ("roberta-large", ROBERTA, 8, 786_432),
    ("deberta-v2-xxlarge", DEBERTA, 16, 4_718_592),
    ("deberta-v2-xxlarge", DEBERTA, 8, 2_359_296),
    ("gpt2-medium", QV, 4, 393_216),
    ("gpt2-large", QV, 4, 737_280),
    ("gpt2", QV, 4, 147_456),
    *(("gpt2-medium", QV, rank, 98_304 * rank) for rank in (1, 2, 8, 64, 1024)),
    ("gpt3-175b", ["c_attn[v]"], 2, 4_718_592),
    ("gpt3-175b", QV, 1, 4_718_592),
    ("gpt3-175b", QV, 2, 9_437_184),
    ("gpt3-175b", ["c_attn[q,k,v]", "attn.c_proj"], 1, 9_437_184),
    ("gpt3-175b", QV, 4, 18_874_368),
    ("gpt3-175b", ["c_attn[q]"], 8, 18_874_368),
    ("gpt3-175b", ["c_attn[q,k,v]", "attn.c_proj"], 2, 18_874_368),
    ("gpt3-175b", QV, 8, 37_748_736),
    ("gpt3-175b", ["c_attn[q,k,v]", "attn.c_proj"], 4, 37_748_736),
    ("gpt3-175b", QV, 64, 301_989_888),
    ("gpt3-175b", ["c_attn[q,k,v]", "attn.c_proj"], 64, 603_979_776),
]


@pytest.mark.parametrize(("name", "targets", "rank", "expected"), LORA)
def test_lora_parameters(name: str, targets: list[str], rank: int, expected: int) -> None:
    assert lora(name, targets, rank) == expected


HEADS = [
    ("roberta-base", ["classifier"], (591_361, 592_130, 592_899)),
    ("roberta-large", ["classifier"], (1_050_625, 1_051_650, 1_052_675)),
    ("deberta-v2-xxlarge", ["pooler.dense", "classifier"], (2_362_369, 2_363_906, 2_365_443)),
]


@pytest.mark.parametrize(("name", "heads", "expected"), HEADS)
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_heads_trained_beside_the_adapter(name: str, heads: list[str], expected: tuple[int, ...], labels: int) -> None:
    targets = DEBERTA if name.startswith("deberta") else ROBERTA
    plan = dw.plan(model(name, labels), dw.LoRAConfig(targets=targets, rank=8, train_also=heads))
    assert plan.parameters - lora(name, targets, 8, labels) == expected[labels - 1]


CHECKPOINTS = [
    ("roberta-base", ROBERTA, 8, ["classifier"], 3_551_244),
    ("roberta-large", ROBERTA, 8, ["classifier"], 7_356_428),
    ("deberta-v2-xxlarge", DEBERTA, 16, ["pooler.dense", "classifier"], 28_336_140),
    ("gpt2-medium", QV, 4, [], 1_572_864),
    ("gpt2-large", QV, 4, [], 2_949_120),
]


@pytest.mark.parametrize(("name", "targets", "rank", "heads", "expected"), CHECKPOINTS)
def test_checkpoint_bytes(name: str, targets: list[str], rank: int, heads: list[str], expected: int) -> None:
    labels = 3 if heads else None
    plan = dw.plan(model(name, labels), dw.LoRAConfig(targets=targets, rank=rank, train_also=heads))
    assert 4 * plan.parameters == expected


def test_gpt3_checkpoint_and_its_ratio_to_the_model() -> None:
    half = 2 * lora("gpt3-175b", QV, 4)
    assert half == 37_748_736 == 36 * 2**20
    assert round(350e9 / half) == 9_272


def test_biases_of_bitfit() -> None:
    """Biases of the encoder blocks, the embedding's norm among them."""
    for name, expected in (("roberta-base", 102_144), ("roberta-large", 271_360)):
        body: nn.Module = model(name).roberta
        found = sum(p.numel() for key, p in body.named_parameters() if key.endswith("bias"))
        assert found == expected


def test_the_papers_flags_are_those_of_its_tables() -> None:
    """Table 9: alpha 8 on RoBERTa base, 16 on large."""
    assert "--rank 8 --alpha 8 " in PRESETS["roberta-base"].paper
    assert "--rank 8 --alpha 16 " in PRESETS["roberta-large"].paper


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="gpt2-medium"):
        preset("gpt2-medum")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_note_and_a_task(name: str) -> None:
    assert PRESETS[name].note and PRESETS[name].task in {"causal", "classification"}
