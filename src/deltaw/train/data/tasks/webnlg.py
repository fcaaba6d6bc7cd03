"""WebNLG 2017: entries of triples, with only the texts that their judges call good."""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.train.data.formats.prompt_completion import KIND
from deltaw.train.data.sources.base import Row, RowProblem
from deltaw.train.data.tasks.base import Layout, License, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Held, TaskSource
from deltaw.train.data.tasks.tables import json_rows
from deltaw.train.data.tasks.triples import Entry, read_xml, rows_of

__all__ = ["SEEN", "TASK"]

SEEN = frozenset({
    "Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam", "University",
    "WrittenWork",
})  # fmt: skip
"""The categories of the training split; the test split has five more."""


def _xml_entries(files: list[File]) -> Iterator[tuple[File, Entry]]:
    for file in files:
        for entry in read_xml(file):
            yield file, entry


def _json_entries(files: list[File]) -> Iterator[tuple[File, Entry]]:
    for file in files:
        source = json_rows(file)
        for index, row in source.each(0):
            entry = Entry(line=source.place(index))
            try:
                _fill(entry, {} if isinstance(row, RowProblem) else row)
            except (AttributeError, KeyError, TypeError):
                entry.problem = "no entry with modifiedtripleset and lexicalisations"
                entry.texts = [(entry.line, "good", "")]
            yield file, entry


def _fill(entry: Entry, row: Row) -> None:
    """Read ``{"7": {...}}``, the form of the challenge's json."""
    (record,) = row.values() if len(row) == 1 else (row,)
    entry.category = record["category"]
    for triple in record["modifiedtripleset"]:
        entry.add((triple["subject"], triple["property"], triple["object"]))
    entry.texts = [(entry.line, str(lex["comment"]), lex["lex"]) for lex in record["lexicalisations"]]
    if not all(isinstance(text, str) for _, _, text in entry.texts):
        raise TypeError


def _source(entries: Iterator[tuple[File, Entry]], split: str, kind: str) -> TaskSource:
    rows, dropped = list[tuple[File, int, Row | RowProblem]](), 0
    for number, (file, entry) in enumerate(entries, 1):
        good = [item for item in entry.texts if item[1] == "good"]
        dropped += len(entry.texts) - len(good)
        entry.texts = good
        group = "seen" if entry.category in SEEN else "unseen"
        rows += rows_of(file, number, entry, split=split, group=group)
    source = Held(rows, kind)
    if dropped:
        source.notes.append(f"{dropped:,} texts that are not marked good are left out, as in the paper's code")
    return source


def _xml(files: list[File], split: str) -> TaskSource:
    return _source(_xml_entries(files), split, "webnlg xml")


def _json(files: list[File], split: str) -> TaskSource:
    return _source(_json_entries(files), split, "webnlg json")


def _split(stem: str, xml: str, rows: int, entries: int, inputs: int) -> Split:
    # Only dev is in the repositories in both forms; the json is the one that the paper's code reads.
    layouts = (
        Layout(name="json", files=(f"{stem}.json",), open=_json),
        Layout(name="xml", files=(xml,), open=_xml),
    )
    return Split(layouts=layouts, rows=rows, entries=entries, inputs=inputs)


TASK = Task(
    name="webnlg",
    title="WebNLG Challenge 2017",
    format=KIND,
    columns={"prompt": "context", "completion": "completion"},
    task="causal",
    example='<mtriple>Ana | bornIn | Lima</mtriple> with <lex comment="good">Ana is from Lima.</lex>',
    splits={
        "train": _split("train", "train/**/*.xml", 18_025, 6_935, 6_888),
        "valid": _split("dev", "dev/**/*.xml", 2_258, 871, 870),
        "test": _split("test", "test/testdata_with_lex.xml", 4_928, 1_862, 1_862),
        "test_seen": Split(of="test", group="seen", rows=2_495, entries=971, inputs=971),
        "test_unseen": Split(of="test", group="unseen", rows=2_433, entries=891, inputs=891),
    },
    folders=("webnlg_challenge_2017", "webnlg2017", "webnlg", "webnlg2017/webnlg_challenge_2017"),
    archives=("webnlg*.tar*", "webnlg*.tgz"),
    licenses=(License(terms="CC BY-NC-SA 4.0", by="the paper, appendix C, and ThiagoCF05/webnlg"),),
    counted="counted in the challenge's files",
    notes=(
        "5 of 6,940 training entries and 1 of 872 validation entries have no text that is marked good",
        "the paper speaks of 14 categories, nine of them seen; the test split has 15, ten of them seen",
    ),
)
