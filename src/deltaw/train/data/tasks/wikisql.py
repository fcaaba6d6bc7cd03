"""WikiSQL: a table's columns and a question in, SQL out; salesforce's own files, or text2sql-data's single file.

The single file has no table headers. Its columns are those that any of its questions about the table uses, named in
lower case because the file keeps the names in upper case only; and all its values are texts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from deltaw.errors import DataError
from deltaw.train.data.formats.prompt_completion import KIND
from deltaw.train.data.sources.base import Row, RowProblem
from deltaw.train.data.tasks.base import Layout, License, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Held, Mapped, TaskSource, column, text
from deltaw.train.data.tasks.sql import AGGREGATES, OPERATORS, Query, Value, column_names, to_sql
from deltaw.train.data.tasks.tables import json_rows

__all__ = ["TASK", "Table", "encode"]

_LOOSE = "_FIELD"
_ALIAS = "TABLEalias0."
_VARIABLE = re.compile(r"var\d+")
_SPLITS = {"train": "train", "valid": "dev", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is known of one table.

    Args:
        id: names it.
        header: its columns.
        types: ``text`` or ``real`` for each; empty where unknown.
    """

    id: str
    header: tuple[str, ...]
    types: tuple[str, ...] = ()


def encode(table: Table, question: str) -> str:
    """Write what a model is given: the table's schema, then the question.

    Args:
        table: the table.
        question: in words.

    Returns:
        Two lines.

    Source:
        Hu et al. 2021, arXiv:2106.09685, appendix C: x = {table schema, query}; the paper does not say how it is
        written.

    Example:
        >>> encode(Table(id="1", header=("City", "No.")), "How many in Rio?")
        'columns: City | No.\\nquestion: How many in Rio?'
    """
    return f"columns: {' | '.join(column_names(table.header))}\nquestion: {question.strip()}"


def _row(split: str, number: int, table: Table, question: str, query: Query) -> Row:
    if not question.strip():
        raise RowProblem("an empty question")
    try:
        completion = to_sql(query, table.header)
    except DataError as error:
        raise RowProblem(f"{error.what}: {error.got}") from error
    return {
        "id": f"{split}-{number}", "context": encode(table, question), "completion": completion, "group": "",
        "entry": table.id, "header": list(table.header), "types": list(table.types), "query": query.as_dict(),
    }  # fmt: skip


# ---- salesforce's files: questions in one, tables in the other


def _jsonl(files: list[File], split: str) -> TaskSource:
    questions, tables = files
    known = _tables(tables)

    def convert(row: Row, line: int) -> Row:
        name = text(row, "table_id")
        if name not in known:
            raise RowProblem(f"table {name!r} is not in {tables.stem}")
        value = column(row, "sql")
        try:
            query = Query.from_dict(value if isinstance(value, dict) else {})
        except DataError as error:
            raise RowProblem(f"no query in 'sql': got {error.got}, expected {error.expected}") from error
        return _row(split, line, known[name], text(row, "question"), query)

    return Mapped(json_rows(questions, lines=True), convert, "wikisql jsonl")


def _tables(file: File) -> dict[str, Table]:
    source, found = json_rows(file, lines=True), dict[str, Table]()
    for index, row in source.each(0):
        try:
            if isinstance(row, RowProblem):
                raise row
            header = column(row, "header")
            if not isinstance(header, list) or not header or not all(isinstance(name, str) for name in header):
                raise RowProblem("'header' is no list of column names")
            name = text(row, "id")
            found[name] = Table(id=name, header=tuple(header), types=tuple(map(str, row.get("types", ()))))
        except RowProblem as problem:
            raise DataError(
                "a table cannot be read",
                where=f"{file.shown}, line {source.place(index)}",
                got=str(problem),
                expected='a table such as {"id": "1-10-1", "header": ["State", "Notes"], "types": ["text", "text"]}',
                hint="copy or download the file again.",
            ) from problem
    return found


