"""DART 1.1.1: records of triples with their annotations; relations in lower case, one example per annotation."""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.train.data.formats.prompt_completion import KIND
from deltaw.train.data.sources.base import Row, RowProblem
from deltaw.train.data.tasks.base import Layout, License, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Held, TaskSource
from deltaw.train.data.tasks.tables import json_rows
from deltaw.train.data.tasks.triples import Entry, read_xml, rows_of

__all__ = ["TASK"]


def _entries(file: File) -> Iterator[Entry]:
    source = json_rows(file)
    for index, row in source.each(0):
        entry = Entry(line=source.place(index))
        try:
            _fill(entry, {} if isinstance(row, RowProblem) else row)
        except (KeyError, TypeError):
            entry.problem = "no record with tripleset and annotations"
            entry.texts = [(entry.line, "", "")]
        yield entry


def _fill(entry: Entry, row: Row) -> None:
    for triple in row["tripleset"]:
        entry.add(triple)
    entry.texts = [(entry.line, str(item.get("source", "")), item["text"]) for item in row["annotations"]]
    if not all(isinstance(text, str) for _, _, text in entry.texts):
        raise TypeError


def _source(entries: Iterator[Entry], file: File, split: str, kind: str) -> TaskSource:
    rows = list[tuple[File, int, Row | RowProblem]]()
    for number, entry in enumerate(entries, 1):
        rows += rows_of(file, number, entry, split=split, lower=True)
    return Held(rows, kind)


def _json(files: list[File], split: str) -> TaskSource:
    return _source(_entries(files[0]), files[0], split, "dart json")


def _xml(files: list[File], split: str) -> TaskSource:
    return _source(read_xml(files[0]), files[0], split, "dart xml")


def _split(stem: str, rows: int, entries: int | None, inputs: int | None) -> Split:
    layouts = tuple(
        Layout(name=kind, files=(f"{prefix}{stem}.{kind}",), open=read)
        for kind, read in (("json", _json), ("xml", _xml))
        for prefix in ("dart-v1.1.1-full-", "")
    )
    return Split(layouts=layouts, rows=rows, entries=entries, inputs=inputs)


TASK = Task(
    name="dart",
    title="DART 1.1.1",
    format=KIND,
    columns={"prompt": "context", "completion": "completion"},
    task="causal",
    example='{"tripleset": [["Ana", "BORN_IN", "Lima"]], "annotations": [{"source": "x", "text": "Ana of Lima."}]}',
    splits={
        "train": _split("train", 62_659, None, None),
        "valid": _split("dev", 6_980, 2_768, 2_721),
        "test": _split("test", 12_552, 5_097, 4_159),
    },
    folders=("dart", "DART"),
    archives=("dart*.tar*",),
    licenses=(License(terms="MIT", by="the paper, appendix C, and Yale-LILY/dart"),),
    counted="valid and test counted in Yale-LILY/dart; train from the paper's total of 82K",
    notes=("the test file has one empty text among its 12,552; training on it needs --bad-rows drop",),
)
