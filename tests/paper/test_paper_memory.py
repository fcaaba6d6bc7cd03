"""The account of memory: every part by hand, the paper's claims beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from deltaw.cli import main
from deltaw.errors import ConfigError, ModelError
from deltaw.paper.analyses.memory import MemoryAccount, MethodMemory
from deltaw.paper.memory import StepShape, memory_account
from deltaw.paper.models import tiny_model
from verb_models import base_dir

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
        "Adapter D r=5, 1 dropped": 2 * 32 * 5 + 5 + 32,
        "PreEmbed lp=6, li=1": 32 * 7,
        "PreLayer lp=6, li=1": 2 * 32 * 7,
        "LoRA+PE qv r=3, lp=6, li=1": 2 * 4 * 32 * 3 + 32 * 7,
        "LoRA+PL qv r=3, lp=6, li=1": 2 * 4 * 32 * 3 + 2 * 32 * 7,
    }
    for name, method in methods.items():
        beside = name not in ("full fine-tuning", "FT-Top2", "BitFit")
        assert method.weights == 4 * base
        assert method.added == (4 * method.trained if beside else 0)
        assert method.gradients == 4 * method.trained and method.optimizer == 8 * method.trained
        assert method.states == method.weights + method.added + method.gradients + method.optimizer
        assert method.activations is not None and method.total == method.states + method.activations
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
        (["--drop-layers", "0"], "Adapter D", "trained"),
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
                 "MB: 10^6 bytes", "of which 16 take the place of tokens", "8 x 2,048 = 16,384 bytes"):  # fmt: skip
        assert word in text
    assert "not estimated" not in text
    assert main(["paper", "memory", place, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0}, {"bottleneck": 0}, {"batch": 0}, {"length": 0}, {"prefix": -1}, {"infix": -1}, {"dtype": "int8"},
        {"drop_layers": -1}, {"prefix": 0, "infix": 0},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        StepShape(**change)


def test_bad_inputs_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context, 64"):
        memory_account(StepShape(source=place, length=65))
    with pytest.raises(ConfigError, match="at most 1: a block of 2 keeps"):
        memory_account(StepShape(source=place, drop_layers=2))
    with pytest.raises(ConfigError, match="no attention matrices"):
        memory_account(StepShape(source=place, matrices="qx"))
    with pytest.raises(ModelError):
        memory_account(StepShape(source=str(tmp_path / "absent")))


def test_special_tokens_come_on_top_until_the_context_ends(place: str) -> None:
    """Adapters see the row's tokens, prefixes some positions more, until they take the place of tokens."""
    small, full = (by_name(memory_account(StepShape(source=place, length=n))) for n in (40, 64))
    kept = [methods["PreEmbed lp=8, li=8"].activations for methods in (small, full)]
    plain = [methods["BitFit"].activations for methods in (small, full)]
    assert None not in (*kept, *plain)
    # 56 positions keep more than 40; 64 with 48 tokens keep as many in the blocks as 64 tokens, and fewer logits
    assert kept[0] > plain[0] and kept[1] < plain[1]
    notes = [memory_account(StepShape(source=place, length=n)).notes for n in (40, 60)]
    assert "special tokens are 16 positions beside a row's 40 tokens" in notes[0]
    assert any("of which 12 take the place of tokens, because the context ends at 64" in note for note in notes[1])


def test_what_does_not_go_is_not_guessed(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    again = by_name(memory_account(StepShape(source=place, gradient_checkpointing=True)))
    absent = {name.split()[0] for name, method in again.items() if method.activations is None}
    assert absent == {"PreLayer", "LoRA+PL"}
    full = by_name(memory_account(StepShape(source=place, prefix=60, infix=4)))
    absent = {name.split()[0] for name, method in full.items() if method.activations is None}
    assert absent == {"PreEmbed", "PreLayer", "LoRA+PE", "LoRA+PL"}
    assert main(["paper", "memory", place, "--gradient-checkpointing"]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("PreLayer"))
    assert row.count("not estimated") == 2 and "does not go with gradient checkpointing" in text


def test_roberta_takes_two_positions_less_than_its_table_has(tmp_path: Path) -> None:
    tiny_model("roberta").save_pretrained(tmp_path)
    assert memory_account(StepShape(source=str(tmp_path))).length == 64
    with pytest.raises(ConfigError, match="context, 64"):
        memory_account(StepShape(source=str(tmp_path), length=65))


def test_methods_without_anything_to_train_are_left_out(tmp_path: Path) -> None:
    base_dir(tmp_path)
    found = memory_account(StepShape(source=str(tmp_path), dtype="float32"))
    assert "BitFit" not in by_name(found) and len(found.methods) == 11
    assert "BitFit is left out: blocks of llama have no bias" in found.notes


def test_output_writes_table_and_figure(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "memory", place, "-o", str(tmp_path / "out")]) == 0
    assert "wrote memory.txt, memory.csv, memory.json, memory.png, memory.svg" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "memory.csv").read_text(encoding="utf-8").splitlines()))
    held = accounted(capsys, place)["methods"]
    assert [row["method"] for row in rows] == [method["method"] for method in held] and len(rows) == 12
    for row, method in zip(rows, held, strict=True):
        for name in ("weights", "added", "gradients", "optimizer", "activations", "total"):
            assert float(row[f"{name} MB"]) == method[name] / 1e6
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".txt", ".csv", ".json", ".png", ".svg"}