# ---- text2sql-data: one file of groups of questions that share a query


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One query with the names of its columns, before its table and values are known, and who asks it.

    A condition's value is a list of words, of which some are variables. A question is (split, table, words, values).
    """

    select: str
    aggregate: int
    conditions: tuple[tuple[str, int, tuple[str, ...]], ...]
    columns: tuple[int, ...]
    questions: tuple[tuple[str, str, str, dict[str, str]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.select, *(name for name, _, _ in self.conditions)


@dataclass(frozen=True, kw_only=True)
class _Single:
    """The whole file: (line, group or problem), and the tables that the groups tell of."""

    groups: tuple[tuple[int, _Group | RowProblem], ...]
    tables: dict[str, Table]
    unit: str


@functools.lru_cache(maxsize=1)
def _parsed(file: File, stamp: tuple[int, int]) -> _Single:
    """Read the file once for its three splits."""
    source = json_rows(file)
    groups: list[tuple[int, _Group | RowProblem]] = []
    for index, row in source.each(0):
        try:
            if isinstance(row, RowProblem):
                raise row
            groups.append((source.place(index), _group(row)))
        except RowProblem as problem:
            groups.append((source.place(index), problem))
    return _Single(groups=tuple(groups), tables=_headers(groups), unit=source.unit)


def _single(files: list[File], split: str) -> TaskSource:
    stat = files[0].path.stat()
    whole = _parsed(files[0], (stat.st_size, stat.st_mtime_ns))
    held = Held([(files[0], line, row) for line, row in _questions(whole, split)], "wikisql text2sql", whole.unit)
    held.notes.append(
        "the file has no table headers: a question is given the columns that the file's questions on its table use, "
        "in lower case; all values are texts"
    )
    return held


def _group(row: Row) -> _Group:
    """Read ``SELECT [AGG] COL FROM TABLE AS TABLEalias0 [WHERE COL = "var0" AND ...] ;``; some lack the alias."""
    try:
        (sql,), (original,) = row["sql"], row["sql-original"]
        words = sql.split(" ")
        aggregate = AGGREGATES.index(words[1]) if words[1] in AGGREGATES[1:] else 0
        at = 2 if aggregate else 1
        select = _name(words[at])
        tail = words[at + 5 :] if words[at + 3] == "AS" else words[at + 3 :]
        if words[at + 1] != "FROM" or words[at + 2].lower() != "table" or tail.pop() != ";":
            raise ValueError
        conditions = tuple(_conditions(tail))
        shared = {item["name"]: item["example"] for item in row["variables"]}
        questions = tuple(
            (item["question-split"], item["table-id"], item["original"], {**shared, **item["variables"]})
            for item in row["sentences"]
        )
        if not all(isinstance(part, str) for question in questions for part in question[:3]):
            raise TypeError
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise RowProblem(f"no group of questions with a query of WikiSQL's form: {str(row.get('sql'))[:120]}") from None
    columns = tuple(int(word[3:]) for word in original.split(" ") if word.startswith("col") and word[3:].isdigit())
    return _Group(
        select=select, aggregate=aggregate, conditions=conditions, columns=columns, questions=questions
    )  # fmt: skip


def _conditions(words: list[str]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Read ``WHERE COL = value AND COL > value``; a value may be several words, with signs among them."""
    at = 0
    while at < len(words):
        if words[at] != ("AND" if at else "WHERE"):
            raise ValueError
        end = at + 3
        while end < len(words) and not (words[end] == "AND" and words[end + 1].endswith(_LOOSE)):
            end += 1
        yield _name(words[at + 1]), OPERATORS.index(words[at + 2]), tuple(words[at + 3 : end])
        at = end


def _name(word: str) -> str:
    if not word.endswith(_LOOSE):
        raise ValueError
    return word.removeprefix(_ALIAS).removesuffix(_LOOSE).replace("_", " ").lower()


def _headers(groups: Iterable[tuple[int, _Group | RowProblem]]) -> dict[str, Table]:
    """Collect the columns of each table: in the table's own order where the file says it, then as they come."""
    places: dict[str, dict[str, int]] = {}
    for _, group in groups:
        if isinstance(group, RowProblem):
            continue
        for number, (_, name, _, _) in enumerate(group.questions):
            known = places.setdefault(name, {})
            # The positions are those of the first question's table.
            given = group.columns if number == 0 and len(group.columns) == len(group.names) else ()
            # The select column comes first in both; the conditions of the two are ordered differently.
            given = given[:1] if len(given) > 2 else given
            for place, used in enumerate(group.names):
                late = 1_000 + len(known)
                known[used] = min(known.get(used, late), given[place] if place < len(given) else late)
    return {name: Table(id=name, header=tuple(sorted(known, key=known.__getitem__))) for name, known in places.items()}


def _questions(whole: _Single, split: str) -> Iterator[tuple[int, Row | RowProblem]]:
    wanted, number = _SPLITS[split], 0
    for line, group in whole.groups:
        if isinstance(group, RowProblem):
            yield line, group
            continue
        for part, name, question, values in group.questions:
            if part != wanted:
                continue
            number += 1
            try:
                yield line, _row(split, number, whole.tables[name], question, _query(group, whole.tables[name], values))
            except RowProblem as problem:
                yield line, problem


def _query(group: _Group, table: Table, values: dict[str, str]) -> Query:
    at, conditions = table.header.index, list[tuple[int, int, Value]]()
    for name, operator, words in group.conditions:
        value = " ".join(_word(word, values) for word in words)
        if not value:
            raise RowProblem(f"no value for the column {name!r}")
        conditions.append((at(name), operator, value))
    return Query(select=at(group.select), aggregate=group.aggregate, conditions=tuple(conditions))


def _word(word: str, values: dict[str, str]) -> str:
    """One word of a value: a variable, a word table that was taken for an alias, or itself."""
    plain = word.strip('"')
    if _VARIABLE.fullmatch(plain):
        if not isinstance(values.get(plain), str):
            raise RowProblem(f"no value for {plain}")
        return values[plain]
    return "table" if word == _ALIAS[:-1] else word


def _split(name: str, rows: int) -> Split:
    stem = _SPLITS[name]
    layouts = (
        Layout(name="jsonl", files=(f"{stem}.jsonl", f"{stem}.tables.jsonl"), open=_jsonl),
        Layout(name="text2sql", files=("wikisql.json",), open=_single),
    )
    return Split(layouts=layouts, rows=rows)


TASK = Task(
    name="wikisql",
    title="WikiSQL",
    format=KIND,
    columns={"prompt": "context", "completion": "completion"},
    task="causal",
    example='{"table_id": "1-10-1", "question": "Who has no. 7?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, 7]]}}',
    splits={"train": _split("train", 56_355), "valid": _split("valid", 8_421), "test": _split("test", 15_878)},
    folders=("wikisql", "WikiSQL", "data", "WikiSQL/data"),
    archives=("data.tar.bz2", "wikisql*.tar*", "WikiSQL*.tar*"),
    licenses=(
        License(terms="BSD-3-Clause", by="the paper, appendix C"),
        License(terms="BSD", by="jkkummerfeld/text2sql-data, for the single file"),
    ),
    counted="as the paper states them; counted in text2sql-data's file",
)
