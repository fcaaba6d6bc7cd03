"""What every source of rows offers, and the problem one row can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from deltaw.errors import DataError

__all__ = ["Row", "RowProblem", "Source", "empty", "unreadable"]

Row = dict[str, Any]


class RowProblem(Exception):
    """One row cannot be used. Collected over a file, then raised once as a DataError.

    Args:
        message: what is wrong with the row, without its number.
    """


class Source(Protocol):
    """Random access to the rows of one file or directory.

    ``kind`` names the file format, ``unit`` what :meth:`place` counts (``line`` or ``row``), ``notes`` holds the
    choices that reading made and the user should see.
    """

    kind: str
    unit: str
    notes: list[str]

    def __len__(self) -> int:
        """Count the rows."""
        ...

    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: position from 0.

        Returns:
            The values by column name.

        Raises:
            RowProblem: if the row is broken.
        """
        ...

    def place(self, index: int) -> int:
        """Number a row the way an editor or a viewer does.

        Args:
            index: position from 0.

        Returns:
            A number from 1.
        """
        ...

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        """Read rows in order, which some formats do much faster than one by one.

        Args:
            start: position of the first row.

        Returns:
            The position and the row, or its problem, one after another.
        """
        ...


def empty(path: Path) -> DataError:
    """Build the error of a file that holds no row.

    Args:
        path: the file.

    Returns:
        The error, to be raised by the caller.
    """
    return DataError(
        "a data file holds no rows",
        where=str(path),
        got=f"{path.stat().st_size} bytes and not one row",
        expected="at least one row",
        hint="check that the file was written completely; a jsonl file holds one JSON object per line.",
    )


def unreadable(path: Path, place: str, got: str, expected: str, hint: str) -> DataError:
    """Build the error of a file whose structure cannot be read.

    Args:
        path: the file.
        place: where in the file, such as ``line 3``; may be empty.
        got: what was found.
        expected: what would have been right.
        hint: what to do.

    Returns:
        The error, to be raised by the caller.
    """
    where = f"{path}, {place}" if place else str(path)
    return DataError("a data file cannot be read", where=where, got=got, expected=expected, hint=hint)
