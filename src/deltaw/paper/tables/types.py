"""What a printed table is made of: columns, rows, cells, and what a cell's text says as a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.paper.labels import read_label

__all__ = ["REPRODUCIBLE", "Cell", "Column", "Erratum", "PrintedTable", "Row", "read_number"]

REPRODUCIBLE = ("yes", "smaller scale only", "cannot")
"""Whether a table can come out again: as it is, in kind on a smaller model, or not at all."""


def read_number(text: str) -> tuple[Fraction | None, Fraction | None]:
    """Read what a cell says: a number, and its spread where one is printed.

    Args:
        text: as printed, with ``+-`` before a spread.

    Returns:
        The number in plain units (a percentage as a share, bytes, values) and the spread; None where there is none.

    Example:
        >>> read_number("70.4+-.1"), read_number("AdamW"), read_number("2/3")
        ((Fraction(352, 5), Fraction(1, 10)), (None, None), (Fraction(2, 3), None))
    """
    number, _, spread = text.partition("+-")
    return _plain(number), _plain(spread)


def _plain(text: str) -> Fraction | None:
    above, slash, below = text.partition("/")
    if slash and above.isdigit() and below.isdigit():
        return Fraction(int(above), int(below))
    try:
        digits, unit = read_label(text)
    except DataError:
        return None
    return Fraction(digits) * unit


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Args:
        id: its name, unique in its table.
        unit: of its cells, where they do not carry it; empty for scores and settings.
        better: "higher", "lower", or empty where there is no better.
    """

    id: str
    unit: str = ""
    better: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed cell.

    Args:
        id: table, row and column, joined by slashes.
        text: as printed.
        number: what it says, exactly, in plain units; None for words.
        spread: the number after +-.
    """

    id: str
    text: str
    number: Fraction | None = None
    spread: Fraction | None = None

    @property
    def value(self) -> float | None:
        """The number as a float."""
        return None if self.number is None else float(self.number)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Args:
        id: its name, unique in its table.
        cells: column -> cell; a column where the paper prints none is absent.
        model: preset of the model, or empty.
        method: as the paper names it, or empty.
        parameters: trained values as printed, or empty.
        marks: footnote marks.
    """

    id: str
    cells: Mapping[str, Cell]
    model: str = ""
    method: str = ""
    parameters: str = ""
    marks: str = ""


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """A place where the paper contradicts itself, its code or its data.

    Args:
        id: ERR and a number.
        what: what is printed.
        evidence: what speaks against it.
        choice: what is done here.
    """

    id: str
    what: str
    evidence: str
    choice: str

    def __str__(self) -> str:
        """One line for a footnote."""
        return f"{self.id}: {self.what}. Here: {self.choice}."


@dataclass(frozen=True, kw_only=True)
class PrintedTable:
    """One table as the paper prints it; ``str`` prints it again.

    Args:
        id: its name, such as ``table3``.
        title: what it shows.
        metric: what its cells are.
        reproducible: one of ``REPRODUCIBLE``.
        columns: in the order of the paper.
        rows: in the order of the paper.
        why: why it is not simply reproducible.
        needs: what a reproduction takes.
        data: the table whose data a figure shows.
        number: the paper's number; 0 for what has none.
        marks: mark -> what it means.
        errata: ids of the errata that touch it.
        notes: what else is to be known.
    """

    id: str
    title: str
    metric: str
    reproducible: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    why: str = ""
    needs: str = ""
    data: str = ""
    number: int = 0
    marks: Mapping[str, str] = field(default_factory=dict)
    errata: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, row by row."""
        return tuple(cell for row in self.rows for cell in row.cells.values())

    def cell(self, row: str, column: str) -> Cell:
        """Find one cell.

        Args:
            row: id of its row.
            column: id of its column.

        Returns:
            The cell.

        Raises:
            ConfigError: if there is no such row or column, or the paper prints nothing there.

        Example:
            >>> from deltaw.paper.tables import printed_table
            >>> printed_table("table3").cell("M LoRA", "BLEU").text
            '70.4+-.1'
        """
        rows = {item.id: item for item in self.rows}
        if row not in rows:
            raise _no_such("row", row, self.id, list(rows))
        if column not in rows[row].cells:
            raise _no_such("column", column, f"{self.id}/{row}", list(rows[row].cells))
        return rows[row].cells[column]

    def __str__(self) -> str:
        """The table with its footnotes."""
        from deltaw.paper.tables.show import show

        return show(self)


def _no_such(kind: str, name: str, where: str, names: list[str]) -> ConfigError:
    return ConfigError(
        f"the paper prints no {kind} {name!r} there",
        where=where,
        got=repr(name),
        expected=f"one of {len(names)} {kind}s",
        hint=f"closest: {nearest(name, names)}",
    )
