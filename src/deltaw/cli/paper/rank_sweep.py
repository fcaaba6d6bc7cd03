"""``deltaw paper rank-sweep``: the runs that show how rank matters."""

from __future__ import annotations

import dataclasses

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options, hush
from deltaw.cli.paper._analysis import numbers, output_option, publish, title_of
from deltaw.cli.paper.which import RESULTS_HELP

__all__ = ["command"]


@click.command("rank-sweep")
@click.argument("model", metavar="MODEL")
@click.option("--ranks", default="1,2,4,8,64", show_default=True, metavar="R,...", help="Ranks.")
@click.option("--weights", default="q,qv,qkvo", show_default=True, metavar="LETTERS,...",
              help="Sets of projections, letters of q, k, v, o.")  # fmt: skip
@click.option("--alpha", type=float, metavar="NUMBER", help="The same for all runs; default: the first rank.")
@click.option("--results", metavar="FILE", help=RESULTS_HELP)
@output_option
@common_options
def command(
    *, model: str, ranks: str, weights: str, alpha: float | None, results: str | None, output: str | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """The runs of a rank sweep over sets of attention weights: Tables 6 and 18.

    MODEL is a preset, a directory or a cached hub name; no weight is read. --output also writes a TOML file for each
    run. With --results, their scores go into the table and the figure.
    """
    from deltaw.paper.analyses.recipes import rank_sweep, read_scores
    from deltaw.train.shape import meta_model

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    asked, sets = numbers(ranks, "--ranks"), tuple(part.strip() for part in weights.split(","))
    found = rank_sweep(meta_model(model), name=title_of(model), ranks=asked, weights=sets, alpha=alpha)
    if results is not None:
        found = dataclasses.replace(found, scores=read_scores(results, found))
    place = quoted(output or "runs")
    publish(out, found, output, f"deltaw train --config {place}/{found.recipes[0].run}.toml --model DIR --data FILE")
