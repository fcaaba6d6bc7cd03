"""``deltaw paper tables``: the paper's printed tables, claims and errata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, as_path, common_options, next_commands, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deltaw.paper.tables import PrintedTable

__all__ = ["command"]

ERRATA = "errata"


@click.command("tables")
@click.argument("name", metavar="[TABLE]", required=False)
@click.option("-o", "--output", metavar="DIR", help="Write the table there, or all of them: .txt, .csv, .json.")
@common_options
def command(*, name: str | None, output: str | None, quiet: bool, as_json: bool) -> None:
    """Print a table of the paper as it stands there.

    TABLE is a number from 1 to 18, figure2 to figure8, claims, datasets or errata; without it, all are listed with
    whether they can be reproduced.
    """
    from deltaw.paper.tables import TABLE_IDS, printed_tables

    out = Output(quiet=quiet, as_json=as_json)
    names = (*TABLE_IDS, ERRATA) if name is None else (f"table{name}" if name.isdigit() else name,)
    forms = {each: _forms(each) for each in names}
    if name is None:
        said = _listing(printed_tables())
        payload: dict[str, Any] = {"tables": [_payload(table, cells=False) for table in printed_tables()]}
    else:
        said, _, payload = forms[names[0]]
    files = () if output is None else _write(output, forms)
    out.say(said)
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        out.say(f"wrote {', '.join(file.name for file in files[:3])}{more} to {output}")
        payload = {**payload, "files": files}
    if name is None:
        out.say(next_commands("deltaw paper tables 3", "deltaw paper tables errata", "deltaw paper quality figure2"))
    out.finish(payload)


def _forms(name: str) -> tuple[str, str, dict[str, Any]]:
    """A table, or the errata, as text, CSV and for JSON."""
    from deltaw.paper.output import csv_text
    from deltaw.paper.tables import errata, printed_table
    from deltaw.paper.tables.show import to_csv

    if name != ERRATA:
        table = printed_table(name)
        return str(table), to_csv(table), _payload(table, cells=True)
    items = list(errata().values())
    text = "\n".join(f"{item.id}: {item.what}\n  evidence: {item.evidence}\n  here: {item.choice}" for item in items)
    lines = ((item.id, item.what, item.evidence, item.choice) for item in items)
    return text, csv_text([("id", "what", "evidence", "here"), *lines]), {ERRATA: items}


def _write(output: str, forms: Mapping[str, tuple[str, str, dict[str, Any]]]) -> tuple[Path, ...]:
    from deltaw.paper.output import write_output

    files: dict[str, bytes] = {}
    for name, (text, rows, payload) in forms.items():
        files[f"{name}.txt"] = f"{text}\n".encode()
        files[f"{name}.csv"] = rows.encode()
        files[f"{name}.json"] = (json.dumps(plain(payload), indent=2, allow_nan=False) + "\n").encode()
    return write_output(as_path(output), files, "the tables")


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
