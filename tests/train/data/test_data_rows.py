from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaw.errors import DataError
from deltaw.train.data import load_rows
from deltaw.train.data.detect import sample_rows
from deltaw.train.data.sources import jsonscan

ROWS = [{"prompt": f"frage {n} é", "completion": f'say "{n}",\tthen\nstop'} for n in range(7)]
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _jsonl(path: Path) -> None:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), "utf-8")


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2), "utf-8")


def _keyed(path: Path) -> None:
    path.write_text(json.dumps({str(n): row for n, row in enumerate(ROWS)}, indent=1), "utf-8")


def _nested(path: Path) -> None:
    path.write_text(json.dumps({"data": ROWS}), "utf-8")


def _lines_called_json(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row) for row in ROWS).encode())


def _concatenated(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS), "utf-8")


def _csv(path: Path, delimiter: str = ",") -> None:
    cells = [["prompt", "completion"]] + [list(row.values()) for row in ROWS]
    quoted = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
    path.write_text("\r\n".join(quoted) + "\r\n", "utf-8")


def _semicolons(path: Path) -> None:
    _csv(path, ";")


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)


WRITERS = {
    "rows.jsonl": _jsonl,
    "rows.ndjson": _jsonl,
    "rows.json": _json,
    "keyed.json": _keyed,
    "nested.json": _nested,
    "lines.json": _lines_called_json,
    "concatenated.json": _concatenated,
    "rows.csv": _csv,
    "semicolons.csv": _semicolons,
    "rows.parquet": _parquet,
}
PACKERS = {"": None, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_gives_the_same_rows(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    if suffix:
        packed = path.with_name(name + suffix)
        packed.write_bytes(PACKERS[suffix](path.read_bytes()))
        path.unlink()
        path = packed
    rows = load_rows(path)
    assert len(rows) == len(ROWS)
    assert list(rows) == ROWS
    assert [row for _, row in rows.each()] == ROWS
    assert rows[-1] == ROWS[-1] and rows[3] == ROWS[3]
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    rows = load_rows(tmp_path / "one")
    assert list(rows) == ROWS and rows.kind == "datasets" and rows.where(2).endswith("row 3")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "splits")
    assert list(load_rows(tmp_path / "splits")) == ROWS
    assert "train" in load_rows(tmp_path / "splits").notes[0]
    assert list(load_rows(tmp_path / "splits" / "test")) == ROWS[:1]
    whole.select([4, 2]).save_to_disk(tmp_path / "picked")
    assert list(load_rows(tmp_path / "picked")) == [ROWS[4], ROWS[2]]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('sentence\tlabel\na "quoted start\t0\n"\t1\n', "utf-8")
    rows = load_rows(path)
    assert [row["sentence"] for row in rows] == ['a "quoted start', '"']
    assert rows.where(1) == f"{path}, line 3"


def test_csv_with_stray_quotes_and_long_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = "x" * 200_000
    path.write_text(f'index,text\n1,5" pipe\n2,"two\n\nlines, ""here"""\n3,{long}\n', "utf-8")
    rows = load_rows(path)
    assert [row["text"] for row in rows] == ['5" pipe', 'two\n\nlines, "here"', long]
    assert [rows.number(at) for at in range(3)] == ["line 2", "line 3", "line 6"]


_cell = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\r") | st.sampled_from('",;\n\x0c\u2028')
)


@quick
@given(cells=st.lists(st.tuples(_cell, _cell), min_size=1), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_reads_what_csv_writes(tmp_path: Path, cells: list[tuple[str, str]], quoting: Any) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=quoting).writerows([("text", "label"), *cells])
    # A row of empty cells is written "","" or ,; it is a row, not a blank line.
    assert [tuple(row.values()) for row in load_rows(path)] == cells


