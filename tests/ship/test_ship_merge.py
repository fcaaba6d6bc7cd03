"""Merged directories: complete, plain, faithful, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import deltaw as dw
from deltaw.errors import CheckpointError, ConfigError, DataError, FaithError, ModelError
from deltaw.ship import merge as ship_merge
from deltaw.ship.merge import merge_directory
from deltaw.ship.opening import MERGED, ModelChoice
from verb_models import adapter_dir, base_dir, bend_merges

PROMPT = torch.tensor([[1, 40, 60, 80, 100, 33, 7]])


def listed(place: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(place.iterdir())}


def test_a_complete_directory_that_plain_transformers_loads(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", chat=True)
    adapter = adapter_dir(base, tmp_path / "adapter")
    before = listed(base), listed(adapter)
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")
    assert (listed(base), listed(adapter)) == before
    names = set(written.files)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", MERGED} <= names
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    on = AutoModelForCausalLM.from_pretrained(base).eval()
    plain = on(PROMPT).logits
    dw.load(on, adapter)
    assert not torch.allclose(plain, on(PROMPT).logits, atol=1e-2)
    assert torch.allclose(model(PROMPT).logits, on(PROMPT).logits, atol=1e-4)
    record = json.loads((tmp_path / "merged" / MERGED).read_text())
    assert record["faithful"] and record["adapter_hash"] == dw.Adapter.open(adapter).hash == written.adapter_hash
    assert "merge: faithful" in str(written) and "model.safetensors" in str(written)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.bfloat16, "float16", torch.float16),
    ],
    ids=str,
)
def test_the_dtype_of_the_files(tmp_path: Path, stored: torch.dtype, asked: str, expected: torch.dtype) -> None:
    base = base_dir(tmp_path / "base", dtype=stored)
    adapter = adapter_dir(base, tmp_path / "adapter")
    choice = ModelChoice(model=str(base), adapter=str(adapter), dtype=asked)
    written = merge_directory(choice, tmp_path / "merged")
    assert written.fidelity.faithful and written.fidelity.dtype == expected
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {expected}  # noqa: SIM118


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_written_once(tmp_path: Path, tied: bool) -> None:
    base = base_dir(tmp_path / "base", tie_word_embeddings=tied)
    adapter = adapter_dir(base, tmp_path / "adapter", targets=["q_proj"])
    merge_directory(ModelChoice(adapter=str(adapter), dtype="bfloat16"), tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118


def test_a_classifier_with_its_head(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "bert", num_labels=3)
    adapter = adapter_dir(base, tmp_path / "adapter", targets=["query"], train_also=["classifier"])
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")
    assert written.fidelity.faithful and written.fidelity.tokens == 5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    head = dw.Adapter.open(adapter).contents.rest["classifier.weight"]
    assert torch.equal(model.classifier.weight, head)


def sabotage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that forgets a thousandth of the update."""
    bend_merges(monkeypatch, 0.999)


def test_a_sabotaged_merge_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapter_dir(base, tmp_path / "adapter")
    sabotage(monkeypatch)
    choice = ModelChoice(model=str(base), adapter=str(adapter))
    with pytest.raises(FaithError, match="does not reproduce"):
        merge_directory(choice, tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base"]
    assert merge_directory(choice, tmp_path / "merged", tolerance=0.05).fidelity.faithful


def test_what_is_on_disk_is_what_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapter_dir(base, tmp_path / "adapter")
    write = ship_merge._write

    def wrong(work: object, place: Path, *rest: object) -> None:
        write(work, place, *rest)  # type: ignore[arg-type]
        (place / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())

    monkeypatch.setattr(ship_merge, "_write", wrong)
    with pytest.raises(FaithError):
        merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")


def test_refusals_leave_everything_as_it_was(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapter_dir(base, tmp_path / "adapter")
    other = base_dir(tmp_path / "other", seed=9)
    (tmp_path / "taken").mkdir()
    choice = ModelChoice(model=str(base), adapter=str(adapter))
    with pytest.raises(ConfigError, match="exists already"):
        merge_directory(choice, tmp_path / "taken")
    with pytest.raises(ConfigError, match="parent directory"):
        merge_directory(choice, tmp_path / "no" / "merged")
    with pytest.raises(ConfigError, match="no adapter to merge"):
        merge_directory(ModelChoice(model=str(base)), tmp_path / "merged")
    with pytest.raises(ConfigError, match="tolerance"):
        merge_directory(choice, tmp_path / "merged", tolerance=-1.0)
    with pytest.raises(DataError, match="nothing to compare"):
        merge_directory(choice, tmp_path / "merged", texts=[""])
    with pytest.raises(ModelError):
        merge_directory(ModelChoice(model=str(tmp_path / "none"), adapter=str(adapter)), tmp_path / "merged")
    elsewhere = ModelChoice(model=str(other), adapter=str(adapter))
    with pytest.raises(CheckpointError, match="base"):
        merge_directory(elsewhere, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    allowed = ModelChoice(model=str(other), adapter=str(adapter), allow_other_base=True)
    assert merge_directory(allowed, tmp_path / "merged").fidelity.faithful


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapter_dir(base, tmp_path / "adapter")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ship_merge, "_write", full)
    with pytest.raises(ModelError, match="cannot be written"):
        merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base"]
