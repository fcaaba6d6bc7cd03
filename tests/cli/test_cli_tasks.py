"""Tasks of the paper on the command line: data, train, eval, and the table of files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import task_files as tiny
from tiny_train import make_model, make_tokenizer

from deltaw.cli import main

Run = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(place)
    model = make_model(len(tokenizer))
    model.config.max_position_embeddings = 256
    model.save_pretrained(place)
    return place


@pytest.fixture
def run(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))

    def runner(*words: str) -> str:
        code = main([word.format(base=base, tmp=tmp_path) for word in words])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return runner


@pytest.fixture
def e2e(tmp_path: Path) -> Path:
    for split, times in (("train", 4), ("valid", 1), ("test", 2)):
        tiny.put(tmp_path / "e2e", f"{split}.txt", tiny.E2E_TEXT * times)
    return tmp_path


@pytest.fixture
def mnli(tmp_path: Path) -> Path:
    place = tmp_path / "MNLI"
    tiny.glue(place, "mnli")
    for kind, count in (("matched", 2), ("mismatched", 3)):
        rows = "".join(f"{n}\tp\tq\tg\tIt rains {kind}.\tIt is wet.\tx\tneutral\n" for n in range(count))
        tiny.put(place, f"dev_{kind}.tsv", tiny.MNLI_HEAD + rows)
    return tmp_path


def test_show_reads_the_split_that_is_named(run: Run, e2e: Path) -> None:
    words = ("data", "show", "--model", "{base}", "--task", "e2e", "--data", "{tmp}", "--rows", "1")
    text = run(*words)
    assert f"split train, 12 rows of {e2e}/e2e/train.txt" in text and "[[Cotto is a pub near Café Sol .</s>]]" in text
    text = run(*words, "--split", "test")
    assert "split test, 6 rows" in text and "data check --model" in text and "--task e2e --split test" in text
    assert "6 rows" in run(*words, "--limit", "6") and "(e2e text, 6 rows)" in run(*words, "--limit", "6")


def test_check_validates_on_another_split(run: Run, mnli: Path) -> None:
    words = ("data", "check", "--model", "{base}", "--task", "mnli", "--data", "{tmp}", "--json")
    sizes = {
        split: json.loads(run(*words, "--valid", split))["valid"]["examples"]
        for split in ("valid", "valid_matched", "valid_mismatched")
    }
    assert sizes == {"valid": 5, "valid_matched": 2, "valid_mismatched": 3}
    report = json.loads(run(*words))["train"]
    assert list(report["labels"]) == ["entailment", "neutral", "contradiction"]


def test_the_seed_of_a_draw_reaches_the_rows(run: Run, tmp_path: Path) -> None:
    lines = "".join(f"{n}\tp\tq\tg\tpremise {n}\tb\tx\tneutral\n" for n in range(300))
    tiny.put(tmp_path, "train.tsv", tiny.MNLI_HEAD + lines)
    words = ("data", "show", "--model", "{base}", "--task", "mnli_100", "--data", "{tmp}", "--rows", "3")
    first, again, other = run(*words), run(*words, "--seed", "0"), run(*words, "--seed", "1")
    assert first.split("next:")[0] == again.split("next:")[0]
    assert "drawn with seed 1" in other and "SUBSET: 100 training rows" in other
    assert [line for line in first.splitlines() if "premise" in line] != [
        line for line in other.splitlines() if "premise" in line
    ]


TRAIN = ("train", "--model", "{base}", "--data", "{tmp}", "--output", "{tmp}/out", "--batch-size", "4", "--no-plot")


def test_train_and_eval_a_task(run: Run, e2e: Path) -> None:
    text = run(*TRAIN, "--task", "e2e", "--steps", "2", "--rank", "2")
    assert f"split train, 12 rows of {e2e}/e2e/train.txt" in text
    assert "validation on 3 examples of task e2e" in text and f"{e2e}/e2e/valid.txt" in text
    assert f"--task e2e --data {e2e} --split valid" in text
    words = ("eval", "--model", "{base}", "--adapter", "{tmp}/out", "--task", "e2e", "--data", "{tmp}", "--json")
    assert json.loads(run(*words))["examples"] == 3
    assert json.loads(run(*words, "--split", "test"))["examples"] == 6


def test_train_on_labels_in_the_order_of_the_benchmark(run: Run, mnli: Path) -> None:
    text = run(*TRAIN, "--task", "mnli", "--steps", "1", "--rank", "2", "--valid", "valid_mismatched")
    assert "validation on 3 examples of task mnli" in text and "dev_mismatched.tsv" in text
    words = ("eval", "--model", "{base}", "--adapter", "{tmp}/out", "--task", "mnli", "--data", "{tmp}", "--json")
    assert json.loads(run(*words, "--split", "valid_matched"))["examples"] == 2
    card = (mnli / "out" / "README.md").read_text(encoding="utf-8")
    assert "0 = entailment, 1 = neutral, 2 = contradiction" in card and "(task mnli)" in card


def test_packing_and_holding_rows_out_work_as_ever(run: Run, e2e: Path) -> None:
    words = [word for word in TRAIN if word not in ("--batch-size", "4")]
    text = run(*words, "--task", "e2e", "--steps", "1", "--packing", "--valid-fraction", "0.25", "--dry-run")
    assert "validation on 3 held-out examples (25.0% of the rows)" in text
    (e2e / "e2e" / "valid.txt").unlink()
    text = run(*TRAIN, "--task", "e2e", "--steps", "1", "--valid", "test", "--dry-run")
    assert "validation on 6 examples of task e2e (E2E NLG Challenge), split test" in text


def test_a_resumed_run_finds_its_task_again(run: Run, e2e: Path) -> None:
    run(*TRAIN, "--task", "e2e", "--steps", "4", "--rank", "2", "--save-every", "2", "--keep", "9")
    adapter = e2e / "out" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.unlink()
    (e2e / "e2e").rename(e2e / "moved")
    text = run("train", "--resume", "{tmp}/out/checkpoint-2", "--data", "{tmp}/moved")
    assert f"split train, 12 rows of {e2e}/moved/train.txt" in text and "finished after 4 of 4 steps" in text
    assert adapter.read_bytes() == whole


def test_the_table_of_tasks(run: Run, e2e: Path) -> None:
    text = run("paper", "tasks")
    assert "CC BY-SA 4.0 (the data's repository, tuetschek/e2e-dataset)" in text and "56,355" in text
    assert "status" not in text.splitlines()[0] and "mnli_100" in text
    text = run("paper", "tasks", "--data", "{tmp}", "--task", "e2e")
    assert "12 of 42,061" in text and "different" in text and "sst2" not in text
    found: dict[str, Any] = json.loads(run("paper", "tasks", "--data", "{tmp}", "--json"))
    status = {(item["task"], item["split"]): item["status"] for item in found["splits"]}
    assert status["e2e", "test"] == "different" and status["dart", "train"] == "absent"
    assert found["tasks"]["webnlg"]["licenses"][0]["terms"] == "CC BY-NC-SA 4.0"


def test_a_stand_in_says_so_everywhere(run: Run, tmp_path: Path) -> None:
    text = run("paper", "tasks", "--task", "sst2", "--synthesize", "{tmp}/made", "--rows", "20", "--seed", "1")
    assert text.startswith("SYNTHETIC stand-in for sst2, not its data")
    assert "synthetic" in run("paper", "tasks", "--task", "sst2", "--data", "{tmp}/made")
    text = run("data", "check", "--model", "{base}", "--task", "sst2", "--data", "{tmp}/made")
    assert "SYNTHETIC stand-in data in the format of GLUE SST-2, not its data" in text
    words = [word.replace("{tmp}", "{tmp}/made", 1) if word == "{tmp}" else word for word in TRAIN]
    assert "SYNTHETIC" in run(*words, "--task", "sst2", "--steps", "1", "--dry-run")


@pytest.mark.parametrize("name", ["webnlg", "dart", "cola", "mrpc", "stsb", "qqp", "qnli_9k", "wikisql", "samsum"])
def test_every_kind_of_task_reaches_step_one(run: Run, name: str) -> None:
    run("paper", "tasks", "--task", name, "--synthesize", "{tmp}/made", "--rows", "12")
    words = ("--data", "{tmp}/made", "--output", "{tmp}/out", "--batch-size", "4", "--truncation", "cut", "--dry-run")
    text = run("train", "--model", "{base}", "--task", name, *words, "--steps", "1")
    assert f"task {name} (" in text and "dry run: 1 step planned" in text and "validation on 2 examples of task" in text
    loss = {"stsb": "regression", "cola": "classification, 2 classes"}.get(name, "")
    assert loss in text