def test_text_lines_and_separator(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("name : A || It is A . \n\nname : B||It is B .\n", "utf-8")
    assert list(load_rows(path)) == [{"text": "name : A || It is A . "}, {"text": "name : B||It is B ."}]
    assert list(load_rows(path, separator="||")) == [
        {"prompt": "name : A", "completion": "It is A ."},
        {"prompt": "name : B", "completion": "It is B ."},
    ]


def test_limit_select_and_identity(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _jsonl(path)
    rows = load_rows(path, limit=3)
    assert list(rows) == ROWS[:3]
    assert list(rows.select([2, 0])) == [ROWS[2], ROWS[0]]
    assert [at for at, _ in rows.select(range(1, 3)).each()] == [0, 1]
    assert rows.select(range(1, 3)).number(0) == "line 3"
    names = {
        load_rows(path).identity(),
        rows.identity(),
        rows.select([2, 0]).identity(),
        rows.select([0, 2]).identity(),
    }
    assert len(names) == 4
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert load_rows(copy, limit=3).identity() == rows.identity()
    copy.write_bytes(path.read_bytes().replace(b"frage 0", b"frage 9"))
    assert load_rows(copy, limit=3).identity() != rows.identity()
    with pytest.raises(DataError, match="limit 0"):
        load_rows(path, limit=0)


def test_a_broken_row_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": }\n', "utf-8")
    rows = load_rows(path)
    assert rows[0] == {"text": "a"}
    with pytest.raises(DataError, match="line 3"):
        rows[1]


@quick
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.text() | st.integers() | st.lists(st.floats(allow_nan=False, allow_infinity=False)),
            min_size=1,
        ),
        min_size=1,
    ),
    indent=st.sampled_from([None, 1]),
    piece=st.integers(1, 40),
    raw=st.booleans(),
)
def test_json_scanner_finds_every_row_at_any_piece_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], indent: int | None, piece: int, raw: bool
) -> None:
    monkeypatch.setattr(jsonscan, "_PIECE", piece)
    path = tmp_path / "rows.json"
    # Surrogates cannot be written as UTF-8; escaped they are fine.
    rows = json.loads(json.dumps(rows).encode("utf-8", "replace"))
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=not raw), "utf-8", errors="replace")
    assert list(load_rows(path)) == json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(("indent", "number"), [(None, "row 3"), (0, "line 8")])
def test_a_json_array_on_one_line_numbers_rows(tmp_path: Path, indent: int | None, number: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": str(each)} for each in range(4)], indent=indent))
    assert load_rows(path).number(2) == number


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(20_000):
            file.write(("," if number else "") + json.dumps({"text": f"{number} " + "x" * 2000}) + "\n")
        file.write("]")
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    rows = load_rows(path)
    assert sum(1 for _ in rows.each()) == 20_000 and rows[19_999]["text"].startswith("19999")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


def test_a_cut_unpacked_copy_is_never_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:-9])
    with pytest.raises(DataError, match="unpacked"):
        load_rows(path, cache_dir=tmp_path / "c")
    assert not [item for item in (tmp_path / "c").rglob("*") if item.is_file()]


def test_a_damaged_unpacked_copy_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert len(load_rows(path)) == 2
    (copy,) = (tmp_path / "cache").rglob("rows.txt")
    copy.write_bytes(b"one\n")
    assert len(load_rows(path)) == 2


def test_sampling_spans_a_columnar_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(30_000)]}), path, row_group_size=100)
    sample = [int(row["text"]) for row in sample_rows(load_rows(path))]
    assert len(sample) == 1000 and len({number // 1500 for number in sample}) == 20


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        ("glue/SST-2/train.tsv.gz", 67349, {"sentence", "label"}),
        ("glue/CoLA/train.tsv.gz", 8551, {"source", "label", "mark", "sentence"}),
        ("glue/MNLI_9k/train.json.gz", 8999, {"text_a", "text_b", "label"}),
        ("instruct/instruction-data.json", 1100, {"instruction", "input", "output"}),
    ],
)
def test_real_files(shared: Path, name: str, count: int, columns: set[str]) -> None:
    rows = load_rows(shared / name)
    assert len(rows) == count and set(rows[0]) == columns
