"""The account of memory: every part by hand, the paper's claims beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltaw.cli import main
from deltaw.errors import ConfigError, ModelError
from deltaw.paper.memory import MemoryAccount, MethodMemory, StepShape, memory_account
from deltaw.paper.models import tiny_model

GPT3 = 174_604_259_328


def by_name(account: MemoryAccount) -> dict[str, MethodMemory]:
    return {method.method: method for method in account.methods}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tiny")
    tiny_model("gpt2").save_pretrained(directory)
    return str(directory)


@pytest.mark.slow
def test_gpt3_beside_the_claims_of_the_paper() -> None:
    account = memory_account(StepShape())
    methods = by_name(account)
    full, lora = methods["full fine-tuning"], methods["LoRA qv r=4"]
    assert account.base == GPT3 and lora.trained == 18_874_368
    assert lora.optimizer == 8 * 18_874_368 and full.optimizer == 8 * GPT3
    assert lora.weights == full.weights == 2 * GPT3
    # 2 bytes of weights, 2 of gradients, 4 of float32 copies, 8 of moments for each value.
    assert full.states == 16 * GPT3
    assert lora.states == 2 * GPT3 + 16 * 18_874_368
    claims = {claim.name: claim for claim in account.claims}
    assert claims["full fine-tuning"].paper == "1.2TB"
    assert claims["full fine-tuning"].ours == (
        "2,793.7 GB of states; 1,047.6 GB as weights and two moments in float16 alone"
    )
    assert (claims["LoRA"].paper, claims["LoRA"].ours) == ("350GB", "349.5 GB of states")
    assert claims["less memory"].paper == "3x" and "3.00 times by the second account" in claims["less memory"].ours
    assert claims["share saved, at most"].paper == "2/3" and "66.64%" in claims["share saved, at most"].ours
    assert f"{full.optimizer / lora.optimizer:,.1f}" == "9,250.9"
    assert "9,250.9 times" in claims["optimizer states of LoRA"].ours


def test_every_method_of_a_small_model_by_hand(place: str) -> None:
    # width 32, 2 blocks, 128 tokens, 64 positions
    block, base = 12 * 32**2 + 13 * 32, (128 + 64) * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32
    account = memory_account(StepShape(source=place, rank=3, bottleneck=5, prefix=6, infix=1, dtype="float32"))
    methods = by_name(account)
    assert {name: method.trained for name, method in methods.items()} == {
        "full fine-tuning": base,
        "FT-Top2": 2 * block,
        "BitFit": 2 * 11 * 32,
        "LoRA qv r=3": 2 * 4 * 32 * 3,
        "Adapter H r=5": 4 * (2 * 32 * 5 + 5 + 32),
        "Adapter L r=5": 2 * (2 * 32 * 5 + 5 + 32) + 2 * 2 * 32,
        "Adapter P r=5": 2 * (2 * 32 * 5 + 5 + 32),
        "PreEmbed lp=6, li=1": 32 * 7,
        "PreLayer lp=6, li=1": 2 * 32 * 7,
    }
    for name, method in methods.items():
        beside = name not in ("full fine-tuning", "FT-Top2", "BitFit")
        assert method.weights == 4 * base
        assert method.added == (4 * method.trained if beside else 0)
        assert method.gradients == 4 * method.trained and method.optimizer == 8 * method.trained
        assert method.states == method.weights + method.added + method.gradients + method.optimizer
        estimated = name in ("full fine-tuning", "LoRA qv r=3")
        assert (method.activations is not None) == estimated
        assert method.total == (method.states + method.activations if method.activations is not None else None)
    assert account.length == 64 and all(claim.paper == "" for claim in account.claims)


def test_half_precision_keeps_float32_copies_of_what_it_trains(place: str) -> None:
    methods = by_name(memory_account(StepShape(source=place, dtype="bfloat16")))
    top = methods["FT-Top2"]
    assert (top.added, top.gradients) == (4 * top.trained, 2 * top.trained)
    assert methods["full fine-tuning"].added == 4 * methods["full fine-tuning"].trained


def accounted(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["paper", "memory", *words, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def part(found: dict[str, Any], method: str, name: str) -> int:
    return next(int(row[name]) for row in found["methods"] if row["method"].startswith(method))


@pytest.mark.parametrize(
    ("words", "method", "name"),
    [
        (["--matrices", "qkvo"], "LoRA", "trained"),
        (["--rank", "2"], "LoRA", "trained"),
        (["--bottleneck", "4"], "Adapter H", "trained"),
        (["--prefix", "3"], "PreEmbed", "trained"),
        (["--infix", "3"], "PreLayer", "trained"),
        (["--dtype", "float32"], "full", "weights"),
        (["--batch", "3"], "LoRA", "activations"),
        (["--length", "16"], "full", "activations"),
        (["--gradient-checkpointing"], "full", "activations"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_option_changes_a_number(
    words: list[str], method: str, name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, changed = accounted(capsys, place), accounted(capsys, place, *words)
    assert part(plain, method, name) != part(changed, method, name)


def test_labels_change_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("roberta").save_pretrained(tmp_path)
    two, five = accounted(capsys, str(tmp_path)), accounted(capsys, str(tmp_path), "--labels", "5")
    assert five["base_parameters"] == two["base_parameters"] + 3 * 33


def test_the_text_has_a_line_for_each_method(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "memory", place]) == 0
    text = capsys.readouterr().out
    for word in ("full fine-tuning", "FT-Top2", "BitFit", "LoRA qv r=8", "Adapter P r=8", "PreLayer lp=8, li=8",
                 "MB = 10^6 bytes", "100.00%", "8 x 2,048 = 16,384 bytes"):  # fmt: skip
        assert word in text
    assert main(["paper", "memory", place, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [{"rank": 0}, {"bottleneck": 0}, {"batch": 0}, {"length": 0}, {"prefix": -1}, {"infix": -1}, {"dtype": "int8"}],
    ids=str,
)
def test_sizes_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        StepShape(**change)


def test_bad_inputs_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context, 64"):
        memory_account(StepShape(source=place, length=65))
    with pytest.raises(ConfigError, match="no attention matrices"):
        memory_account(StepShape(source=place, matrices="qx"))
    with pytest.raises(ModelError):
        memory_account(StepShape(source=str(tmp_path / "absent")))
