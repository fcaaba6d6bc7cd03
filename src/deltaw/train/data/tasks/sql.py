"""WikiSQL's queries: one object, its text in SQL, and back.

The text is standard SQL: names in double quotes, texts in single quotes, numbers bare, so that any name or value can be
written and nothing is guessed when it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltaw.errors import DataError, nearest

__all__ = ["AGGREGATES", "OPERATORS", "Query", "Value", "column_names", "parse_sql", "to_sql"]

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
"""Both in the order of salesforce/WikiSQL, lib/query.py, whose files hold positions in them."""

Value = str | int | float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query over one table.

    Args:
        select: position of the column that is asked for, from 0.
        aggregate: position in ``AGGREGATES``.
        conditions: (position of a column, position in ``OPERATORS``, value), joined by AND.
    """

    select: int
    aggregate: int = 0
    conditions: tuple[tuple[int, int, Value], ...] = ()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Query:
        """Read the form of the data set's own files.

        Args:
            value: ``{"sel", "agg", "conds"}``.

        Returns:
            The query.

        Raises:
            DataError: if it has another form.
        """
        try:
            conditions = tuple((int(at), int(operator), _value(given)) for at, operator, given in value["conds"])
            query = cls(select=int(value["sel"]), aggregate=int(value["agg"]), conditions=conditions)
        except (KeyError, TypeError, ValueError) as error:
            raise _error(
                "a query cannot be read", str(value), '{"sel": 0, "agg": 0, "conds": [[0, 0, "x"]]}'
            ) from error
        operators = [operator for _, operator, _ in conditions]
        if query.aggregate not in range(len(AGGREGATES)) or any(item not in range(3) for item in operators):
            raise _error("a query cannot be read", str(value), "agg from 0 to 5, operators from 0 to 2")
        return query

    def as_dict(self) -> dict[str, Any]:
        """Write the form of the data set's own files.

        Returns:
            ``{"sel", "agg", "conds"}``.
        """
        return {"sel": self.select, "agg": self.aggregate, "conds": [list(item) for item in self.conditions]}


def _value(given: object) -> Value:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise TypeError
    return given


def _error(what: str, got: str, expected: str, hint: str = "correct the query.") -> DataError:
    return DataError(what, where="a WikiSQL query", got=got, expected=expected, hint=hint)


def column_names(header: Sequence[str]) -> list[str]:
    """Give every column a name of its own, so that a query can be read back.

    Args:
        header: the table's names; some may be empty or occur twice.

    Returns:
        The same names; an empty one becomes ``column N``, a later double gets its number, both counted from 1.

    Example:
        >>> column_names(["Name", "", "Name"])
        ['Name', 'column 2', 'Name (3)']
    """
    names: list[str] = []
    for number, name in enumerate(header, 1):
        plain = " ".join(name.split()) or f"column {number}"
        while plain.lower() in {other.lower() for other in names}:
            plain = f"{plain} ({number})"
        names.append(plain)
    return names


def to_sql(query: Query, header: Sequence[str]) -> str:
    """Write a query.

    Args:
        query: the query.
        header: the table's column names.

    Returns:
        SQL in one line.

    Raises:
        DataError: if it names a column that the table has not.

    Example:
        >>> to_sql(Query(select=1, aggregate=3, conditions=((0, 0, "Rio's"), (1, 1, 7))), ["City", "No."])
        'SELECT COUNT("No.") FROM table WHERE "City" = \\'Rio\\'\\'s\\' AND "No." > 7'
    """
    names = column_names(header)
    positions = [query.select, *(at for at, _, _ in query.conditions)]
    if any(at not in range(len(names)) for at in positions):
        raise _error(
            "a query names a column that the table has not",
            f"columns {', '.join(map(str, positions))} of a table with {len(names)}",
            f"positions from 0 to {len(names) - 1}",
            "take query and table from the same files.",
        )
    word, column = AGGREGATES[query.aggregate], _quoted(names[query.select], '"')
    text = f"SELECT {f'{word}({column})' if word else column} FROM table"
    parts = [f"{_quoted(names[at], chr(34))} {OPERATORS[op]} {_literal(value)}" for at, op, value in query.conditions]
    return f"{text} WHERE {' AND '.join(parts)}" if parts else text


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, mark * 2) + mark


def _literal(value: Value) -> str:
    return _quoted(value, "'") if isinstance(value, str) else repr(value)


_NAME = r'"((?:[^"]|"")*)"'
_HEAD = re.compile(rf"\s*SELECT\s+(?:(MAX|MIN|COUNT|SUM|AVG)\s*\(\s*{_NAME}\s*\)|{_NAME})\s+FROM\s+table\s*", re.I)
_WHERE = re.compile(
    rf"(?:WHERE|AND)\s+{_NAME}\s*([=<>])\s*(?:'((?:[^']|'')*)'|(-?\d+(?![\d.eE])|-?[\d.]+(?:[eE][+-]?\d+)?))\s*", re.I
)


def parse_sql(text: str, header: Sequence[str]) -> Query:
    """Read a query that :func:`to_sql` wrote, or a model that learned from it.

    Args:
        text: SQL; key words in any case.
        header: the table's column names.

    Returns:
        The query.

    Raises:
        DataError: if the text is no such query or names a column that the table has not.

    Example:
        >>> parse_sql('select max("No.") from table', ["City", "No."])
        Query(select=1, aggregate=1, conditions=())
    """
    names = column_names(header)
    form = 'SELECT [AGGREGATE]("column") FROM table [WHERE "column" = \'value\' [AND ...]]'
    head = _HEAD.match(text)
    if head is None:
        raise _error("a text is no query", text, form)
    word, inner, outer = head.groups()
    rest, conditions = text[head.end() :].strip().removesuffix(";").rstrip(), list[tuple[int, int, Value]]()
    at = 0
    while at < len(rest):
        found = _WHERE.match(rest, at)
        if found is None or found[0][:1].upper() != ("A" if conditions else "W"):
            raise _error("a text is no query", text, form)
        column, operator, quoted, number = found.groups()
        value: Value = quoted.replace("''", "'") if quoted is not None else _number(number, text)
        conditions.append((_position(column, names), OPERATORS.index(operator), value))
        at = found.end()
    select = _position(inner if inner is not None else outer, names)
    return Query(select=select, aggregate=AGGREGATES.index((word or "").upper()), conditions=tuple(conditions))


def _number(text: str, whole: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise _error("a text is no query", whole, "a finite number, or a text in single quotes")
    return value


def _position(name: str, names: list[str]) -> int:
    plain = name.replace('""', '"')
    if plain in names:
        return names.index(plain)
    lower = [item.lower() for item in names]
    if plain.lower() in lower:
        return lower.index(plain.lower())
    raise _error(
        "a query names a column that the table has not",
        repr(plain),
        f"one of {', '.join(map(repr, names))}",
        f"closest: {nearest(plain, names, 1)}.",
    )
