"""The demo's base and data: the scripts that made them give them again, and the base knows what its notes say."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
CORPUS_SHA256 = "503d831c44ff31934e5072eb344847469f122555070a3235e9340d95290a3746"
# 1.292 when the base was made.
HELD_OUT_LOSS = 1.32


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports one of the demo's scripts the way running it does, and forgets it afterwards."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(DEMO))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - known:
        if (DEMO / f"{name}.py").is_file() or name == "demo":
            del sys.modules[name]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_corpus_is_a_function_of_its_seed(script):
    documents = script("make_corpus").documents
    text = "\n".join(islice(documents(5), 300))
    assert hashlib.sha256(text.encode()).hexdigest() == CORPUS_SHA256
    assert "\n".join(islice(documents(6), 300)) != text


def test_corpus_holds_no_line_of_the_task(script):
    for text in islice(script("make_corpus").documents(9), 2000):
        assert "|" not in text
        assert not re.search(r"(?i)\b(item|maker|material|color|price|place): ", text), text
        assert not re.search(r"[<>{}\[\]]", text), text


def test_corpus_script_prints_documents():
    command = [sys.executable, str(DEMO / "make_corpus.py"), "--documents", "3", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n\n") >= 3


def test_task_is_written_again_byte_for_byte(script, tmp_path):
    script("make_task").write(tmp_path)
    for name in ("train.jsonl", "valid.jsonl"):
        assert (tmp_path / name).read_bytes() == (DEMO / "data" / name).read_bytes()


def test_completions_carry_every_field_and_valid_is_held_out(script):
    carried = script("demo").carried
    train, valid = rows("train"), rows("valid")
    assert len(valid) >= 200
    for row in train + valid:
        assert 4 <= row["prompt"].count(": ") <= 6
        assert all(carried(row["prompt"], row["completion"]))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in valid}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the oak bowl costs 11.05", [False, True, False]),
        ("the oak bowl costs 1.05 at Elm Lane", [True, True, True]),
        ("the oaken bowl costs 1.055", [False, False, False]),
    ],
)
def test_a_field_counts_only_as_whole_words(script, text, expected):
    assert script("demo").carried("price: 1.05 | material: oak | place: Elm Lane", text) == expected


def test_files_are_small():
    for file in DEMO.rglob("*"):
        if "__pycache__" not in file.parts and file.is_file():
            assert file.stat().st_size < 3_900_000, file


@pytest.mark.slow
def test_base_reads_held_out_text_and_copies(script):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pretrain = script("pretrain")
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "base").eval()
    assert pretrain.held_out_loss(model, tokenizer, blocks=1) < HELD_OUT_LOSS
    assert pretrain.copy_rate(model, tokenizer) > 0.9


def test_tokenizer_begins_once_and_keeps_text():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    ids = tokenizer("Price 18.40, Ærø.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Price 18.40, Ærø."
    assert {tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token} == {"<bos>", "<eos>", "<pad>"}
