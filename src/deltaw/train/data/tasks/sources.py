"""Rows of tasks: read through another source and converted, held in memory, or joined."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from deltaw.train.data.sources.base import Row, RowProblem, Source
from deltaw.train.data.tasks.files import File

__all__ = ["EmptyText", "Held", "Joined", "Mapped", "TaskSource", "column", "text"]


class EmptyText(RowProblem):
    """A record has an empty text among its texts.

    Args:
        context: the record's input.
    """

    def __init__(self, context: str) -> None:
        super().__init__("an empty text")
        self.context = context


Convert = Callable[[Row, int], Row]
"""(row as it stands in the file, its line) to a row of the task; raises RowProblem."""


class TaskSource(Source, Protocol):
    """A source that names its rows with their file, where there are several."""

    def named(self, index: int) -> str:
        """Name a row.

        Args:
            index: position from 0.

        Returns:
            Such as ``line 4``, or ``dev.tsv, line 4``.
        """
        ...


class Mapped:
    """Rows of a file, converted as they are read.

    Args:
        source: the rows as they stand in the file.
        convert: what the task makes of one.
        kind: the name of the layout.
    """

    def __init__(self, source: Source, convert: Convert, kind: str) -> None:
        self.source, self.convert, self.kind = source, convert, kind
        self.unit, self.notes = source.unit, list(source.notes)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.source)

    def place(self, index: int) -> int:
        """Number a row.

        Args:
            index: position from 0.

        Returns:
            Its line or row, from 1.
        """
        return self.source.place(index)

    def named(self, index: int) -> str:
        """Name a row.

        Args:
            index: position from 0.

        Returns:
            Its unit and number.
        """
        return f"{self.unit} {self.place(index)}"

    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: position from 0.

        Returns:
            The task's row.
        """
        return self.convert(self.source.row(index), self.place(index))

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        """Read rows in order.

        Args:
            start: position of the first.

        Yields:
            tuple[int, Row | RowProblem]: position, and row or problem.
        """
        for index, row in self.source.each(start):
            if isinstance(row, RowProblem):
                yield index, row
                continue
            try:
                yield index, self.convert(row, self.place(index))
            except RowProblem as problem:
                yield index, problem


class Held:
    """Rows in memory: records of which each makes several rows.

    Args:
        rows: (file, line, row or problem), in order.
        kind: the name of the layout.
        unit: what the lines count.
    """

    def __init__(self, rows: Sequence[tuple[File, int, Row | RowProblem]], kind: str, unit: str = "line") -> None:
        self.rows, self.kind, self.unit, self.notes = rows, kind, unit, list[str]()
        self._many = len({file.shown for file, _, _ in rows}) > 1

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def place(self, index: int) -> int:
        """Number a row.

        Args:
            index: position from 0.

        Returns:
            Its line in its file, from 1.
        """
        return self.rows[index][1]

    def named(self, index: int) -> str:
        """Name a row.

        Args:
            index: position from 0.

        Returns:
            Its line; its file too, where there are several.
        """
        file, line, _ = self.rows[index]
        return f"{file.stem}, {self.unit} {line}" if self._many else f"{self.unit} {line}"

    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: position from 0.

        Returns:
            The task's row.

        Raises:
            RowProblem: if it is broken.
        """
        row = self.rows[index][2]
        if isinstance(row, RowProblem):
            raise row
        return row

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        """Read rows in order.

        Args:
            start: position of the first.

        Yields:
            tuple[int, Row | RowProblem]: position, and row or problem.
        """
        for index in range(start, len(self.rows)):
            yield index, self.rows[index][2]


class Joined:
    """Rows of several sources, one after another.

    Args:
        parts: name of each part and its rows.
    """

    def __init__(self, parts: Sequence[tuple[str, TaskSource]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(source) for _, source in parts))
        self.kind, self.unit = parts[0][1].kind, parts[0][1].unit
        self.notes = [note for _, source in parts for note in source.notes]

    def __len__(self) -> int:
        """Count the rows."""
        return self.ends[-1]

    def _at(self, index: int) -> tuple[str, TaskSource, int]:
        part = bisect_right(self.ends, index)
        name, source = self.parts[part]
        return name, source, index - (self.ends[part - 1] if part else 0)

    def place(self, index: int) -> int:
        """Number a row.

        Args:
            index: position from 0.

        Returns:
            Its line within its part, from 1.
        """
        _, source, at = self._at(index)
        return source.place(at)

    def named(self, index: int) -> str:
        """Name a row.

        Args:
            index: position from 0.

        Returns:
            Its part and its line.
        """
        name, source, at = self._at(index)
        return f"{name}, {source.named(at)}"

    def row(self, index: int) -> Row:
        """Read one row.

        Args:
            index: position from 0.

        Returns:
            The task's row.
        """
        _, source, at = self._at(index)
        return source.row(at)

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        """Read rows in order.

        Args:
            start: position of the first.

        Yields:
            tuple[int, Row | RowProblem]: position, and row or problem.
        """
        begin = 0
        for (_, source), end in zip(self.parts, self.ends, strict=True):
            if start < end:
                for index, row in source.each(max(0, start - begin)):
                    yield begin + index, row
            begin = end


def column(row: Row, name: str) -> object:
    """Read a value of a row.

    Args:
        row: as it stands in the file.
        name: the column or key.

    Returns:
        The value.

    Raises:
        RowProblem: if the row lacks it.
    """
    if name not in row:
        raise RowProblem(f"no {name!r} among {', '.join(map(repr, row)) or 'nothing'}")
    return row[name]


def text(row: Row, name: str, *, empty: bool = False) -> str:
    """Read a text of a row.

    Args:
        row: as it stands in the file.
        name: the column or key.
        empty: whether it may be blank.

    Returns:
        The text, unchanged.

    Raises:
        RowProblem: if it is absent, no text, or blank where it may not be.
    """
    value = column(row, name)
    if not isinstance(value, str):
        raise RowProblem(f"{name!r} holds {type(value).__name__}, not text")
    if not empty and not value.strip():
        raise RowProblem(f"{name!r} is empty")
    return value
