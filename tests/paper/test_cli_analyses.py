"""The analyses' commands on tiny models: words, JSON, files; every option changes something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from deltaw.cli import main
from deltaw.cli.paper import VERBS
from deltaw.cli.paper import command as group
from verb_models import adapter_dir, base_dir

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of it."""
    root = tmp_path_factory.mktemp("analyses")
    base_dir(root / "base")
    adapter_dir(root / "base", root / "a", targets=["q_proj", "v_proj"], rank=4)
    adapter_dir(root / "base", root / "b", targets=["q_proj", "v_proj"], rank=2, seed=2)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Any:
        code = main(["paper", *(str(word) for word in words)])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return call


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert main(["paper", *(str(word) for word in words)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and "hint: " in captured.err
    return captured.err


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.section == "Analyses"])
def test_each_line_of_the_table_is_the_first_line_of_the_command(name: str) -> None:
    found = group.get_command(click.Context(group), name)
    assert found is not None and (found.help or "").strip().splitlines()[0] == VERBS[name].line
    assert found.name == name


@pytest.mark.slow
def test_subspace_of_two_and_of_one(place: Path, run: Run, tmp_path: Path) -> None:
    text = run("subspace", place / "a", place / "b", "-o", tmp_path / "out")
    assert "phi(i, j)" in text and "wrote subspace.txt" in text and "deltaw compare" in text
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".txt", ".csv", ".json", ".png", ".svg"}
    words = ("subspace", place / "a", place / "b", "--json")
    plain = run(*words)
    assert json.loads((tmp_path / "out" / "subspace.json").read_text())["grids"] == plain["grids"]
    options = [("--ranks", "1,2"), ("--side", "B"), ("--control",), ("--control", "--seed", 1), ("--module", "q_proj")]
    found = [json.dumps(run(*words, *option)["rows"]) for option in options]
    assert len({*found, json.dumps(plain["rows"])}) == len(options) + 1
    own = run("subspace", place / "a", "--json")
    assert len(own["rows"]) == 4 and "closest" in own["rows"][0] and len(own["phi"]) == 4
    seeds = [run("subspace", place / "a", "--seed", seed, "--json")["rows"][0]["random"] for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def test_subspace_needs_the_flag_for_another_base(
    place: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_dir(tmp_path / "other", seed=5)
    adapter_dir(tmp_path / "other", tmp_path / "c", targets=["q_proj"])
    assert "different bases" in refused(capsys, 5, "subspace", place / "a", tmp_path / "c")
    assert "as allowed" in run("subspace", place / "a", tmp_path / "c", "--allow-other-base")
    assert "base" in refused(capsys, 5, "subspace-base", tmp_path / "c", "--model", place / "base")
    words = ("--model", place / "base", "--allow-other-base", "--module", "0.self_attn.q_proj")
    assert "amplification" in run("subspace-base", tmp_path / "c", *words)


@pytest.mark.slow
def test_subspace_base_takes_the_adapters_own_base(place: Path, run: Run, tmp_path: Path) -> None:
    text = run("subspace-base", place / "a", "-o", tmp_path)
    assert "amplification" in text and "||U^T W V^T||" in text and (tmp_path / "subspace-base.png").stat().st_size
    words = ("subspace-base", place / "a", "--json")
    options = [(), ("--directions", "1,2"), ("--side", "B"), ("--seed", 1), ("--module", "v_proj")]
    found = [run(*words, *option) for option in options]
    assert len({json.dumps(each["rows"]) for each in found}) == len(options)
    assert [row["r"] for row in found[1]["rows"]] == [1, 2] * 4 and {row["r"] for row in found[0]["rows"]} == {4}


@pytest.mark.slow
def test_latency_throughput_and_switch_run(place: Path, run: Run, tmp_path: Path) -> None:
    words = ("latency", place / "base", "--rounds", 1, "--method", "LoRA merged", "--length", "4,6", "--size", "2,3")
    found = run(*words, "--batch", "1,2", "--json", "-o", tmp_path)
    assert len(found["rows"]) == 3 * 8 and {row["method"] for row in found["rows"]} == {"base", "LoRA", "LoRA merged"}
    assert found["model"] == "base" and (tmp_path / "latency.png").stat().st_size
    assert "slow-down, round by round" in run(*words)
    speed = run("throughput", place / "base", "--rounds", 1, "--batch", 1, "--length", 5, "--rank", 2, "--json")
    assert [row["method"] for row in speed["rows"]] == ["full fine-tuning", "LoRA"]
    text = run("switch", place / "base", "--adapter", place / "a", "--adapter", place / "b", "--rounds", 1)
    assert "switching between 2 adapters" in text
    made = run("switch", place / "base", "--count", 3, "--rank", 1, "--rounds", 1, "--json")
    assert made["adapters"] == 3


@pytest.mark.slow
def test_deployment_is_the_papers_sum_or_a_models(run: Run) -> None:
    assert "353.8 GB         35 TB" in run("deployment")
    assert "500,000,000" in run("deployment", "--base-bytes", "5MB", "--adapter-bytes", "1 kB")
    found = run("deployment", "gpt3-175b", "--json")
    assert found["base_bytes"] == 2 * 174_604_259_328 and found["adapter_bytes"] == 2 * 18_874_368
    other = run(
        "deployment", "gpt2-medium", "--weights", "qkvo", "--rank", 8, "--bytes-each", 4, "--tasks", 5, "--json"
    )
    assert other["adapter_bytes"] == 4 * 4 * 24 * 2 * 1024 * 8 and other["base_bytes"] == 4 * 354_823_168
    assert other["tasks"] == 5


@pytest.mark.slow
def test_recipes_are_written_with_their_scores(run: Run, tmp_path: Path) -> None:
    found = run("which", "gpt3-175b", "--json", "-o", tmp_path)
    assert {row["parameters"] for row in found["rows"]} == {18_874_368} and len(found["toml"]) == 7
    assert (tmp_path / "qkvo-r2.toml").read_text() == found["toml"]["qkvo-r2"]
    assert "rank = 8" in run("which", "gpt2", "--budget", 147456, "--alpha", 3, "--json")["toml"]["q-r8"]
    scores = tmp_path / "scores.csv"
    scores.write_text("run,score\nqv-r4,0.5\n")
    text = run("rank-sweep", "gpt2", "--ranks", "2,4", "--weights", "qv", "--alpha", 7, "--results", scores)
    assert "0.5000" in text and "qv-r2" in text and "q-r2" not in text
    assert "0.5000" in run("which", "gpt2", "--results", scores)


def test_quality_and_low_data_read_files(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text("method,parameters,examples,score\nLoRA,4.7M,100,0.5\nFT,7M,1K,0.6\n")
    assert "my title" in run("quality", runs, "--title", "my title", "--metric", "BLEU")
    assert "BLEU" in run("quality", runs, "--metric", "BLEU")
    found = run("low-data", runs, "--title", "t", "--metric", "m", "--json")
    assert found["title"] == "t" and found["metric"] == "m" and found["scores"]["FT"] == {"1000": [0.6]}
    assert len(run("low-data", "--json")["rows"]) == 16 and len(run("low-data", "--total", 500, "--json")["rows"]) == 8
    assert "changes nothing" in refused(capsys, 2, "low-data", "--metric", "m")
    assert "changes nothing" in refused(capsys, 2, "low-data", runs, "--total", 9)


def test_lists_and_sizes_that_cannot_be_read_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no list of counts" in refused(capsys, 2, "rank-sweep", "gpt2", "--ranks", "1,x")
    assert "no number of bytes" in refused(capsys, 2, "deployment", "--base-bytes", "5 elephants")
