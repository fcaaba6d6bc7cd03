"""``deltaw paper quality``: quality over the number of trained parameters."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, common_options
from deltaw.cli.paper._analysis import output_option, publish

__all__ = ["command"]


@click.command("quality")
@click.argument("file", metavar="FILE")
@click.option("--title", default="quality over trained parameters", show_default=True, help="What was scored on what.")
@click.option("--metric", default="score", show_default=True, help="Name of the score.")
@output_option
@common_options
def command(*, file: str, title: str, metric: str, output: str | None, quiet: bool, as_json: bool) -> None:
    """Draw quality over trained parameters, a line for each method: figure 2.

    FILE is CSV or JSON with a row for each run: method, parameters (such as 294912 or 37.7M), score, and task where
    there are several. Runs of one method, size and task are averaged.
    """
    from deltaw.paper.analyses.quality import quality, read_quality

    out = Output(quiet=quiet, as_json=as_json)
    found = quality(read_quality(file), title=title, metric=metric)
    publish(out, found, output, "deltaw paper rank-sweep MODEL", "deltaw paper which MODEL")
