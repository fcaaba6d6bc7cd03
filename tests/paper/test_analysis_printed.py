"""The paper's printed results as runs, and figure 2 drawn from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deltaw.cli import main
from deltaw.errors import ConfigError, DataError
from deltaw.paper.analyses.printed import figure2, gather_quality, is_printed, printed_runs
from deltaw.paper.analyses.quality import Quality, Scored, quality, read_quality
from deltaw.paper.analyses.style import look
from deltaw.paper.tables import find_cell, printed_table

METHODS = ("PreEmbed", "PreLayer", "Adapter H", "LoRA", "LoRA+PE", "LoRA+PL")


def drawn(found: Quality) -> dict[str, list[tuple[float, float]]]:
    """Panel and color -> the points with a mark, as they are in the figure."""
    figure = Figure(figsize=found.size)
    found.draw(figure)
    points: dict[str, list[tuple[float, float]]] = {}
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_marker() not in ("", "None"):
                here = points.setdefault(f"{axes.get_title()} {line.get_color()}", [])
                here += zip(line.get_xdata(), line.get_ydata(), strict=True)
    return points


def test_table_15_is_a_run_for_each_cell() -> None:
    runs, table = printed_runs("table15"), printed_table("table15")
    assert len(runs) == len(table.cells) == 58 and tuple(dict.fromkeys(run.method for run in runs)) == METHODS
    for run in runs:
        assert find_cell(f"table15/{run.setting}/{run.task}").value == run.score
    assert runs == printed_runs("figure2")
    sizes = {run.parameters for run in runs if run.method == "LoRA"}
    assert sizes == {4_700_000, 9_400_000, 18_800_000, 37_700_000, 301_900_000, 603_800_000}


def test_figure_2_draws_every_cell_in_its_panel() -> None:
    found = figure2()
    assert found.tasks == ("WikiSQL", "MNLI-m") and found.methods == METHODS
    assert found.title.startswith("Figure 2: ") and found.metric == "accuracy, %"
    points = drawn(found)
    assert len(points) == 2 * len(METHODS)
    for task in found.tasks:
        for place, method in enumerate(METHODS):
            wanted = [(run.parameters, run.score) for run in printed_runs("table15")
                      if (run.method, run.task) == (method, task)]  # fmt: skip
            assert sorted(points[f"{task} {look(place)['color']}"]) == sorted(wanted)
    levels = {(level.task, level.score, level.parameters) for level in found.levels}
    assert levels == {("WikiSQL", 73.8, 175_255_800_000), ("MNLI-m", 89.5, 175_255_800_000)}
    figure = Figure(figsize=found.size)
    found.draw(figure)
    for axes, level in zip(figure.axes, (73.8, 89.5), strict=True):
        assert [line for line in axes.lines if list(line.get_ydata()) == [level, level]]
        assert axes.get_xlabel() and axes.get_ylabel() == "accuracy, %"


def test_settings_of_one_size_stand_apart_and_the_line_runs_through_their_mean() -> None:
    runs = [Scored(method="LoRA", parameters=n, score=s, setting=w) for n, s, w in ((8, 1.0, "v"), (8, 3.0, "qv"),
                                                                                  (16, 4.0, "qv"))]  # fmt: skip
    found = quality(runs)
    assert found.sheet().columns == ("method", "setting", "parameters", "score")
    assert found.sheet().rows == (("LoRA", "v", 8, 1.0), ("LoRA", "qv", 8, 3.0), ("LoRA", "qv", 16, 4.0))
    figure = Figure(figsize=found.size)
    found.draw(figure)
    (through,) = [line for line in figure.axes[0].lines if line.get_marker() == "" and len(line.get_xdata())]
    assert list(zip(through.get_xdata(), through.get_ydata(), strict=True)) == [(8, 2.0), (16, 4.0)]


def test_one_s_own_runs_stand_beside_the_paper_s(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("method,parameters,score,task\nLoRA,8,60,WikiSQL\nLoRA,8,62,WikiSQL\n")
    found = gather_quality([mine, "figure2"], metric="%")
    assert found.methods == ("LoRA", *(f"{method} (Table 15)" for method in METHODS))
    assert found.sheet().rows[0] == ("LoRA", None, 8, 61.0, None)
    assert found.levels[0].method == "FT (Table 4)" and found.title == "quality over trained parameters"
    assert "Table 15: sizes as printed, rounded or cut" in found.notes


def test_a_table_of_several_models_names_them_and_leaves_out_what_is_better_lower() -> None:
    runs = printed_runs("table3")
    assert {run.method for run in runs} >= {"GPT-2 M LoRA", "GPT-2 L LoRA"}
    assert {run.task for run in printed_runs("table13")} == {"BLEU", "METEOR"}
    found = gather_quality(["table3"])
    assert found.metric == "score" and found.size[1] > figure2().size[1]
    # five panels in two rows, none empty
    figure = Figure(figsize=found.size)
    found.draw(figure)
    assert [axes.get_title() for axes in figure.axes] == list(found.tasks) and len(found.tasks) == 5
    assert all(axes.lines for axes in figure.axes)


@pytest.mark.parametrize("name", ["table9", "figure4", "claims"])
def test_tables_without_methods_and_sizes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no quality over parameters") as caught:
        printed_runs(name)
    assert caught.value.where == name and "table15" in caught.value.expected


def test_a_file_of_a_table_s_name_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_printed("table15") and not is_printed("tables15")
    Path("table15").write_text("method,parameters,score\nmine,7,1\n")
    assert not is_printed("table15") and gather_quality(["table15"]).methods == ("mine",)


def test_the_json_of_a_printed_table_is_read_as_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "tables", "15", "--json"]) == 0
    file = tmp_path / "table.json"
    file.write_text(capsys.readouterr().out)
    assert read_quality(file) == printed_runs("table15")
    file.write_text(json.dumps([{"method": "LoRA", "parameters": "1M", "cells": [{"id": "x/y/z", "value": None}]}]))
    with pytest.raises(DataError, match="holds no result"):
        read_quality(file)


def test_looks_of_many_series_differ() -> None:
    looks = [(look(place)["color"], look(place)["marker"]) for place in range(64)]
    assert len(set(looks)) == 64


def test_the_command_takes_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> str:
        assert main(["paper", "quality", *map(str, words)]) == 0
        return capsys.readouterr().out

    text = run("figure2", "-o", tmp_path)
    assert text.startswith("Figure 2: ") and "FT (Table 4)" in text and "LoRA v r=2" in text
    assert {file.suffix for file in tmp_path.iterdir()} == {".txt", ".csv", ".json", ".png", ".svg"}
    assert run("table15", "--title", "mine").startswith("mine\n")
    assert json.loads(run("table15", "--metric", "m", "--json"))["metric"] == "m"
    (tmp_path / "mine.csv").write_text("method,parameters,score,task\nLoRA,8,60,WikiSQL\n")
    rows = json.loads(run(tmp_path / "mine.csv", "table15", "--json"))["rows"]
    assert len(rows) == 30 and rows[1]["method"] == "PreEmbed (Table 15)"
    assert main(["paper", "quality"]) == 2 and "SOURCE" in capsys.readouterr().err
    assert main(["paper", "quality", "table16"]) == 2 and "hint: " in capsys.readouterr().err
