"""What every analysis returns: a plain value that prints as a table, as CSV, as JSON, and draws itself.

A report embeds an analysis by the same five calls, whichever it is: ``text``, ``csv``, ``json``, ``png``, ``svg``.
"""

from __future__ import annotations

import abc
import dataclasses
import json as json_module
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.style import render
from deltaw.paper.output import csv_text, write_output
from deltaw.reports import figures, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Analysis", "Cell", "Sheet", "spread"]

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table.

    Args:
        title: what was measured on what.
        columns: titles of the columns.
        rows: cells; None where there is no value.
        notes: what a reader should know.
        absent: what stands for None in the text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    absent: str = "-"

    def text(self) -> str:
        """Aligned columns under the title.

        Returns:
            Lines joined by newlines; numbers with four significant figures.

        Example:
            >>> print(Sheet(title="sizes", columns=("name", "x"), rows=(("a", 1.5), ("b", None))).text())
            sizes
            name      x
            a     1.500
            b         -
        """
        shown = [[self.absent if cell is None else _shown(cell) for cell in row] for row in self.rows]
        heads = list(self.columns)
        for place in range(len(heads)):
            cells = [row[place] for row in self.rows]
            if any(not isinstance(cell, str) and cell is not None for cell in cells):
                width = max(len(heads[place]), *(len(row[place]) for row in shown))
                heads[place] = heads[place].rjust(width)
                for row in shown:
                    row[place] = row[place].rjust(width)
        return "\n".join([self.title, table(heads, shown), *(f"note: {note}" for note in self.notes)])

    def csv(self) -> str:
        """Comma-separated values with the columns' titles in the first line; every digit of a number is kept.

        Returns:
            Lines that end in a newline each; an empty field where there is no value.
        """
        return csv_text([self.columns, *self.rows])


class Analysis(abc.ABC):
    """Base of the results; each is a frozen dataclass of numbers."""

    name: ClassVar[str]
    """What it is, in one word."""

    @property
    def stem(self) -> str:
        """First part of its files' names."""
        return self.name

    @abc.abstractmethod
    def sheet(self) -> Sheet:
        """The table.

        Returns:
            Its rows, the long form that programs read.
        """

    @abc.abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw the figure.

        Args:
            figure: an empty one of ``size``.
        """

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure in inches."""
        return 7.0, 4.2

    def details(self) -> Mapping[str, Any]:
        """What JSON holds beside the table.

        Returns:
            Plain values; empty where the table says it all.
        """
        return {}

    def extras(self) -> Mapping[str, str]:
        """Files that belong to it beside table and figure.

        Returns:
            Name -> text; empty for most.
        """
        return {}

    def text(self) -> str:
        """The table for people.

        Returns:
            Lines joined by newlines.
        """
        return self.sheet().text()

    def csv(self) -> str:
        """The table for programs.

        Returns:
            Comma-separated values.
        """
        return self.sheet().csv()

    def payload(self) -> dict[str, Any]:
        """The table, its notes and the details, as plain values.

        Returns:
            Rows are dictionaries by column title.
        """
        sheet = self.sheet()
        rows = [dict(zip(sheet.columns, map(_plain, row), strict=True)) for row in sheet.rows]
        found = {"analysis": self.stem, "title": sheet.title, "rows": rows, "notes": list(sheet.notes)}
        return {**found, **_plain(dict(self.details()))}

    def json(self) -> str:
        """The payload as text.

        Returns:
            One JSON object and a newline.
        """
        return json_module.dumps(self.payload(), indent=2, allow_nan=False) + "\n"

    def png(self) -> bytes:
        """The figure as pixels; equal numbers give equal bytes.

        Returns:
            A PNG file.
        """
        return render(self.draw, self.size, "png")

    def svg(self) -> bytes:
        """The figure as outlines; equal numbers give equal bytes.

        Returns:
            An SVG file.
        """
        return render(self.draw, self.size, "svg")

    def save(self, directory: str | Path) -> tuple[Path, ...]:
        """Write table and figure: ``NAME.txt``, ``.csv``, ``.json``, ``.png`` and ``.svg``, all or none.

        Args:
            directory: made if absent; files of the same names are replaced, others stay.

        Returns:
            The files.

        Raises:
            ConfigError: if the disk refuses.
        """
        words = {".txt": self.text() + "\n", ".csv": self.csv(), ".json": self.json()}
        files = {self.stem + end: text.encode() for end, text in words.items()}
        files |= {f"{self.stem}.png": self.png(), f"{self.stem}.svg": self.svg()}
        files |= {name: text.encode() for name, text in self.extras().items()}
        return write_output(Path(directory), files, "the analysis")

    def __str__(self) -> str:
        """The table."""
        return self.text()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample.

    Args:
        values: at least one number.

    Returns:
        Mean, and the deviation with one degree of freedom taken off; 0 for a single value.

    Example:
        >>> spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _shown(cell: str | int | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else figures(cell)


def _plain(value: object) -> Any:
    """What JSON can hold; a number that is not finite becomes its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    assert isinstance(value, Iterable), type(value)
    return [_plain(item) for item in value]
