"""The paper's exact numbers of trained values, on models of its shapes without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import deltaw as dw
from deltaw import baselines as bl

GPT2 = {"S": (768, 12, 12, 1024), "M": (1024, 24, 16, 1024), "L": (1280, 36, 20, 1024), "175B": (12288, 96, 96, 2048)}
ROBERTA = {"base": (768, 12, 12), "large": (1024, 24, 16)}
QV = ["c_attn[q,v]"]


def gpt2(size: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    width, layers, heads, positions = GPT2[size]
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads, n_positions=positions))


def roberta(size: str, labels: int = 0) -> Any:
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

    width, layers, heads = ROBERTA[size]
    config = RobertaConfig(vocab_size=50265, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                           intermediate_size=4 * width, max_position_embeddings=514, type_vocab_size=1,
                           num_labels=labels or 2)  # fmt: skip
    with torch.device("meta"):
        return RobertaForSequenceClassification(config) if labels else RobertaModel(config, add_pooling_layer=False)


def lora(rank: int) -> dw.LoRAConfig:
    return dw.LoRAConfig(rank=rank, alpha=rank, targets=QV)


CASES: list[tuple[str, bl.Method, int]] = [
    ("gpt2 M", bl.Full(), 354_823_168),
    ("gpt2 L", bl.Full(), 774_030_080),
    ("roberta base", bl.Full(), 124_055_040),
    ("gpt2 M", bl.TopBlocks(blocks=2), 25_192_448),
    ("roberta base", bl.BiasOnly(), 102_144),
    ("roberta large", bl.BiasOnly(), 271_360),
    # 11 d per block, and d of the LayerNorm behind the last
    ("gpt2 M", bl.BiasOnly(), 24 * 11 * 1024 + 1024),
    ("gpt2 175B", bl.BiasOnly(), 96 * 11 * 12288 + 12288),
    *(("gpt2 175B", bl.AdapterH(bottleneck=r), n) for r, n in (
        (1, 7_078_080), (4, 21_234_432), (8, 40_109_568), (16, 77_859_840), (64, 304_361_472),
    )),
    ("roberta large", bl.AdapterP(bottleneck=64), 3_171_840),
    ("roberta large", bl.AdapterP(bottleneck=16), 811_392),
    ("roberta large", bl.AdapterH(bottleneck=64), 6_343_680),
    ("roberta large", bl.AdapterH(bottleneck=8), 835_968),
    ("gpt2 M", bl.AdapterL(bottleneck=6), 368_784),
    ("gpt2 M", bl.AdapterL(bottleneck=224), 11_089_152),
    ("gpt2 M", bl.AdapterH(bottleneck=112), 11_064_576),
    ("gpt2 L", bl.AdapterL(bottleneck=8), 875_808),
    ("gpt2 L", bl.AdapterL(bottleneck=248), 23_002_848),
    ("roberta base", bl.AdapterD(bottleneck=48, drop_layers=0), 894_528),
    ("roberta base", bl.AdapterD(bottleneck=48, drop_layers=8), 298_176),
    *(("gpt2 175B", bl.PrefixEmbedding(prefix_length=lp, infix_length=8), n) for lp, n in (
        (32, 491_520), (64, 884_736), (128, 1_671_168), (256, 3_244_032), (512, 6_389_760),
    )),
    *(("gpt2 175B", bl.PrefixLayer(prefix_length=lp, infix_length=li), n) for lp, li, n in (
        (2, 2, 4_718_592), (8, 0, 9_437_184), (8, 8, 18_874_368), (32, 4, 42_467_328), (64, 0, 75_497_472),
    )),
    *(("gpt2 175B", bl.LoRAPrefixEmbedding(prefix_length=8, infix_length=4, lora=lora(r)), n) for r, n in (
        (8, 37_896_192), (32, 151_142_400), (64, 302_137_344),
    )),
    ("gpt2 175B", bl.LoRAPrefixLayer(prefix_length=8, infix_length=4, lora=lora(8)), 51_904_512),
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Each shape once; detach makes it plain again."""
    found: dict[str, Any] = {f"gpt2 {size}": gpt2(size) for size in GPT2}
    return found | {f"roberta {size}": roberta(size) for size in ROBERTA}


@pytest.mark.parametrize(("where", "method", "count"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_count(where: str, method: bl.Method, count: int, models: dict[str, Any]) -> None:
    model = models[where]
    report = bl.attach(model, method)
    try:
        assert (report.parameters, report.head) == (count, 0)
        assert sum(p.numel() for _, p in bl.trainable(model)) == count
    finally:
        bl.detach(model)


def test_totals_of_the_bases(models: dict[str, Any]) -> None:
    totals = {"gpt2 S": 124_439_808, "gpt2 M": 354_823_168, "gpt2 L": 774_030_080, "gpt2 175B": 174_604_259_328,
              "roberta base": 124_055_040, "roberta large": 354_310_144}  # fmt: skip
    for where, total in totals.items():
        assert bl.attach(models[where], bl.AdapterP(bottleneck=1)).total == total, where
        bl.detach(models[where])


@pytest.mark.parametrize(("size", "labels", "head"), [
    ("base", 3, 592_899), ("base", 2, 592_130), ("base", 1, 591_361),
    ("large", 3, 1_052_675), ("large", 2, 1_051_650), ("large", 1, 1_050_625),
])  # fmt: skip
def test_heads_are_trained_and_counted_apart(size: str, labels: int, head: int) -> None:
    report = bl.attach(roberta(size, labels), bl.AdapterP(bottleneck=16, train_also=("classifier",)))
    assert report.head == head and report.parameters == (811_392 if size == "large" else 12 * (2 * 768 * 16 + 16 + 768))
