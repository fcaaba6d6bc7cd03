"""How a printed table is printed again."""

from __future__ import annotations

from deltaw.paper.output import csv_text
from deltaw.paper.tables.types import PrintedTable, Row
from deltaw.reports import table

__all__ = ["grid", "heading", "show", "to_csv"]


def heading(printed: PrintedTable) -> str:
    """Name a table.

    Args:
        printed: the table.

    Returns:
        Such as ``Table 3``, ``Figure 5`` or ``claims``.
    """
    kind = printed.id.rstrip("0123456789")
    return f"{kind.capitalize()} {printed.id[len(kind) :]}" if kind != printed.id else printed.id.capitalize()


def show(printed: PrintedTable) -> str:
    """Print a table: title, cells as in the paper, then what its marks, notes and errata say.

    Args:
        printed: the table.

    Returns:
        Text.
    """
    from deltaw.paper.tables.load import erratum

    header, rows = grid(printed)
    lines = [f"{heading(printed)}: {printed.title}", f"({printed.metric})", "", table(header, rows), ""]
    lines += [f"{mark} {meaning}" for mark, meaning in printed.marks.items()]
    lines += [f"data: {printed.data}"] if printed.data else []
    lines.append(f"reproducible: {printed.reproducible}" + (f" ({printed.why})" if printed.why else ""))
    lines += [f"needs: {printed.needs}"] if printed.needs else []
    lines += [f"note: {note}" for note in printed.notes]
    return "\n".join([*lines, *(str(erratum(name)) for name in printed.errata)])


def grid(printed: PrintedTable) -> tuple[list[str], list[list[str]]]:
    """Lay a table out as it is printed.

    Args:
        printed: the table.

    Returns:
        Titles of the columns, and the cells row by row; a dash where the paper prints nothing.
    """
    counted = any(row.parameters for row in printed.rows)
    header = ["", *(["parameters"] if counted else []), *(column.id for column in printed.columns)]
    return header, [_line(row, printed, counted) for row in printed.rows]


def _line(row: Row, printed: PrintedTable, counted: bool) -> list[str]:
    texts = [row.cells[column.id].text if column.id in row.cells else "-" for column in printed.columns]
    return [row.id + (f" {row.marks}" if row.marks else ""), *([row.parameters or "-"] if counted else []), *texts]


def to_csv(printed: PrintedTable) -> str:
    """Write a table as comma-separated values: cells as printed, a spread in a column of its own.

    Args:
        printed: the table.

    Returns:
        Titles, then a line for each row: its name; model, method, parameters and marks where the table has any; its
        cells, an empty field where the paper prints nothing.

    Example:
        >>> from deltaw.paper.tables import printed_table
        >>> print(to_csv(printed_table("table4")).splitlines()[7])
        LoRA 4.7M,gpt3-175b,LoRA,4.7M,73.4,91.7,53.8,29.8,45.9
    """
    facts = [name for name in ("model", "method", "parameters", "marks") if any(getattr(r, name) for r in printed.rows)]
    spreads = {cell.id.rpartition("/")[2] for cell in printed.cells if cell.spread is not None}
    titles = [title for column in printed.columns for title in _titles(column.id, spreads)]
    lines = [["row", *facts, *titles]]
    for row in printed.rows:
        line = [row.id, *(getattr(row, name) for name in facts)]
        for column in printed.columns:
            text = row.cells[column.id].text if column.id in row.cells else ""
            number, _, spread = text.partition("+-") if column.id in spreads else (text, "", "")
            line += [number, spread][: len(_titles(column.id, spreads))]
        lines.append(line)
    return csv_text(lines)


def _titles(column: str, spreads: set[str]) -> list[str]:
    return [column, f"{column} +-"] if column in spreads else [column]
