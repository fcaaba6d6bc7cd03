from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))
from tokenizers_for_tests import byte_tokenizer

from deltaw.cli.data import command
from deltaw.errors import ConfigError, DataError

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    byte_tokenizer(bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"ask {n}", "completion": f"answer {n}"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [{"text": f"text {n}", "label": ("bad", "good")[n % 2]} for n in range(9)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))

    def runner(verb: str, data: str = "rows.jsonl", *flags: str) -> str:
        words = [verb, "--model", str(tmp_path / "model"), "--data", str(tmp_path / data), *flags]
        result = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
        if result.exception:
            raise result.exception
        return result.output

    return runner


def test_show_marks_the_trained_tokens(run: Run) -> None:
    text = run("show", "rows.jsonl", "--rows", "2", "--skip", "3")
    assert "ask 3\n[[answer 3</s>]]" in text and "line 4:" in text and "line 5:" in text and "line 6:" not in text
    assert "format    prompt_completion: columns prompt, completion" in text
    assert text.rstrip().splitlines()[-1].strip().startswith("deltaw data check --model")


def test_show_knows_the_classes_of_the_whole_file(run: Run) -> None:
    text = run("show", "labels.jsonl", "--rows", "1", "--skip", "1")
    assert "label 'good' (1)" in text and "text 1" in text and "text 0" not in text


def test_show_as_json(run: Run) -> None:
    payload: dict[str, Any] = json.loads(run("show", "rows.jsonl", "--rows", "1", "--json"))
    (example,) = payload["examples"]
    assert payload["format"] == "prompt_completion" and example["marked"].endswith("[[answer 0</s>]]")
    assert len(example["ids"]) == len(example["weights"]) and example["trained"] == sum(example["weights"])


def test_flags_reach_the_data(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a => b\n")
    text = run("show", "pairs.txt", "--separator", "=>", "--joiner", " then ", "--loss-on", "all")
    assert "a[[ then b</s>]]" in text
    assert "--separator '=>' --loss-on all --joiner ' then '" in text
    text = run("show", "rows.jsonl", "--column", "text=completion", "--format", "text", "--rows", "1")
    assert "format    text: column completion (text)" in text and " 0</s>]]" in text and "ask" not in text


def test_check_reports_the_whole_file(run: Run, tmp_path: Path) -> None:
    text = run("check", "rows.jsonl", "--valid", str(tmp_path / "rows.jsonl"))
    assert "9 rows" in text and "tokens per example" in text and "#" in text
    assert "9 of 9 validation examples also occur in training" in text
    assert f"--valid {tmp_path / 'rows.jsonl'}" in text.splitlines()[-1]
    assert "tokens read from" in run("check", "rows.jsonl")
    payload = json.loads(run("check", "labels.jsonl", "--json"))
    assert payload["train"]["labels"] == {"bad": 5, "good": 4}


def test_quiet_prints_nothing(run: Run) -> None:
    assert run("check", "rows.jsonl", "--quiet") == run("show", "rows.jsonl", "--quiet") == ""


def test_errors(run: Run) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run("show", "row.jsonl")
    with pytest.raises(ConfigError, match="no such rows"):
        run("show", "rows.jsonl", "--skip", "9")
    longest = json.loads(run("check", "rows.jsonl", "--json"))["train"]["lengths"]["max"]
    with pytest.raises(DataError, match="longer than the maximum"):
        run("check", "rows.jsonl", "--max-length", str(longest - 1))
    # A look at a few rows is never refused for what the file as a whole would lose.
    assert "line 1:" in run("show", "rows.jsonl", "--max-length", str(longest - 1))
