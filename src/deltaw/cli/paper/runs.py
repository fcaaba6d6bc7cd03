"""``deltaw paper runs``: several seeds in one table, with median, mean and spread."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, as_path, common_options
from deltaw.errors import ConfigError

__all__ = ["command"]


@click.command("runs")
@click.argument("directories", nargs=-1, metavar="DIR...")
@click.option("--metric", metavar="NAME", help="What the best validation is chosen by; default: the task's, else loss.")
@click.option(
    "--best",
    type=click.Choice(["auto", "highest", "lowest", "last"]),
    default="auto",
    show_default=True,
    help="Which validation of a run counts; auto knows loss, perplexity and TER as lowest.",
)
@click.option("--scores", metavar="NAME", help="Read this JSON file of each run instead of its validations.")
@click.option("--mixed", is_flag=True, help="Accept runs that differ in more than their seeds.")
@click.option("--csv", "table", metavar="FILE", help="Write the runs as a csv file too; - prints it.")
@common_options
def command(
    *, directories: tuple[str, ...], metric: str | None, best: str, scores: str | None, mixed: bool, table: str | None,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Gather runs of several seeds: the best validation of each, median, mean and spread.

    The paper reports the median of five seeds on GLUE and the mean of three on E2E, the best epoch of each run.
    """
    from deltaw.paper.output import csv_text
    from deltaw.paper.runs import gather, read_run
    from deltaw.train.files import write_text

    if not directories:
        raise ConfigError(
            "there are no runs",
            where="deltaw paper runs",
            got="no directory",
            expected="output directories of deltaw train",
            hint="name them: deltaw paper runs out-seed0 out-seed1 out-seed2",
        )
    out = Output(quiet=quiet, as_json=as_json)
    found = gather([read_run(as_path(name), scores) for name in directories], metric, best, mixed=mixed)
    text = csv_text([found.header, *found.cells()])
    if table == "-":
        out.say(text.rstrip("\n"))
    else:
        out.say(found)
    if table not in (None, "-"):
        write_text(as_path(table), text)
        out.say(f"written to {table}")
    out.finish(
        {"metric": found.metric, "best": found.best, "runs": found.rows, "spread": found.spread, "notes": found.notes}
    )
