"""What every analysis does alike: text, CSV, JSON, figures that are not empty and depend on numbers alone."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from analysis_cases import RESULTS, piece
from matplotlib.image import imread

from deltaw.errors import ConfigError
from deltaw.paper.analyses.base import against_base
from deltaw.paper.analyses.result import Sheet
from deltaw.paper.analyses.style import COLORS


@pytest.mark.parametrize("name", RESULTS)
def test_text_csv_and_json_say_the_same(name: str) -> None:
    result = RESULTS[name]()
    sheet = result.sheet()
    assert result.text() == str(result) and sheet.title in result.text()
    read = list(csv.DictReader(io.StringIO(result.csv())))
    found = json.loads(result.json())
    assert found["title"] == sheet.title and found["notes"] == list(sheet.notes)
    assert len(read) == len(found["rows"]) == len(sheet.rows) > 0
    for row, line, values in zip(sheet.rows, read, found["rows"], strict=True):
        for column, cell in zip(sheet.columns, row, strict=True):
            if isinstance(cell, float):
                assert float(line[column]) == cell == pytest.approx(float(values[column]))
            else:
                assert line[column] == ("" if cell is None else str(cell)) and values[column] == cell


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_figures_are_not_empty_and_depend_on_numbers_alone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    result = RESULTS[name]()
    png = result.png()
    pixels = imread(io.BytesIO(png))[..., :3]
    assert pixels.shape[0] > 150 and pixels.shape[1] > 300
    # something other than the paper is drawn, over much of the figure
    inked = (pixels < 0.98).any(-1)
    assert inked.any(1).mean() > 0.5 and inked.any(0).mean() > 0.5 and inked.mean() > 0.01
    # nothing runs out of the figure: its rim is blank
    rim = np.concatenate([inked[0], inked[-1], inked[:, 0], inked[:, -1]])
    assert not rim.any()
    assert result.png() == png
    assert dict(matplotlib.rcParams) == before


def test_svg_is_text_and_depends_on_numbers_alone() -> None:
    one, other = RESULTS["switch"]().svg(), RESULTS["switch"]().svg()
    assert one == other and one.startswith(b"<?xml") and b"<path" in one
    assert b"<dc:date>" not in one


def test_other_numbers_give_another_figure() -> None:
    assert RESULTS["which-scored"]().png() != RESULTS["which"]().png()


def test_colors_stay_apart_in_grey() -> None:
    light = [sum(w * int(c[p : p + 2], 16) for w, p in ((0.299, 1), (0.587, 3), (0.114, 5))) for c in COLORS]
    assert all(abs(a - b) > 25 for a, b in itertools.pairwise(light))


def test_save_writes_all_forms_and_replaces_them(tmp_path: Path) -> None:
    result = RESULTS["which"]()
    (tmp_path / "kept.txt").write_text("kept")
    files = result.save(tmp_path / "new")
    assert {file.name for file in files} >= {f"which.{end}" for end in ("txt", "csv", "json", "png", "svg")}
    assert "q-r4.toml" in {file.name for file in files} and all(file.stat().st_size > 50 for file in files)
    assert (tmp_path / "new" / "which.csv").read_text() == result.csv()
    result.save(tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_save_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        RESULTS["deployment"]().save(tmp_path / "file")


def test_numbers_stand_to_the_right() -> None:
    text = Sheet(title="t", columns=("name", "n"), rows=(("a", 5), ("b", 1234), ("c", None))).text()
    assert text.splitlines()[1:] == ["name      n", "a         5", "b     1,234", "c         -"]


def test_numbers_that_are_not_finite_are_named_in_json() -> None:
    one = piece("h.0.q", torch.eye(1, 4), torch.eye(4)[:, :1])
    found = json.loads(against_base({"h.0.q": one}, {"h.0.q": torch.zeros(4, 4)}).json())
    assert found["rows"][0]["amplification"] == "inf"
