"""WikiSQL's tables in an SQLite database in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import DataError
from deltaw.paper.metrics.files import read_lines

__all__ = ["Tables"]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The database and what is in it.

    Args:
        types: table -> ``text`` or ``real`` for every column.
        names: table -> its name in the database.
        headers: table -> its column names, where they are given.
        connection: the database.
    """

    types: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    headers: dict[str, list[str]] = field(default_factory=dict)
    connection: sqlite3.Connection = field(default_factory=lambda: sqlite3.connect(":memory:"))

    @property
    def engine(self) -> str:
        """The version of SQLite."""
        return sqlite3.sqlite_version

    @classmethod
    def read(cls, path: str | Path) -> Tables:
        """Read the data set's file of tables.

        Args:
            path: one table in JSON on each line.

        Returns:
            The database.

        Raises:
            DataError: if the file or a line cannot be read.
        """
        found = []
        for number, line in enumerate(read_lines(path), 1):
            try:
                found.append(json.loads(line))
            except ValueError:
                raise _broken(f"{path}, line {number}", line[:60]) from None
        return cls.build(found, f"{path}, line")

    @classmethod
    def build(cls, tables: Iterable[Any], where: str = "option tables, table") -> Tables:
        """Fill a database.

        Args:
            tables: objects with ``id``, ``types`` and ``rows``; those with a ``header`` are known by it too.
            where: how an error names the place of one, before its number.

        Returns:
            The database.

        Raises:
            DataError: if an object is no table.
        """
        made = cls()
        for number, table in enumerate(tables, 1):
            try:
                identity, types = str(table["id"]), list(table["types"])
                rows = [list(row) for row in table["rows"]]
                whole = bool(types) and all(len(row) == len(types) for row in rows) and set(types) <= {"text", "real"}
            except (TypeError, KeyError):
                whole = False
            if not whole:
                raise _broken(f"{where} {number}", str(table)[:60])
            made._add(identity, types, rows)
            if isinstance(table.get("header"), list):
                made.headers.setdefault(identity, table["header"])
        return made

    def _add(self, identity: str, types: list[str], rows: list[list[Any]]) -> None:
        if identity in self.types:
            return
        name = f"table_{len(self.names)}"
        columns = ", ".join(f"col{i} {kind}" for i, kind in enumerate(types))
        self.connection.execute(f"CREATE TABLE {name} ({columns})")
        cells = [[_cell(cell, kind) for cell, kind in zip(row, types, strict=True)] for row in rows]
        marks = ", ".join("?" * len(types))
        self.connection.executemany(f"INSERT INTO {name} VALUES ({marks})", cells)
        self.types[identity], self.names[identity] = types, name

    def describe(self, table: str) -> str:
        """Say what is known of a table, for an error message.

        Args:
            table: its identity.

        Returns:
            Text.
        """
        if table not in self.types:
            return f"one of the {len(self.types)} tables that were given"
        return f"columns 0 to {len(self.types[table]) - 1}, operators = > <"

    def run(self, table: str, selected: str, where: str, values: Sequence[object]) -> list[Any] | None:
        """Run a query.

        Args:
            table: its identity.
            selected: what is selected.
            where: the conditions with ``?`` for values, or nothing.
            values: those values.

        Returns:
            The first column of every row, or None where SQLite cannot run it.
        """
        query = f"SELECT {selected} FROM {self.names[table]}" + (f" WHERE {where}" if where else "")
        try:
            return [row[0] for row in self.connection.execute(query, tuple(values))]
        except (sqlite3.Error, OverflowError):
            return None


def _cell(value: Any, kind: str) -> Any:
    """A cell as the data set's own databases hold it: numbers in columns of them, text in lower case."""
    if value is None or isinstance(value, int | float):
        return value
    if kind == "real":
        try:
            return float(str(value).replace(",", ""))
        except ValueError:
            pass
    return str(value).lower()


def _broken(where: str, got: str) -> DataError:
    return DataError(
        "a table of WikiSQL cannot be read",
        where=where,
        got=got,
        expected='an object with "id", "types" (text or real) and "rows" as wide as the types',
        hint="give the data set's own tables file, such as dev.tables.jsonl",
    )
