"""Recipes, low data, deployment, quality: exact counts, and results read from files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import deltaw as dw
from deltaw.errors import ConfigError, DataError
from deltaw.paper.analyses.deployment import deployment, units
from deltaw.paper.analyses.low_data import collect, protocol, read_low_data
from deltaw.paper.analyses.quality import Scored, quality, read_quality
from deltaw.paper.analyses.recipes import rank_sweep, read_scores, which
from deltaw.paper.analyses.runs import read_runs
from deltaw.train.shape import meta_model
from verb_models import base_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE_15 = {
    ("LoRA", 4_700_000): (73.4, 91.7),
    ("LoRA", 37_700_000): (73.8, 91.6),
    ("Adapter H", 7_100_000): (71.9, 89.8),
}


@pytest.fixture(scope="module")
def gpt3() -> Any:
    return meta_model("gpt3-175b")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return meta_model("gpt2-medium")


@pytest.mark.slow
def test_table_5_gives_seven_equal_choices_on_gpt3(gpt3: Any) -> None:
    found = which(gpt3, name="gpt3-175b")
    assert [(recipe.weights, recipe.rank) for recipe in found.recipes] == [
        ("q", 8), ("k", 8), ("v", 8), ("o", 8), ("qk", 4), ("qv", 4), ("qkvo", 2),
    ]  # fmt: skip
    assert {recipe.parameters for recipe in found.recipes} == {18_874_368} and not found.notes
    assert {recipe.alpha for recipe in found.recipes} == {8}
    for recipe in found.recipes:
        assert dw.plan(gpt3, recipe.config()).parameters == 18_874_368


def test_a_budget_that_does_not_divide_is_said(gpt2: Any) -> None:
    found = which(gpt2, name="gpt2-medium", budget=500_000, alpha=3)
    assert [recipe.rank for recipe in found.recipes] == [10, 10, 10, 10, 5, 5, 2]
    assert "no rank gives every choice 500,000" in found.notes[0] and {r.alpha for r in found.recipes} == {3}
    with pytest.raises(ConfigError, match="at least 196,608"):
        which(gpt2, name="gpt2-medium", budget=1000)


def test_table_6_and_table_18_count_as_the_formula(gpt3: Any, gpt2: Any) -> None:
    found = {recipe.run: recipe.parameters for recipe in rank_sweep(gpt3, name="gpt3").recipes}
    assert found["qv-r1"] == 4_718_592 and found["qv-r64"] == 301_989_888 and found["qkvo-r64"] == 603_979_776
    assert found["qkvo-r1"] == found["qv-r2"] == found["q-r4"] == 9_437_184
    ranks = tuple(1 << power for power in range(11))
    swept = rank_sweep(gpt2, name="gpt2-medium", ranks=ranks, weights=("qv",), alpha=32)
    assert [recipe.parameters for recipe in swept.recipes] == [98_304 * rank for rank in ranks]
    assert {recipe.alpha for recipe in swept.recipes} == {32}
    assert {recipe.alpha for recipe in rank_sweep(gpt2, name="g", ranks=(4, 8)).recipes} == {4}


@pytest.mark.parametrize("weights", ["", "qx", "qq"])
def test_unknown_projections_are_refused(weights: str, gpt2: Any) -> None:
    with pytest.raises(ConfigError, match="no projections"):
        rank_sweep(gpt2, name="g", weights=(weights,))


def test_recipes_are_configurations_of_training(gpt2: Any, tmp_path: Path) -> None:
    from deltaw.train.config import AdapterConfig

    found = which(gpt2, name="gpt2-medium")
    for name, text in found.extras().items():
        table = tomllib.loads(text)["adapter"]
        recipe = next(recipe for recipe in found.recipes if f"{recipe.run}.toml" == name)
        read = AdapterConfig(**table)
        assert (tuple(read.targets), read.rank, read.alpha) == (recipe.targets, recipe.rank, recipe.alpha)
    assert len(found.extras()) == 7


def test_scores_of_seeds_stand_beside_their_runs(gpt2: Any, tmp_path: Path) -> None:
    sweep = rank_sweep(gpt2, name="gpt2-medium", ranks=(1, 4), weights=("qv",))
    (tmp_path / "scores.csv").write_text("run,score,task\nqv-r1,0.5,BLEU\nqv-r1,0.7,BLEU\nqv-r4,8.8,NIST\n")
    filled = dataclasses.replace(sweep, scores=read_scores(tmp_path / "scores.csv", sweep))
    sheet = filled.sheet()
    assert sheet.columns[-2:] == ("BLEU", "NIST")
    assert [row[-2:] for row in sheet.rows] == [(pytest.approx(0.6), None), (None, 8.8)]
    (tmp_path / "wrong.csv").write_text("run,score\nqv-r2,0.5\n")
    with pytest.raises(DataError, match=r"nearest: 'qv-r4'"):
        read_scores(tmp_path / "wrong.csv", sweep)


def test_the_protocol_is_table_17() -> None:
    runs = protocol().runs
    assert len(runs) == 16
    table = {(run.method, run.examples): run for run in runs}
    assert [(table["LoRA", n].batch, table["LoRA", n].epochs) for n in (100, 1000, 10_000, 392_702)] == [
        (20, 40), (20, 40), (100, 4), (128, 2),
    ]  # fmt: skip
    assert [table["PreEmbed", n].rate for n in (100, 1000, 10_000, 392_702)] == [2e-4, 2e-4, 4e-4, 5e-4]
    assert table["PreEmbed", 10_000].size == "lp 64, li 8" and table["FT", 100].rate == 5e-6
    assert table["PreLayer", 392_702].rate == 1e-4 and table["LoRA", 100].steps == 200
    small = protocol(8999).runs
    assert [run.examples for run in small[:3]] == [100, 1000, 8999] and small[2].epochs == 2
    with pytest.raises(ConfigError):
        protocol(0)


def test_low_data_averages_seeds(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    rows = [("LoRA", 100, 63.0), ("LoRA", 100, 64.6), ("LoRA", "1K", 85.6), ("FT", 100, 60.2)]
    file.write_text(json.dumps([dict(zip(("method", "examples", "score"), row, strict=True)) for row in rows]))
    found = collect(read_low_data(file), title="MNLI", metric="accuracy")
    assert found.sheet().columns == ("method", "n = 100", "n = 1,000")
    assert found.sheet().rows == (("LoRA", pytest.approx(63.8), 85.6), ("FT", 60.2, None))
    assert found.sheet().notes == ("means of up to 2 seeds",)


def test_a_hundred_tasks_are_the_papers_arithmetic() -> None:
    found = deployment(model="GPT-3", base_bytes=350 * 10**9, adapter_bytes=2 * 18_874_368)
    assert found.lora(100) == 350 * 10**9 + 100 * 37_748_736 == 353_774_873_600
    assert units(found.lora(100)) == "353.8 GB" and units(found.full(100)) == "35 TB"
    assert round(found.base_bytes / found.adapter_bytes) == 9272
    assert [row[0] for row in found.sheet().rows] == [1, 10, 100]
    assert [row[0] for row in dataclasses.replace(found, tasks=7).sheet().rows] == [1, 7]
    with pytest.raises(ConfigError, match="--tasks"):
        deployment(model="GPT-3", base_bytes=1, adapter_bytes=1, tasks=0)


def test_quality_is_read_averaged_and_sorted(tmp_path: Path) -> None:
    rows = [("method", "parameters", "score", "task")]
    for (method, count), scores in TABLE_15.items():
        rows += [(method, f"{count / 1e6:g}M", str(s), t) for t, s in zip(("WikiSQL", "MNLI-m"), scores, strict=True)]
    rows.append(("LoRA", "4,700,000", "73.6", "WikiSQL"))
    file = tmp_path / "runs.csv"
    file.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in rows), encoding="utf-8")
    found = quality(read_quality(file))
    assert found.methods == ("LoRA", "Adapter H") and found.tasks == ("WikiSQL", "MNLI-m")
    assert found.sheet().rows[0] == ("LoRA", 4_700_000, pytest.approx(73.5), 91.7)
    assert [row[1] for row in found.sheet().rows] == [4_700_000, 37_700_000, 7_100_000]
    assert quality([Scored(method="a", parameters=1, score=0.5)]).sheet().columns[-1] == "score"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no row"),
        ("method,score\nLoRA,1\n", "no 'parameters'"),
        ("method,parameters,score\nLoRA,many,1\n", "'many'"),
        ("method,parameters,score\nLoRA,5,nan\n", "'nan'"),
        ("method,parameters,score\nLoRA,0,1\n", "at least 1"),
        ("[1]", "no list of objects"),
        ("[{", "no JSON"),
    ],
)
def test_results_that_cannot_be_read_name_the_place(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_quality(file)
    assert "runs.csv" in caught.value.where and caught.value.hint


def test_rows_of_an_analysis_are_results_again(tmp_path: Path) -> None:
    """What one command writes as JSON, another reads."""
    file = tmp_path / "quality.json"
    file.write_text(quality([Scored(method="a", parameters=7, score=0.5)]).json())
    assert read_runs(file, ("method", "parameters", "score"))[0]["parameters"] == "7"
    assert read_quality(file) == [Scored(method="a", parameters=7, score=0.5)]


def test_base_dir_is_a_shape_too(tmp_path: Path) -> None:
    """Grouped heads: k and v are smaller, so that equal counts take other ranks, and it is said."""
    found = which(meta_model(str(base_dir(tmp_path / "llama"))), name="toy")
    ranks = {recipe.weights: recipe.rank for recipe in found.recipes}
    assert ranks["k"] > ranks["q"] and found.notes
