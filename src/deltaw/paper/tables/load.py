"""Reading the tables: TOML into typed rows, every key accounted for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import resources
from typing import Any

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.paper.tables.types import REPRODUCIBLE, Cell, Column, Erratum, PrintedTable, Row, read_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TABLE_IDS", "errata", "erratum", "find_cell", "printed_table", "printed_tables", "read_table"]

_FIGURES = tuple(f"figure{number}" for number in range(2, 9))
TABLE_IDS = (*(f"table{number}" for number in range(1, 19)), *_FIGURES, "claims", "datasets")
"""The tables in the order of the paper, the figures of which numbers are stated, what the text claims, its data."""

NOTHING = "-"
BETTER = ("", "higher", "lower")


def read_table(name: str, values: Mapping[str, Any]) -> PrintedTable:
    """Make a table of what its file holds.

    Args:
        name: id of the table.
        values: the file's content.

    Returns:
        The table.

    Raises:
        DataError: if a key is unknown or missing, a row has too many or too few cells, or an id is there twice.

    Example:
        >>> values = {"title": "t", "metric": "m", "reproducible": "yes", "columns": [{"id": "BLEU"}],
        ...           "rows": [{"id": "LoRA", "cells": ["70.4+-.1"]}]}
        >>> read_table("table0", values).cells[0].id
        'table0/LoRA/BLEU'
    """
    known = [item.name for item in fields(PrintedTable) if item.name != "id"]
    _check_keys(name, values, known, ("title", "metric", "reproducible", "columns", "rows"))
    columns = tuple(_column(name, item) for item in values["columns"])
    rows = tuple(_row(name, item, columns) for item in values["rows"])
    for kind, ids in (("column", [column.id for column in columns]), ("row", [row.id for row in rows])):
        _check_unique(name, kind, ids)
    if values["reproducible"] not in REPRODUCIBLE:
        raise _broken(name, f"reproducible = {values['reproducible']!r}", f"one of {', '.join(REPRODUCIBLE)}")
    if values["reproducible"] != "yes" and not values.get("why"):
        raise _broken(name, f"reproducible = {values['reproducible']!r} and no why", "a reason beside it")
    lists = {key: tuple(values[key]) for key in ("errata", "notes") if key in values}
    return PrintedTable(id=name, **{**values, **lists, "columns": columns, "rows": rows})


def _column(name: str, item: Mapping[str, Any]) -> Column:
    _check_keys(f"{name}: columns", item, [field.name for field in fields(Column)], ("id",))
    if item.get("better", "") not in BETTER:
        raise _broken(f"{name}/{item['id']}", f"better = {item['better']!r}", "higher or lower")
    return Column(**item)


def _row(name: str, item: Mapping[str, Any], columns: Sequence[Column]) -> Row:
    """A row; ``all`` stands for one text in every column."""
    _check_keys(f"{name}: rows", item, [*(field.name for field in fields(Row)), "all"], ("id",))
    where = f"{name}/{item['id']}"
    texts = [item["all"]] * len(columns) if "all" in item else list(item.get("cells", ()))
    if ("all" in item) == ("cells" in item) or len(texts) != len(columns):
        raise _broken(where, f"{len(texts)} cells", f"{len(columns)} cells, or one text as all")
    cells = {}
    for column, text in zip(columns, texts, strict=True):
        if text != NOTHING:
            number, spread = read_number(text)
            cells[column.id] = Cell(id=f"{where}/{column.id}", text=text, number=number, spread=spread)
    return Row(**{key: value for key, value in item.items() if key not in ("all", "cells")}, cells=cells)


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    unknown = [key for key in values if key not in known]
    missing = [key for key in needed if key not in values]
    if unknown:
        raise _broken(where, f"the key {unknown[0]!r}", f"keys among {', '.join(known)}", nearest(unknown[0], known, 1))
    if missing:
        raise _broken(where, f"no {', no '.join(missing)}", f"the keys {', '.join(needed)}")


def _check_unique(where: str, kind: str, ids: Sequence[str]) -> None:
    twice = sorted({name for name in ids if ids.count(name) > 1})
    slashed = [name for name in ids if "/" in name]
    if twice:
        raise _broken(where, f"the {kind} {twice[0]!r} twice", f"every {kind} once")
    if slashed:
        raise _broken(where, f"the {kind} {slashed[0]!r}", f"a {kind} without a slash, which parts ids of cells")


def _broken(where: str, got: str, expected: str, close: str = "") -> DataError:
    return DataError(
        "this is no printed table",
        where=where,
        got=got,
        expected=expected,
        hint=f"closest: {close}" if close else "compare it with the other tables beside it",
    )


@functools.cache
def _file(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


@functools.cache
def printed_table(name: str) -> PrintedTable:
    """Read one of the paper's tables.

    Args:
        name: one of ``TABLE_IDS``.

    Returns:
        The table.

    Raises:
        ConfigError: if there is none of that name.

    Example:
        >>> printed_table("table4").cell("LoRA 4.7M", "WikiSQL").value
        73.4
    """
    if name not in TABLE_IDS:
        raise ConfigError(
            f"the paper's data has no table {name!r}",
            where="table",
            got=repr(name),
            expected="table1 to table18, figure2 to figure8, claims or datasets",
            hint=f"closest: {nearest(name, TABLE_IDS)}",
        )
    return read_table(name, _file("figures")[name] if name in _FIGURES else _file(name))


def printed_tables() -> tuple[PrintedTable, ...]:
    """Read all of them.

    Returns:
        In the order of ``TABLE_IDS``.
    """
    return tuple(printed_table(name) for name in TABLE_IDS)


def find_cell(cell: str) -> Cell:
    """Find a cell by its id.

    Args:
        cell: table, row and column, joined by slashes.

    Returns:
        The cell.

    Raises:
        ConfigError: if there is none.

    Example:
        >>> find_cell("table3/M LoRA/BLEU").text
        '70.4+-.1'
    """
    parts = cell.split("/")
    if len(parts) != 3:
        raise ConfigError(
            "this is no id of a cell",
            where="cell",
            got=repr(cell),
            expected="table/row/column",
            hint="such as 'table3/M LoRA/BLEU'; deltaw paper tables table3 --json lists them",
        )
    return printed_table(parts[0]).cell(parts[1], parts[2])


@functools.cache
def errata() -> dict[str, Erratum]:
    """Read the errata.

    Returns:
        id -> erratum, ERR1 first.
    """
    return {name: Erratum(id=name, **values) for name, values in _file("errata").items()}


def erratum(name: str) -> Erratum:
    """Look up one erratum.

    Args:
        name: its id.

    Returns:
        The erratum.

    Raises:
        ConfigError: if there is none of that id.

    Example:
        >>> erratum("ERR2").choice
        'r=16, alpha=32'
    """
    if name not in errata():
        raise ConfigError(
            f"there is no erratum {name!r}",
            where="erratum",
            got=repr(name),
            expected=f"ERR1 to ERR{len(errata())}",
            hint=f"closest: {nearest(name, errata(), 1)}",
        )
    return errata()[name]
