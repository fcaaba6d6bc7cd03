"""``deltaw paper tables``: the paper's printed tables, claims and errata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options, next_commands

if TYPE_CHECKING:
    from deltaw.paper.tables import PrintedTable

__all__ = ["command"]


@click.command("tables")
@click.argument("name", metavar="[TABLE]", required=False)
@common_options
def command(*, name: str | None, quiet: bool, as_json: bool) -> None:
    """Print a table of the paper as it stands there.

    TABLE is a number from 1 to 18, figure2 to figure8, claims, datasets or errata; without it, all are listed with
    whether they can be reproduced.
    """
    from deltaw.paper.tables import errata, printed_table, printed_tables

    out = Output(quiet=quiet, as_json=as_json)
    if name is None:
        out.say(_listing(printed_tables()), next_commands("deltaw paper tables 3", "deltaw paper tables errata"))
        out.finish({"tables": [_payload(table, cells=False) for table in printed_tables()]})
    elif name == "errata":
        out.say(*(f"{item.id}: {item.what}\n  evidence: {item.evidence}\n  here: {item.choice}"
                  for item in errata().values()))  # fmt: skip
        out.finish({"errata": list(errata().values())})
    else:
        table = printed_table(f"table{name}" if name.isdigit() else name)
        out.say(table)
        out.finish(_payload(table, cells=True))


def _listing(tables: tuple[PrintedTable, ...]) -> str:
    from deltaw.reports import table

    return table(("table", "reproducible", "title"), [(item.id, item.reproducible, item.title) for item in tables])


def _payload(table: PrintedTable, *, cells: bool) -> dict[str, Any]:
    """A table for programs: its cells with what they say as numbers."""
    facts: dict[str, Any] = {
        "id": table.id, "title": table.title, "metric": table.metric, "reproducible": table.reproducible,
        "why": table.why, "needs": table.needs, "data": table.data, "marks": table.marks, "errata": table.errata,
        "notes": table.notes, "columns": table.columns,
    }  # fmt: skip
    if cells:
        facts["rows"] = [
            {
                "id": row.id, "model": row.model, "method": row.method, "parameters": row.parameters,
                "marks": row.marks,
                "cells": [
                    {"id": cell.id, "text": cell.text, "value": cell.value,
                     "spread": None if cell.spread is None else float(cell.spread)}
                    for cell in row.cells.values()
                ],
            }
            for row in table.rows
        ]  # fmt: skip
    return facts
