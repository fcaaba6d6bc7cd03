"""The recipes against the paper's tables, typed in again from the paper, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltaw.cli import main
from deltaw.errors import ConfigError
from deltaw.paper.recipe_tables import PARTS, TABLES
from deltaw.paper.recipes import Recipe, all_recipes, recipe
from deltaw.train.config import spec_of
from deltaw.train.settings import from_values, read_toml

ROOT = Path(__file__).resolve().parents[2]
ORDER = "mnli sst2 mrpc cola qnli qqp rte stsb"

# key: the values of the columns, or one for all
TABLE_9 = {
    "roberta-base": {
        "optim.batch_size": "16 16 16 32 32 16 32 16",
        "optim.epochs": "30 60 30 80 25 25 80 40",
        "optim.lr": "5e-4 5e-4 4e-4 4e-4 4e-4 5e-4 5e-4 4e-4",
        "adapter.rank": "8",
        "adapter.alpha": "8",
        "data.max_length": "512",
    },
    "roberta-large": {
        "optim.batch_size": "4 4 4 4 4 4 8 8",
        "optim.epochs": "10 10 20 20 10 20 20 30",
        "optim.lr": "3e-4 4e-4 3e-4 2e-4 2e-4 3e-4 4e-4 2e-4",
        "adapter.rank": "8",
        "adapter.alpha": "16",
        "data.max_length": "128 128 512 128 512 512 512 512",
    },
    "roberta-large-restricted": {
        "optim.batch_size": "4",
        "optim.epochs": "10 10 20 20 10 20 20 10",
        "optim.lr": "3e-4 4e-4 3e-4 2e-4 2e-4 3e-4 4e-4 2e-4",
        "adapter.rank": "8",
        "adapter.alpha": "16",
        "data.max_length": "128",
    },
    "adapter-p-3.0m": {
        "optim.batch_size": "32",
        "optim.epochs": "10 20 20 20 10 20 20 20",
        "optim.lr": "3e-5 3e-5 3e-4 3e-4 3e-4 3e-4 3e-4 3e-4",
        "baseline.bottleneck": "64",
        "data.max_length": "128",
    },
    "adapter-p-0.8m": {
        "optim.batch_size": "32",
        "optim.epochs": "5 20 20 20 10 20 20 20",
        "optim.lr": "3e-4",
        "baseline.bottleneck": "16",
        "data.max_length": "128",
    },
    "adapter-h-6.0m": {
        "optim.batch_size": "32",
        "optim.epochs": "10 5 10 10 5 20 20 10",
        "optim.lr": "3e-5 3e-4 3e-4 3e-4 3e-4 3e-4 3e-4 3e-4",
        "baseline.bottleneck": "64",
        "data.max_length": "128",
    },
    "adapter-h-0.8m": {
        "optim.batch_size": "32",
        "optim.epochs": "10 5 10 10 5 20 20 10",
        "optim.lr": "3e-4",
        "baseline.bottleneck": "8",
        "data.max_length": "128",
    },
}
TABLE_10 = {
    "deberta-v2-xxlarge": {
        "optim.batch_size": "8 8 32 4 6 8 4 4",
        "optim.epochs": "5 16 30 10 8 11 11 10",
        "optim.lr": "1e-4 6e-5 2e-4 1e-4 1e-4 1e-4 2e-4 2e-4",
        "optim.weight_decay": "0 .01 .01 0 .01 .01 .01 .1",
        "model.head_dropout": ".15 0 0 .1 .1 .2 .2 .2",
        "adapter.rank": "8",
        "adapter.alpha": "8",
        "data.max_length": "256 128 128 64 512 320 320 128",
        "optim.warmup": ".1",
    },
}
ROW_11 = {
    "optim.weight_decay": ".01 .01 0",
    "adapter.dropout": ".1 .1 0",
    "optim.batch_size": "8",
    "optim.epochs": "5",
    "optim.warmup": "500",
    "optim.label_smoothing": ".1 .1 0",
    "optim.lr": "2e-4",
    "adapter.rank": "4",
    "adapter.alpha": "32",
    "decode.beams": "10",
    "decode.length_penalty": ".9 .8 .8",
    "decode.no_repeat": "4",
}
ROW_12 = {
    "optim.batch_size": "128",
    "optim.epochs": "2",
    "optim.weight_decay": "0.1",
    "optim.warmup_tokens": "250000",
    "data.max_length": "384 768 2048",
}
TABLE_12 = {
    "full": ROW_12 | {"optim.lr": "5e-6"},
    "prefix-embedding": ROW_12 | {"optim.lr": "5e-4", "baseline.prefix_length": "256", "baseline.infix_length": "8"},
    "prefix-layer": ROW_12 | {"optim.lr": "1e-4", "baseline.prefix_length": "8", "baseline.infix_length": "8"},
    "bias": ROW_12 | {"optim.lr": "1.6e-3"},
    "adapter-h": ROW_12 | {"optim.lr": "1e-4"},
    "lora": ROW_12 | {"optim.lr": "2e-4"},
}
ROW_17 = {
    "optim.batch_size": "20 20 100 128",
    "optim.epochs": "40 40 4 2",
    "optim.warmup_tokens": "250000",
}
TABLE_17 = {
    "full": ROW_17 | {"optim.lr": "5e-6"},
    "prefix-embedding": ROW_17
    | {
        "optim.lr": "2e-4 2e-4 4e-4 5e-4",
        "baseline.prefix_length": "16 32 64 256",
        "baseline.infix_length": "8",
    },
    "prefix-layer": ROW_17
    | {"optim.lr": "5e-5 5e-5 5e-5 1e-4", "baseline.prefix_length": "8", "baseline.infix_length": "8"},
    "lora": ROW_17 | {"optim.lr": "2e-4", "adapter.rank": "8"},
}
PRINTED = {
    ("table9", ORDER): TABLE_9,
    ("table10", ORDER): TABLE_10,
    ("table11", "e2e webnlg dart"): {"gpt2-medium": ROW_11, "gpt2-large": ROW_11},
    ("table12", "wikisql mnli samsum"): TABLE_12,
    ("table17", "100 1k 10k 392k"): TABLE_17,
}
FROM_MNLI = {
    (row, task) for row in ("roberta-base", "roberta-large", "deberta-v2-xxlarge") for task in ("mrpc", "rte", "stsb")
}


def columns() -> list[tuple[str, str, str, dict[str, float]]]:
    out = []
    for (table, tasks), rows in PRINTED.items():
        for row, keys in rows.items():
            for place, task in enumerate(tasks.split()):
                values = {}
                for key, text in keys.items():
                    cells = text.split()
                    values[key] = float(cells[place] if len(cells) > 1 else cells[0])
                out.append((table, row, task, values))
    return out


def test_nothing_of_the_tables_is_left_out() -> None:
    typed = {(table, row, task) for table, row, task, _ in columns()}
    assert typed == {(table, row, task) for table in TABLES for row in TABLES[table] for task in PARTS[table]}
    assert len(typed) == 7 * 8 + 8 + 6 + 18 + 16


@pytest.mark.parametrize(("table", "row", "task", "cells"), columns(), ids=lambda value: str(value)[:24])
def test_the_printed_configuration_equals_the_table(
    table: str, row: str, task: str, cells: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["paper", "recipe", table, "--row", row, "--task", task, "--as", "printed"]
    assert not main([*words, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert not main(words)
    lines = capsys.readouterr().out.splitlines()
    for key, value in cells.items():
        section, name = key.split(".")
        if (row, task) in FROM_MNLI and section == "adapter":
            note = next(line for line in lines if "it starts from the best MNLI adapter: add --adapter DIR" in line)
            assert f"{name} {value:g}" in note
            continue
        assert told["values"][key] == value, key
        if section == "decode":
            assert told["decode"][name] == value
            assert any(f"--{name.replace('_', '-')} {value:g}" in line for line in lines)
        else:
            assert told["config"][section][name] == value
            line = next(line for line in lines if line.startswith(f"{name} = "))
            assert float(line.partition(" = ")[2].partition("#")[0]) == value
    assert told["values"]["optim.schedule"] == "linear"
    if table == "table9":
        assert told["values"]["optim.warmup"] == 0.06
    if table in ("table9", "table10"):
        assert told["config"]["adapter"].get("new_head", False) == ((row, task) in FROM_MNLI)


def known(table: str, row: str, task: str, source: str) -> dict[str, Any]:
    return recipe(table, row, task, source).values


def test_what_is_decided_and_what_the_scripts_do() -> None:
    """ERR2, 3, 11, 12, 13 and 14 as selectable values; ERR1 and 10 as remarks."""
    for source, alpha in (("printed", 8), ("decided", 16), ("script", 16)):
        assert known("table9", "roberta-base", "mnli", source)["adapter.alpha"] == alpha
        expected = (8, 8) if source == "printed" else (16, 32)
        found = known("table10", "deberta-v2-xxlarge", "qnli", source)
        assert (found["adapter.rank"], found["adapter.alpha"]) == expected
        assert recipe("table11", "gpt2-medium", "e2e", source).decoding()["length_penalty"] == (
            0.8 if source == "script" else 0.9
        )
        script = source == "script"
        assert known("table9", "roberta-large", "cola", source)["optim.lr"] == (3e-4 if script else 2e-4)
        stsb = known("table9", "roberta-large", "stsb", source)
        read = tuple(stsb[key] for key in ("optim.epochs", "optim.lr", "optim.batch_size", "data.max_length"))
        assert read == ((10, 3e-4, 4, 128) if script else (30, 2e-4, 8, 512))
        assert known("table10", "deberta-v2-xxlarge", "cola", source)["optim.lr"] == (1.3e-4 if script else 1e-4)
        assert known("table10", "deberta-v2-xxlarge", "rte", source)["optim.lr"] == (2.6e-4 if script else 2e-4)
        assert known("table10", "deberta-v2-xxlarge", "qqp", source)["optim.warmup"] == (10000 if script else 0.1)
        assert known("table9", "roberta-base", "qqp", source).get("optim.weight_decay") == (0.1 if script else None)
    notes = {
        (row, task, source): " ".join(recipe("table9", row, task, source).notes)
        for row, task in (("roberta-base", "mnli"), ("roberta-base", "cola"))
        for source in ("decided", "script")
    }
    assert "16 sequences in a step" in notes["roberta-base", "mnli", "decided"]
    assert "128 sequences in a step" in notes["roberta-base", "mnli", "script"]
    assert "64 sequences in a step" in notes["roberta-base", "cola", "script"]
    assert "ERR10: labeled 3.0M; the paper's own formula gives 3,171,840" in str(
        recipe("table9", "adapter-p-3.0m", "rte")
    )
    assert "393,216" in str(recipe("table11", "gpt2-medium", "dart"))
    gpt2 = known("table11", "gpt2-large", "dart", "script")
    assert (gpt2["optim.optimizer"], gpt2["optim.eps"], gpt2["optim.clip"]) == ("adamw_reference", 1e-6, 0.0)
    assert gpt2["model.base_dropout"] is False
    # the MNLI start brings rank and alpha along, as decided
    assert "rank 16, alpha 32" in str(recipe("table10", "deberta-v2-xxlarge", "rte"))
    assert "rank 8, alpha 8" in str(recipe("table10", "deberta-v2-xxlarge", "rte", "printed"))


def test_every_deviation_is_explained() -> None:
    """Whatever a script or a decision changes against the print carries a comment at its line."""
    for found in all_recipes():
        printed = recipe(found.table, found.row, found.task, "printed").values
        changed = {key for key in {*printed, *found.values} if printed.get(key) != found.values.get(key)}
        assert changed <= set(found.comments), found.name
        for key in changed - {key for key in changed if key.startswith("decode.")}:
            name = key.split(".")[1]
            assert any(line.startswith(f"{name} = ") and "printed: " in line for line in str(found).splitlines())
        if found.source == "script":
            assert changed, found.name


def parse(found: Recipe, place: Path) -> None:
    place.write_text(str(found), encoding="utf-8")
    beside: dict[str, dict[str, Any]] = {"model": {"path": "base"}, "data": {"path": "rows"}, "adapter": {}}
    if "adapter.new_head" in found.values:
        beside["adapter"]["start"] = "mnli-run"
    config = from_values(read_toml(place), beside)
    for section, table in found.sections().items():
        for name, value in table.items():
            if (section, name) != ("model", "path"):
                own = getattr(getattr(config, section), name)
                assert (list(own) if isinstance(own, tuple) else own) == value


def test_training_reads_every_recipe(tmp_path: Path) -> None:
    methods = spec_of("adapter.method").choices
    read = 0
    for found in all_recipes():
        if found.values["adapter.method"] in methods:
            parse(found, tmp_path / "recipe.toml")
            read += 1
        else:
            # never trained as something else in silence
            with pytest.raises(ConfigError, match=r"method|bottleneck|prefix_length"):
                parse(found, tmp_path / "recipe.toml")
    assert read >= 70


def test_the_committed_files_are_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(["paper", "recipe", "--write", str(tmp_path)])
    made = {path.relative_to(tmp_path): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.toml")}
    assert f"{len(made)} recipes written" in capsys.readouterr().out
    place = ROOT / "recipes" / "paper"
    held = {path.relative_to(place): path.read_text(encoding="utf-8") for path in place.rglob("*.toml")}
    assert held == made, "run: deltaw paper recipe --write recipes/paper"


def test_a_recipe_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "new" / "file.toml"
    assert not main(["paper", "recipe", "table10", "--task", "qqp", "-o", str(place)])
    assert place.read_text(encoding="utf-8") == str(recipe("table10", "deberta-v2-xxlarge", "qqp"))
    assert f"deltaw train --config {place} --data DIR" in capsys.readouterr().out
    assert not main(["paper", "recipe"])
    assert "gpt2-large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table13"], "there is no table 'table13'"),
        (["table9", "--task", "mnli"], "table9 has several of these"),
        (["table9", "--row", "roberta-base"], "add --task mnli"),
        (["table9", "--row", "robertabase", "--task", "mnli"], "closest: 'roberta-base'"),
        (["table9", "--row", "roberta-base", "--task", "mmlu"], "there is no task 'mmlu'"),
        (["table10", "--task", "mnli", "--as", "paper"], "there is no source 'paper'"),
        (["table17", "--row", "lora", "--task", "1k", "--as", "script"], "the reference has no script for this"),
        (["table10", "--write", "x"], "--write writes every recipe"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "recipe", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and "hint: " in err
