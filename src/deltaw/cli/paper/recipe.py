"""``deltaw paper recipe``: the hyper-parameters of the paper's tables as configuration files."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, as_path, common_options, next_commands
from deltaw.errors import ConfigError

__all__ = ["command"]


@click.command("recipe")
@click.argument("table", required=False)
@click.option("--row", metavar="NAME", help="A model or method of the table.")
@click.option("--task", metavar="NAME", help="A column of the table.")
@click.option(
    "--as",
    "source",
    default="decided",
    show_default=True,
    metavar="NAME",
    help="decided: known errors put right; printed: to the letter; script: as the authors' scripts do.",
)
@click.option("-o", "--output", metavar="FILE", help="Write the file instead of printing it.")
@click.option("--write", metavar="DIR", help="Write every recipe below this directory.")
@common_options
def command(
    *, table: str | None, row: str | None, task: str | None, source: str, output: str | None, write: str | None,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the settings of a table of the paper as a configuration file.

    TABLE is table9, table10, table11, table12 or table17; without one, all rows and columns are listed. Every value
    that the paper and the published scripts do not agree on has a comment. `deltaw train --config FILE` reads the
    result; its --data is where the task's files are.
    """
    out = Output(quiet=quiet, as_json=as_json)
    if write is not None:
        if table or output:
            raise ConfigError(
                "--write writes every recipe",
                where="--write",
                got=f"{table or '--output'} too",
                expected="--write DIR alone",
                hint="drop --write to make one recipe",
            )
        return _write_all(out, write)
    if table is None:
        return _list(out)
    _one(out, table, row, task, source, output)
    return None


def _one(out: Output, table: str, row: str | None, task: str | None, source: str, output: str | None) -> None:
    from deltaw.paper.recipe_tables import PARTS, TABLES
    from deltaw.paper.recipes import recipe

    rows = list(TABLES.get(table, {}))
    if rows and (row is None or task is None):
        if row is None and len(rows) == 1:
            row = rows[0]
        if row is None or task is None:
            name, known = ("--row", rows) if row is None else ("--task", PARTS[table])
            raise ConfigError(
                f"{table} has several of these",
                where=name,
                got="nothing",
                expected=f"one of {', '.join(known)}",
                hint=f"add {name} {known[0]}",
            )
    found = recipe(table, row or "", task or "", source)
    text = str(found)
    if output is not None:
        from deltaw.train.files import write_text

        place = as_path(output)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, text)
        out.say(f"written to {place}", next_commands(f"deltaw train --config {place} --data DIR --output OUT"))
    else:
        out.say(text.rstrip("\n"))
    out.finish(
        {
            "table": table, "row": found.row, "task": found.task, "as": source, "values": found.values,
            "config": found.sections(), "decode": found.decoding(), "comments": found.comments, "notes": found.notes,
        }
    )  # fmt: skip


def _list(out: Output) -> None:
    from deltaw.paper.recipe_errata import has_script
    from deltaw.paper.recipe_tables import PARTS, TABLES, TITLES
    from deltaw.reports import table as columns

    rows = [
        (name, row, " ".join(task + ("*" if has_script(name, row, task) else "") for task in PARTS[name]))
        for name, found in TABLES.items()
        for row in found
    ]
    out.say(
        columns(("table", "row", "tasks"), rows), "", "* --as script too", *(f"{k}: {v}" for k, v in TITLES.items())
    )
    out.finish({"recipes": [dict(zip(("table", "row", "tasks"), row, strict=True)) for row in rows]})


def _write_all(out: Output, write: str) -> None:
    from deltaw.paper.recipes import all_recipes
    from deltaw.train.files import write_text

    root, names = as_path(write), []
    for found in all_recipes():
        place = root / f"{found.name}.toml"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, str(found))
        names.append(found.name)
    out.say(f"{len(names)} recipes written below {root}")
    out.finish({"directory": root, "recipes": names})
