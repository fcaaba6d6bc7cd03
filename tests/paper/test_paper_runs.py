"""Seeds gathered: which validation counts, and the statistics by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltaw.cli import main
from deltaw.paper.runs import Spread

# loss and accuracy at the end of epochs 1, 2, 3; the best epochs differ by metric
CURVES = {
    0: [(0.9, 0.50), (0.5, 0.70), (0.6, 0.75)],
    1: [(0.8, 0.55), (0.7, 0.81), (0.4, 0.80)],
    2: [(0.3, 0.60), (0.6, 0.65), (0.7, 0.64)],
}


def write_run(
    path: Path, seed: int, curve: list[tuple[float, float]], *, lr: float = 1e-3, finished: bool = True
) -> Path:
    path.mkdir()
    records: list[dict[str, Any]] = [{"kind": "valid", "step": 0, "loss": 0.01, "accuracy": 0.99}]
    for epoch, (loss, accuracy) in enumerate(curve, 1):
        steps = range(10 * epoch - 9, 10 * epoch + 1)
        records += [{"kind": "step", "step": step, "epoch": step / 10, "loss": 1.0, "lr": lr} for step in steps]
        records.append({"kind": "valid", "step": 10 * epoch, "loss": loss, "accuracy": accuracy})
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "run.toml").write_text(f'[run]\nseed = {seed}\noutput = "{path}"\n[optim]\nlr = {lr}\n')
    if finished:
        (path / "report.json").write_text(json.dumps({"steps": 30, "total": 30, "interrupted": False}))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    return [str(write_run(tmp_path / f"seed{seed}", seed, curve)) for seed, curve in CURVES.items()]


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert not main(["paper", "runs", *words, "--json"])
    return dict(json.loads(capsys.readouterr().out))


def test_the_best_epoch_of_each_and_the_statistics_by_hand(
    three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = call([*three, "--metric", "accuracy"], capsys)
    assert told["best"] == "highest" and told["notes"] == []
    assert [(row["seed"], row["step"], row["epoch"], row["accuracy"]) for row in told["runs"]] == [
        (0, 30, 3.0, 0.75), (1, 20, 2.0, 0.81), (2, 20, 2.0, 0.65),
    ]  # fmt: skip
    spread = told["spread"]["accuracy"]
    mean = (0.75 + 0.81 + 0.65) / 3
    deviation = math.sqrt(((0.75 - mean) ** 2 + (0.81 - mean) ** 2 + (0.65 - mean) ** 2) / 2)
    assert spread["median"] == 0.75 and spread["count"] == 3
    assert spread["mean"] == pytest.approx(mean) and spread["std"] == pytest.approx(deviation)
    assert told["spread"]["loss"]["median"] == 0.6, "the loss of the chosen validations, not the lowest losses"


def test_less_of_a_loss_is_better(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = call([*three, "--metric", "loss"], capsys)
    assert (told["metric"], told["best"]) == ("loss", "lowest")
    assert [row["loss"] for row in told["runs"]] == [0.5, 0.4, 0.3], "the measurement before step 1 is no epoch"
    by = [*three, "--metric", "loss", "--best"]
    assert [row["loss"] for row in call([*by, "last"], capsys)["runs"]] == [0.6, 0.4, 0.7]
    assert [row["loss"] for row in call([*by, "highest"], capsys)["runs"]] == [0.9, 0.8, 0.7]


def measuring(root: Path, task: str, names: tuple[str, ...]) -> list[str]:
    """Two runs of a task whose validations measure these, the losses falling as all else does."""
    places = []
    for seed in range(2):
        place = write_run(root / f"{task}{seed}", seed, CURVES[0])
        (place / "run.toml").write_text(f'[model]\ntask = "{task}"\n[run]\nseed = {seed}\n')
        lines = [{"kind": "step", "step": 1, "epoch": 1.0, "loss": 1.0, "lr": 1.0}]
        lines += [{"kind": "valid", "step": 1 + at, **dict.fromkeys(names, 1.0 - at / 10)} for at in range(3)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        places.append(str(place))
    return places


@pytest.mark.parametrize(
    ("task", "names", "metric", "best"),
    [
        ("cola", ("loss", "accuracy", "f1", "matthews"), "matthews", "highest"),
        ("mrpc", ("loss", "accuracy", "f1", "matthews"), "accuracy", "highest"),
        ("mnli_9k", ("loss", "accuracy", "matthews"), "accuracy", "highest"),
        ("stsb", ("loss", "spearman", "pearson"), "pearson", "highest"),
        ("auto", ("loss", "accuracy", "matthews"), "accuracy", "highest"),
        ("regression", ("loss", "pearson", "spearman"), "pearson", "highest"),
        ("e2e", ("loss", "perplexity"), "loss", "lowest"),
        ("cola", ("loss",), "loss", "lowest"),
    ],
)
def test_the_tasks_own_metric_is_the_default(
    task: str, names: tuple[str, ...], metric: str, best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(measuring(tmp_path, task, names), capsys)
    assert (told["metric"], told["best"]) == (metric, best)
    assert {row["step"] for row in told["runs"]} == {1 if best == "highest" else 3}


def test_text_and_csv_say_the_same(three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs.csv"
    assert not main(["paper", "runs", *three, "--metric", "accuracy", "--csv", str(place)])
    said = capsys.readouterr().out
    assert "3 runs, each at the validation with the highest accuracy" in said and "median" in said
    with place.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == [0.75, 0.81, 0.65]
    assert all(row["run"] in said for row in rows)
    assert not main(["paper", "runs", *three, "--metric", "accuracy", "--csv", "-"])
    assert capsys.readouterr().out == place.read_text()


def test_what_is_not_one_experiment_is_refused_or_said(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(write_run(tmp_path / "other", 3, CURVES[0], lr=2e-3))
    assert main(["paper", "runs", *three, other]) == 2
    assert "optim.lr 0.001 and 0.002" in capsys.readouterr().err
    assert "MIXED: the runs differ in optim.lr" in call([*three, other, "--mixed"], capsys)["notes"]
    again = str(write_run(tmp_path / "again", 1, CURVES[0]))
    assert any("SEEDS TWICE: 1" in note for note in call([*three, again], capsys)["notes"])
    broken = str(write_run(tmp_path / "broken", 9, CURVES[0][:1], finished=False))
    assert f"NOT FINISHED: {broken}" in call([*three, broken], capsys)["notes"]


def test_scores_of_decoding_are_gathered_from_a_file(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for place, bleu in zip(three, (0.70, 0.72, 0.68), strict=True):
        (Path(place) / "scores.json").write_text(json.dumps({"e2e": {"bleu": bleu, "ter": 1 - bleu}, "name": "x"}))
    told = call([*three, "--scores", "scores.json", "--metric", "e2e.bleu"], capsys)
    assert told["spread"]["e2e.bleu"]["mean"] == pytest.approx(0.70) and told["runs"][0]["step"] == 30
    assert call([*three, "--scores", "scores.json", "--metric", "e2e.ter"], capsys)["best"] == "lowest"


def test_one_run_has_no_spread(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(three[:1], capsys)["spread"]["loss"]["std"] is None
    assert Spread.of([2.0, 4.0]).std == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("change", "words", "code", "said"),
    [
        ("", [], 2, "there are no runs"),
        ("", ["absent"], 3, "no metrics.jsonl and no run.toml"),
        ("one", ["--metric", "acuracy"], 3, "closest in all runs: 'accuracy'"),
        ("one", ["--scores", "scores.json"], 3, "a JSON file of numbers in every run's directory"),
        ("empty", [], 3, "no validation after step 0"),
    ],
)
def test_wrong_words_are_refused(
    change: str, words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if change:
        words = [str(write_run(tmp_path / "run", 0, CURVES[0] if change == "one" else [])), *words]
    assert main(["paper", "runs", *words]) == code
    err = capsys.readouterr().err
    assert said in err and "hint: " in err
