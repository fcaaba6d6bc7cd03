"""The lines of a table of the paper that have one of ours beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from deltaw.paper.report.beside import BESIDE, Column, Compared
from deltaw.paper.report.page import Paragraph, Table
from deltaw.paper.reproduce.records import Record
from deltaw.paper.tables import PrintedTable

__all__ = ["compare"]

Rows = Mapping[str, list[Record]]


def compare(printed: PrintedTable, rows: Rows) -> list[Table | Paragraph]:
    """Set our rows beside the paper's.

    Args:
        printed: the paper's table.
        rows: the records by row.

    Returns:
        A table and what ours was run on; empty where no row of ours stands beside any of the paper's.
    """
    compared = BESIDE.get(printed.id)
    if compared is None:
        return []
    lines = _lines(printed, compared, rows)
    if not lines:
        return []
    beside = (*compared.rows.values(), *compared.alone.values())
    used = [made for names in beside for name in names for made in rows.get(name, [])]
    on = "; ".join(dict.fromkeys(made.on for made in used))
    said = (f"Ours on {on}.", _seeds(compared, used), compared.note)
    return [Table(head=_head(compared), rows=lines), Paragraph(text=" ".join(filter(None, said)))]


def _head(compared: Compared) -> tuple[str, ...]:
    head = ["", "values trained"]
    for column in compared.columns:
        head += [f"{column.paper} paper"] if column.paper else []
        head += [_ours_head(column)] if column.ours else []
    return tuple(head)


def _ours_head(column: Column) -> str:
    """How a column of ours is called; what it leaves out of the paper's is said."""
    _, _, less = column.ours.partition(f"{column.paper}, ")
    return f"{column.paper or column.ours} ours" + (f" ({less})" if column.paper and less else "")


def _lines(printed: PrintedTable, compared: Compared, rows: Rows) -> list[tuple[str, ...]]:
    """One line for each row of the paper that has one of ours beside it, then those that have none."""
    lines = []
    stated = {row.id: row for row in printed.rows}
    for name, ours in (*compared.rows.items(), *compared.alone.items()):
        made = [record for row in ours for record in rows.get(row, [])]
        if not made:
            continue
        row = None if name in compared.alone else stated[name]
        line = [name, f"{row.parameters + ' / ' if row and row.parameters else ''}{_count(made)}"]
        for column in compared.columns:
            if column.paper:
                line.append(row.cells[column.paper].text if row and column.paper in row.cells else "-")
            if column.ours:
                line.append(_ours(made, column, compared.summary))
        lines.append(tuple(line))
    return lines


def _count(made: Sequence[Record]) -> str:
    """The values that are trained; heads of other sizes are no difference, other ranks are."""
    counts = sorted({int(record.values["parameters"]) for record in made})
    return f"{counts[0]:,}" + (f" to {counts[-1]:,}" if counts[-1] > 1.1 * counts[0] else "")


def _ours(made: Sequence[Record], column: Column, summary: str) -> str:
    """Our number over the seeds."""
    chosen = [record for record in made if column.ours in record.values and fnmatchcase(record.row, column.among)]
    numbers = [column.factor * record.values[column.ours] for record in chosen]
    if not numbers:
        return "not run"
    middle = statistics.median(numbers) if summary == "median" else statistics.fmean(numbers)
    digits = 1 if column.factor == 100.0 else 3
    spread = f" +-{statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{middle:.{digits}f}{spread}"


def _seeds(compared: Compared, used: Sequence[Record]) -> str:
    count: dict[str, int] = {}
    for record in used:
        count[record.row] = count.get(record.row, 0) + 1
    least, most = min(count.values()), max(count.values())
    seeds = f"{least} to {most} seeds" if most > least else f"{most} seed{'s' if most > 1 else ''}"
    return f"{compared.summary.capitalize()} of {seeds}; +- is the standard deviation of several."
