"""WikiSQL: is a query the right one (logical form), and does it bring the right answer (execution)?

A query is an object ``{"sel": column, "agg": aggregate, "conds": [[column, operator, value], ...]}``, as in the data
set. A hypothesis is such an object in JSON, alone or under "query"; a reference has it under "sql" or "query", with
its "table_id", and may say the "header" that its columns are counted in. Text that is no query object is wrong, not an
error: models write such things. It is counted in a note. ``deltaw paper decode --layout wikisql`` makes both files of
answers in SQL.

Two conditions on one column keep a value each here; the reference evaluation gives both the last one's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, DataError
from deltaw.paper.metrics.base import References, Result, one_of, single
from deltaw.paper.metrics.wikisql_tables import Tables

__all__ = ["AGGREGATES", "OPERATORS", "Query", "wikisql_ex", "wikisql_lf"]

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
UNKNOWN_OPERATOR = 3
"""The data set's fourth operator, a placeholder that no engine runs."""

NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query over one table.

    Args:
        select: number of the selected column.
        aggregate: index into ``AGGREGATES``.
        conditions: column, index into ``OPERATORS``, value.
    """

    select: int
    aggregate: int
    conditions: tuple[tuple[int, int, str | float], ...]

    @classmethod
    def read(cls, found: Any) -> Query | None:
        """Read the data set's form.

        Args:
            found: what JSON gave.

        Returns:
            The query, or None where it is none.
        """
        try:
            select, aggregate, conditions = found["sel"], found["agg"], found["conds"]
            triples = tuple((column, operator, value) for column, operator, value in conditions)
        except (TypeError, KeyError, ValueError):
            return None
        numbers = [(select, None), (aggregate, len(AGGREGATES))]
        numbers += [
            pair for column, operator, _ in triples for pair in ((column, None), (operator, UNKNOWN_OPERATOR + 1))
        ]
        for number, limit in numbers:
            if type(number) is not int or number < 0 or (limit is not None and number >= limit):
                return None
        if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for *_, value in triples):
            return None
        return cls(select=select, aggregate=aggregate, conditions=triples)

    def form(self, ordered: bool) -> tuple[object, ...]:
        """What two equal queries have in common: values as lower-case text, conditions as a set.

        Args:
            ordered: keep the order of the conditions, and how often each stands.

        Returns:
            A value to compare.
        """
        folded = [(column, operator, str(value).lower()) for column, operator, value in self.conditions]
        return self.select, self.aggregate, tuple(folded) if ordered else frozenset(folded)


def wikisql_lf(hypotheses: Sequence[str], references: References, *, ordered: bool = False) -> Result:
    """Logical-form accuracy, between 0 and 1.

    Args:
        hypotheses: query objects in JSON.
        references: the right one for each.
        ordered: tell conditions in another order apart.

    Returns:
        The value, and 1 or 0 for every segment.

    Raises:
        DataError: if a reference is no query object.

    Source:
        Zhong et al. 2017; salesforce/WikiSQL, evaluate.py and lib/query.py.

    Example:
        >>> ours = '{"sel": 0, "agg": 3, "conds": [[1, 0, "Rome"], [2, 1, 5]]}'
        >>> wikisql_lf([ours], [['{"sel": 0, "agg": 3, "conds": [[2, 1, 5], [1, 0, "rome"]]}']]).value
        1.0
    """
    one_of("wikisql_lf", "ordered", ordered, (True, False))
    ours, right = [_parsed(text) for text in hypotheses], [query for query, _, _ in _references(references)]
    segments = tuple(
        float(query is not None and query.form(ordered) == other.form(ordered))
        for query, other in zip(ours, right, strict=True)
    )
    return Result(
        value=sum(segments) / len(segments),
        segments=segments,
        variant=f"WikiSQL logical form, 0 to 1, conditions {'in order' if ordered else 'in any order'}, values as "
        "lower-case text; deltaw",
        notes=_unread(ours, hypotheses),
    )


def wikisql_ex(
    hypotheses: Sequence[str], references: References, *, tables: str | Path | Sequence[dict[str, Any]] | None = None
) -> Result:
    """Execution accuracy, between 0 and 1: both queries are run in an SQLite database in memory.

    Args:
        hypotheses: query objects in JSON.
        references: the right one for each, with its table.
        tables: the data set's tables (``id``, ``types``, ``rows``), or a file with one in JSON on each line.

    Returns:
        The value, and 1 or 0 for every segment.

    Raises:
        ConfigError: if there are no tables.
        DataError: if a reference is no query object, has no table, counts in other columns than its table has, or
            cannot be run.

    Source:
        Zhong et al. 2017; salesforce/WikiSQL, evaluate.py and lib/dbengine.py.

    Example:
        >>> table = {"id": "1-1", "types": ["text", "real"], "rows": [["Rome", 3], ["Oslo", 4]]}
        >>> right = '{"sel": 0, "agg": 0, "conds": [[1, 1, 3]], "table_id": "1-1"}'
        >>> wikisql_ex(['{"sel": 0, "agg": 0, "conds": [[1, 0, 4]]}'], [[right]], tables=[table]).value
        1.0
    """
    if tables is None:
        raise ConfigError(
            "queries are run on tables, and none are given",
            where="metric wikisql_ex, option tables",
            got="nothing",
            expected="the tables file of the data set, one table in JSON on each line",
            hint="give tables=FILE, for example dev.tables.jsonl; without tables there is wikisql_lf",
        )
    database = Tables.read(tables) if isinstance(tables, str | Path) else Tables.build(tables)
    ours = [_parsed(text) for text in hypotheses]
    segments = []
    for number, (query, (right, table, header)) in enumerate(zip(ours, _references(references), strict=True), 1):
        _same_columns(database, table, header, number)
        answer = _answer(database, table, right)
        if answer is None:
            raise DataError(
                "a reference query cannot be run",
                where=f"references, segment {number}, table {table!r}",
                got=f"column {right.select}, {len(right.conditions)} conditions",
                expected=database.describe(table),
                hint="give the tables of the same split as the references, and a table_id in every reference",
            )
        segments.append(float(query is not None and _answer(database, table, query) == answer))
    return Result(
        value=sum(segments) / len(segments),
        segments=tuple(segments),
        variant="WikiSQL execution, 0 to 1, values and cells in lower case; deltaw, SQLite " + database.engine,
        notes=_unread(ours, hypotheses),
    )


def _parsed(text: str) -> Query | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, dict) and isinstance(found.get("query"), dict):
        found = found["query"]
    return Query.read(found)


def _references(references: References) -> list[tuple[Query, str, list[str] | None]]:
    """The query of every reference, its table, and where it is said the header that its columns are counted in."""
    found = []
    for number, text in enumerate(single(references), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        held = line.get("sql", line.get("query", line)) if isinstance(line, dict) else None
        query = Query.read(held)
        if query is None:
            raise DataError(
                "a reference is no query object",
                where=f"references, segment {number}",
                got=text[:80],
                expected='{"sel": 0, "agg": 0, "conds": [[1, 0, "value"]]}, alone or under "sql" beside "table_id"',
                hint="take the lines of dev.jsonl, or references.jsonl of deltaw paper decode --layout wikisql",
            )
        header = line.get("header")
        found.append((query, str(line.get("table_id", "")), header if isinstance(header, list) else None))
    return found


def _same_columns(database: Tables, table: str, header: list[str] | None, number: int) -> None:
    """Refuse a query whose columns are counted in another header than that of the table it is to be run on."""
    known = database.headers.get(table)
    if header is not None and known is not None and header != known:
        raise DataError(
            "a reference query counts in other columns than its table has",
            where=f"references, segment {number}, table {table!r}",
            got=", ".join(map(repr, header)),
            expected=", ".join(map(repr, known)),
            hint="decode with --data DIR that holds dev.jsonl beside these tables; wikisql_lf needs no tables",
        )


def _unread(queries: Sequence[Query | None], texts: Sequence[str]) -> tuple[str, ...]:
    count = sum(query is None for query in queries)
    if not count:
        return ()
    sql = count == len(queries) and any(text.lower().startswith("select ") for text in texts)
    remedy = "; deltaw paper decode --layout wikisql makes query objects of SQL" if sql else ""
    return (f"{count} of {len(queries)} hypotheses are no query objects and count as wrong{remedy}",)


def _answer(database: Tables, table: str, query: Query) -> list[Any] | None:
    """The rows a query brings, or None where it cannot be run."""
    types = database.types.get(table)
    if types is None or any(column >= len(types) for column in (query.select, *(c for c, *_ in query.conditions))):
        return None
    clauses, values = [], []
    for column, operator, value in query.conditions:
        if operator == UNKNOWN_OPERATOR:
            return None
        held: str | float = value.lower() if isinstance(value, str) else value
        if types[column] == "real" and isinstance(held, str):
            number = as_number(held)
            if number is None:
                return None
            held = number
        clauses.append(f"col{column} {OPERATORS[operator]} ?")
        values.append(held)
    selected = f"{AGGREGATES[query.aggregate]}(col{query.select})"
    return database.run(table, selected, " AND ".join(clauses), values)


def as_number(text: str) -> float | None:
    """Read a number as the reference evaluation does: whole, with thousands separators, or the first one in the text.

    Args:
        text: a value of a condition.

    Returns:
        The number, or None where there is none.

    Example:
        >>> as_number("1,200"), as_number("about 7.5 km"), as_number("seven")
        (1200.0, 7.5, None)
    """
    try:
        return float(text.replace(",", ""))
    except ValueError:
        found = NUMBER.findall(text)
        return float(found[0]) if found else None
