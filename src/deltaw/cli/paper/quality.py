"""``deltaw paper quality``: quality over the number of trained parameters."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, as_path, common_options
from deltaw.cli.paper._analysis import output_option, publish

__all__ = ["command"]


@click.command("quality")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--title", metavar="TEXT", help="What was scored on what.")
@click.option("--metric", metavar="TEXT", help="Name of the score, with its unit.")
@output_option
@common_options
def command(
    *, sources: tuple[str, ...], title: str | None, metric: str | None, output: str | None, quiet: bool, as_json: bool
) -> None:
    """Draw quality over trained parameters, a line for each method: figure 2.

    A SOURCE is a file or a table of the paper. A file is CSV or JSON with a row for each run: method, parameters (such
    as 294912 or 37.7M), score, and task and setting where there are several; runs of one method, size, task and
    setting are averaged. A table is table15 (the data of figure 2) or another with methods, sizes and scores; figure2
    is table15 with full fine-tuning beside it. Several sources go into one figure, a panel for each task.
    """
    from deltaw.paper.analyses.printed import gather_quality, is_printed

    out = Output(quiet=quiet, as_json=as_json)
    places = [source if is_printed(source) else as_path(source) for source in sources]
    found = gather_quality(places, title=title, metric=metric)
    publish(out, found, output, "deltaw paper rank-sweep MODEL", "deltaw paper which MODEL")
