"""The printed tables: complete, well-formed, and what they print."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from printed_facts import PRINTED

from deltaw.cli import main
from deltaw.errors import ConfigError, DataError
from deltaw.paper.models import PAPER_MODELS
from deltaw.paper.tables import (
    TABLE_IDS,
    errata,
    erratum,
    find_cell,
    printed_table,
    printed_tables,
    read_number,
    read_table,
)
from deltaw.paper.tables.show import to_csv

# rows x columns of each table
SIZES = {
    "table1": (3, 5), "table2": (14, 9), "table3": (12, 5), "table4": (8, 5), "table5": (7, 2), "table6": (6, 5),
    "table7": (6, 2), "table8": (2, 2), "table9": (41, 8), "table10": (11, 8), "table11": (14, 3), "table12": (12, 6),
    "table13": (11, 3), "table14": (11, 9), "table15": (29, 2), "table16": (4, 4), "table17": (14, 4),
    "table18": (11, 6), "figure2": (2, 1), "figure3": (1, 1), "figure4": (1, 1), "figure5": (1, 1), "figure6": (1, 1),
    "figure7": (1, 1), "figure8": (1, 1), "claims": (13, 1), "datasets": (5, 5),
}  # fmt: skip

CELLS = {
    "table1/batch 1, length 128/Adapter H": ("25.8+-2.2", 25.8, 2.2),
    "table1/batch 1, length 128/Adapter H slow-down": ("+30.3%", 0.303, None),
    "table2/RoB-base LoRA/RTE": ("86.6+-.7", 86.6, 0.7),
    "table2/RoB-large LoRA restricted/RTE": ("85.2+-1.1", 85.2, 1.1),
    "table2/RoB-large Adpt H 0.8M/avg": ("86.4", 86.4, None),
    "table2/DeB-XXL LoRA/CoLA": ("72.4+-1.1", 72.4, 1.1),
    "table3/M LoRA/BLEU": ("70.4+-.1", 70.4, 0.1),
    "table3/L Adapter L 23.00M/CIDEr": ("2.45+-.02", 2.45, 0.02),
    "table4/LoRA 37.7M/WikiSQL": ("74.0", 74.0, None),
    "table4/Adapter H 40.1M/SAMSum R2": ("29.0", 29.0, None),
    "table5/q,v r=4/WikiSQL": ("73.7", 73.7, None),
    "table6/MNLI q,k,v,o/r=8": ("91.5", 91.5, None),
    "table7/Delta W_q/r=4": ("0.32", 0.32, None),
    "table8/few-shot/RTE": ("69.0", 69.0, None),
    "table9/RoB-large LoRA epochs/STS-B": ("30", 30, None),
    "table9/RoB-large LoRA restricted epochs/STS-B": ("10", 10, None),
    "table9/RoB-large Adpt P 3.0M learning rate/SST-2": ("3e-5", 3e-5, None),
    "table9/RoB-large Adpt P 3.0M learning rate/MRPC": ("3e-4", 3e-4, None),
    "table10/weight decay/STS-B": (".1", 0.1, None),
    "table11/inference length penalty/E2E": (".9", 0.9, None),
    "table12/learning rate/BitFit": ("1.6e-3", 1.6e-3, None),
    "table12/warm-up tokens/LoRA": ("250,000", 250_000, None),
    "table13/L LoRA/BLEU": ("47.5+-.1", 47.5, 0.1),
    "table14/M FT-Top2/TER U": (".99", 0.99, None),
    "table14/L LoRA/BLEU A": ("57.0+-.1", 57.0, 0.1),
    "table15/LoRA+PE qv r=64/WikiSQL": ("76.2", 76.2, None),
    "table15/PreLayer lp=64, li=0/MNLI-m": ("87.9", 87.9, None),
    "table16/LoRA/n=100": ("63.8", 63.8, None),
    "table17/PreEmbed lp/n=392K": ("256", 256, None),
    "table18/r=4/BLEU": ("70.38", 70.38, None),
    "table18/r=1024/validation loss": ("1.17", 1.17, None),
    "figure5/worst slow-down is above/stated": ("30%", 0.3, None),
    "claims/VRAM, full fine-tuning/stated": ("1.2TB", 1.2e12, None),
    "datasets/DART/all": ("82K", 82_000, None),
}


def test_every_table_is_there_in_its_size() -> None:
    assert tuple(SIZES) == TABLE_IDS
    assert {table.id: (len(table.rows), len(table.columns)) for table in printed_tables()} == SIZES
    assert [table.number for table in printed_tables()[:18]] == list(range(1, 19))


@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: str) -> None:
    text, value, spread = CELLS[cell]
    found = find_cell(cell)
    assert found.id == cell and found.text == text and found.value == value
    assert (None if found.spread is None else float(found.spread)) == spread


def test_ids_are_unique_and_lead_back() -> None:
    cells = [cell for table in printed_tables() for cell in table.cells]
    assert len({cell.id for cell in cells}) == len(cells) > 1000
    assert all(find_cell(cell.id) is cell for cell in cells)


def test_results_are_numbers_and_say_which_way_is_better() -> None:
    settings = {"table7", "table9", "table10", "table11", "table12", "table17", "claims", "datasets"}
    for table in printed_tables():
        if table.id not in settings and not table.id.startswith("figure"):
            assert all(column.better for column in table.columns), table.id
            assert all(cell.number is not None for cell in table.cells), table.id


def test_rows_name_models_that_exist() -> None:
    assert {row.model for table in printed_tables() for row in table.rows} - {""} <= set(PAPER_MODELS)


def test_marks_and_errata_are_explained() -> None:
    for table in printed_tables():
        assert {mark for row in table.rows for mark in row.marks} <= set(table.marks), table.id
        assert set(table.errata) <= set(errata())
        assert not table.data or table.data in TABLE_IDS


def test_what_cannot_simply_be_repeated_says_why() -> None:
    for table in printed_tables():
        assert table.needs if table.reproducible == "yes" else table.why, table.id
    smaller = {table.id for table in printed_tables() if table.reproducible == "smaller scale only"}
    on_gpt3 = {f"table{number}" for number in (4, 5, 6, 7, 8, 12, 15, 16, 17)}
    figures = {f"figure{number}" for number in (2, 3, 4, 6, 7, 8)}
    assert smaller == on_gpt3 | figures | {"claims"}


def test_errata_are_nineteen_in_order() -> None:
    assert list(errata()) == [f"ERR{number}" for number in range(1, 20)]
    assert all(item.what and item.evidence and item.choice for item in errata().values())
    assert str(erratum("ERR5")).startswith("ERR5: ") and "r=4" in erratum("ERR5").choice


@pytest.mark.parametrize("name", PRINTED)
def test_tables_equal_the_facts_cell_by_cell(name: str) -> None:
    lines = [line.split("|") for line in PRINTED[name].split()]
    texts = [cell for row in lines for cell in row]
    rows = printed_table(name).rows
    mine = [cell.text for row in rows for cell in row.cells.values()]
    assert len(lines) == len(rows)
    # SAMSum's three stand in one cell there.
    split = [part for cell in texts for part in cell.split("/")]
    it = iter(split)
    assert all(cell in it for cell in mine), f"{name} is not in the order of the facts"


@pytest.mark.parametrize(
    ("text", "number", "spread"),
    [
        ("70.4+-.1", Fraction("70.4"), Fraction("0.1")),
        ("2.49+-.0", Fraction("2.49"), Fraction(0)),
        ("5e-4", Fraction(5, 10_000), None),
        ("2/3", Fraction(2, 3), None),
        ("175,255.8M", Fraction(175_255_800_000), None),
        ("AdamW", None, None),
        ("1, 32, 64, 96", None, None),
    ],
)
def test_numbers(text: str, number: Fraction | None, spread: Fraction | None) -> None:
    assert read_number(text) == (number, spread)


GOOD: dict[str, Any] = {
    "title": "t", "metric": "m", "reproducible": "yes", "columns": [{"id": "a"}, {"id": "b"}],
    "rows": [{"id": "x", "cells": ["1", "-"]}, {"id": "y", "all": "2"}],
}  # fmt: skip


def test_a_table_is_read() -> None:
    table = read_table("table0", GOOD)
    assert [cell.id for cell in table.cells] == ["table0/x/a", "table0/y/a", "table0/y/b"]
    with pytest.raises(ConfigError, match="no column 'b'"):
        table.cell("x", "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"titel": "t"}, "'titel'"),
        ({"rows": [{"id": "x", "cells": ["1"]}]}, "1 cells"),
        ({"rows": [{"id": "x"}]}, "0 cells"),
        ({"rows": [{"id": "x", "all": "1", "cells": ["1", "2"]}]}, "one text as all"),
        ({"rows": [{"id": "x", "all": "1"}] * 2}, "'x' twice"),
        ({"rows": [{"id": "x/y", "all": "1"}]}, "without a slash"),
        ({"rows": [{"id": "x", "all": "1", "modle": "gpt2"}]}, "'modle'"),
        ({"columns": [{"id": "a", "better": "up"}]}, "higher or lower"),
        ({"columns": [{"unit": "%"}]}, "no id"),
        ({"reproducible": "perhaps"}, "perhaps"),
        ({"reproducible": "cannot"}, "no why"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_tables_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table("table0", {**GOOD, **change})
    assert said in str(caught.value) and "table0" in caught.value.where


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["paper", "tables", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys)
    assert all(f"\n{name} " in listed for name in TABLE_IDS) and "smaller scale only" in listed
    text = run(capsys, "3")
    assert text.startswith("Table 3: ") and "M LoRA" in text and "70.4+-.1" in text and "M FT *" in text
    assert "* published in earlier work" in text and "ERR1: " in text
    assert run(capsys, "figure2").startswith("Figure 2: ") and "data: table15" in run(capsys, "figure2")
    assert run(capsys, "claims").startswith("Claims: ")
    assert run(capsys, "errata").count("\n  here: ") == 19
    assert run(capsys, "3", "--quiet") == ""


def test_the_command_gives_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "table3", "--json"))
    cells = {cell["id"]: cell for row in found["rows"] for cell in row["cells"]}
    assert cells["table3/M LoRA/BLEU"] == {
        "id": "table3/M LoRA/BLEU", "text": "70.4+-.1", "value": 70.4, "spread": 0.1,
    }  # fmt: skip
    assert len(json.loads(run(capsys, "--json"))["tables"]) == len(TABLE_IDS)
    assert len(json.loads(run(capsys, "errata", "--json"))["errata"]) == 19


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_output_writes_a_table_in_three_forms(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = run(capsys, "3", "-o", str(tmp_path / "out"))
    assert said.rstrip().endswith(f"wrote table3.txt, table3.csv, table3.json to {tmp_path / 'out'}")
    rows = {row["row"]: row for row in rows_of((tmp_path / "out" / "table3.csv").read_text(encoding="utf-8"))}
    assert (rows["M LoRA"]["BLEU"], rows["M LoRA"]["BLEU +-"], rows["M LoRA"]["parameters"]) == ("70.4", ".1", "0.35M")
    assert (rows["M FT"]["BLEU +-"], rows["M FT"]["marks"], rows["M FT"]["model"]) == ("", "*", "gpt2-medium")
    assert json.loads((tmp_path / "out" / "table3.json").read_text()) == json.loads(run(capsys, "3", "--json"))
    assert (tmp_path / "out" / "table3.txt").read_text() == run(capsys, "3")
    found = json.loads(run(capsys, "errata", "--json", "-o", str(tmp_path)))
    assert [Path(file).name for file in found["files"]] == ["errata.txt", "errata.csv", "errata.json"]
    assert [row["id"] for row in rows_of((tmp_path / "errata.csv").read_text())] == [f"ERR{n}" for n in range(1, 20)]


def test_output_without_a_table_writes_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"wrote table1.txt, table1.csv, table1.json and {3 * len(TABLE_IDS)} more" in run(
        capsys, "-o", str(tmp_path)
    )
    assert {file.stem for file in tmp_path.glob("*.csv")} == {*TABLE_IDS, "errata"}
    (tmp_path / "file").write_text("x")
    assert main(["paper", "tables", "3", "-o", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", TABLE_IDS)
def test_csv_loses_no_cell(name: str) -> None:
    table = printed_table(name)
    rows = rows_of(to_csv(table))
    assert [row["row"] for row in rows] == [row.id for row in table.rows]
    for line, row in zip(rows, table.rows, strict=True):
        for column in table.columns:
            parts = [line[column.id], line.get(f"{column.id} +-") or ""]
            text = row.cells[column.id].text if column.id in row.cells else ""
            assert "+-".join(filter(None, parts)) == text


@pytest.mark.parametrize("name", ["19", "0", "tabel3", "figure1"])
def test_the_command_names_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "tables", name]) == 2
    assert "hint: closest: " in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["table3/M LoRA", "table3/M LoRa/BLEU", "table3/M LoRA/BLUE", "table99/a/b"])
def test_cells_that_do_not_exist(cell: str) -> None:
    with pytest.raises(ConfigError):
        find_cell(cell)
    with pytest.raises(ConfigError, match="ERR20"):
        erratum("ERR20")
