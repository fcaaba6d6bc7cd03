"""``deltaw paper which``: which weights to adapt at one budget."""

from __future__ import annotations

import dataclasses

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options, hush
from deltaw.cli.paper._analysis import output_option, publish, title_of

__all__ = ["command"]

RESULTS_HELP = "CSV or JSON of finished runs: run, score, and task where there are several."


@click.command("which")
@click.argument("model", metavar="MODEL")
@click.option("--budget", type=int, metavar="N", help="Values of each adapter; default: rank 2 on q, k, v and o.")
@click.option("--alpha", type=float, metavar="NUMBER", help="The same for all runs; default: the largest rank.")
@click.option("--results", metavar="FILE", help=RESULTS_HELP)
@output_option
@common_options
def command(
    *, model: str, budget: int | None, alpha: float | None, results: str | None, output: str | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Seven choices of attention weights with equally many values: the runs of Table 5.

    MODEL is a preset, a directory or a cached hub name; no weight is read. --output also writes a TOML file for each
    run. With --results, their scores go into the table and the figure.
    """
    from deltaw.paper.analyses.recipes import read_scores, which
    from deltaw.train.shape import meta_model

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    found = which(meta_model(model), name=title_of(model), budget=budget, alpha=alpha)
    if results is not None:
        found = dataclasses.replace(found, scores=read_scores(results, found))
    place = quoted(output or "runs")
    publish(out, found, output, f"deltaw train --config {place}/{found.recipes[-1].run}.toml --model DIR --data FILE")
