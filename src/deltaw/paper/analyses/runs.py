"""Results of runs from a file: CSV with titles in its first line, or a JSON list of objects."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import DataError, nearest

__all__ = ["number_of", "read_runs", "whole_of"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_NUMBER = re.compile(r"(?P<digits>\d[\d,_]*(?:\.\d+)?(?:e[+-]?\d+)?) ?(?P<unit>[KMB]?)", re.IGNORECASE)


def read_runs(source: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a file of results.

    Args:
        source: the file.
        columns: titles that every row must have; others are kept.

    Returns:
        Rows, values as text, with their place under the key "".

    Raises:
        DataError: if the file cannot be read, is empty, or lacks a column.
    """
    place = Path(source).expanduser()
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the results cannot be read",
            where=str(place),
            got=f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}",
            expected="a CSV file with titles, or a JSON list of objects",
            hint="check the path.",
        ) from None
    rows = _from_json(text, place) if text.lstrip()[:1] in ("[", "{") else _from_csv(text, place)
    if not rows:
        raise DataError(
            "the file holds no result",
            where=str(place),
            got="no row",
            expected=f"rows with {', '.join(columns)}",
            hint="write one row for each run.",
        )
    for row in rows:
        lacking = [name for name in columns if not row.get(name, "").strip()]
        if lacking:
            raise DataError(
                f"a result has no {lacking[0]!r}",
                where=row[""],
                got=", ".join(name for name in row if name) or "nothing",
                expected=", ".join(columns),
                hint=f"nearest: {nearest(lacking[0], [name for name in row if name], 1)}; rename the column.",
            )
    return rows


def _from_csv(text: str, place: Path) -> list[dict[str, str]]:
    found = []
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        values = {str(key).strip(): (value or "") for key, value in row.items() if key is not None}
        found.append({**values, "": f"{place}, line {reader.line_num}"})
    return found


def _from_json(text: str, place: Path) -> list[dict[str, str]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(
            "the results are no JSON",
            where=str(place),
            got=str(error),
            expected="a list of objects",
            hint="check it with python -m json.tool.",
        ) from None
    rows: Any = value.get("rows") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            "the results are no list of objects",
            where=str(place),
            got=type(rows).__name__,
            expected='[{"method": ..., ...}, ...], or an object that holds them as "rows"',
            hint="write one object for each run.",
        )
    return [
        {**{str(key): "" if item is None else str(item) for key, item in run.items()}, "": f"{place}, row {number}"}
        for number, row in enumerate(rows, 1)
        for run in _cells(row)
    ]


def _cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row as it is; one of a printed table as a run for each of its cells that is a number."""
    cells = row.get("cells")
    if not isinstance(cells, list):
        return [dict(row)]
    return [
        {**row, "setting": row.get("id"), "task": str(cell["id"]).rpartition("/")[2], "score": cell["value"]}
        for cell in cells
        if isinstance(cell, dict) and cell.get("id") and cell.get("value") is not None
    ]


def number_of(row: Mapping[str, str], column: str) -> float:
    """A cell as a finite number.

    Args:
        row: from ``read_runs``.
        column: its title.

    Returns:
        The number.

    Raises:
        DataError: if it is none.
    """
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _not_a_number(row, column, "a finite number")
    return value


def whole_of(row: Mapping[str, str], column: str) -> int:
    """A cell as a count, such as 294912, 37.7M or 392K.

    Args:
        row: from ``read_runs``.
        column: its title.

    Returns:
        The count.

    Raises:
        DataError: if it is none.

    Example:
        >>> whole_of({"parameters": "37.7M"}, "parameters"), whole_of({"n": "1,000"}, "n")
        (37700000, 1000)
    """
    found = _NUMBER.fullmatch(row[column].strip())
    if found is None:
        raise _not_a_number(row, column, "a count such as 294912, 37.7M or 392K")
    count = round(float(found["digits"].replace(",", "").replace("_", "")) * _UNITS[found["unit"].upper()])
    if count < 1:
        raise _not_a_number(row, column, "a count of at least 1")
    return count


def _not_a_number(row: Mapping[str, str], column: str, expected: str) -> DataError:
    return DataError(
        f"{column!r} of a result cannot be read",
        where=row.get("", "a row"),
        got=repr(row[column]),
        expected=expected,
        hint="correct that cell.",
    )
