"""``deltaw paper subspace-base``: what an adapter's update has to do with the weights it is added to."""

from __future__ import annotations

from typing import Any

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, as_path, common_options, hush
from deltaw.cli.paper._analysis import numbers, output_option, publish
from deltaw.cli.paper.subspace import ALPHA_HELP, MODULE_HELP, open_all

__all__ = ["command"]


@click.command("subspace-base")
@click.argument("adapter", metavar="ADAPTER")
@click.option("--model", metavar="DIR|NAME", help="Its base; default: the one the adapter names.")
@click.option("--module", "modules", multiple=True, metavar="PATH", help=MODULE_HELP)
@click.option("--directions", metavar="R,...", help="Numbers of directions for Table 7; default: the update's rank.")
@click.option("--side", type=click.Choice(["A", "B"]), default="A", show_default=True,
              help="Of figure 8: A: input directions; B: output directions.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random directions.")
@click.option("--alpha", type=float, metavar="NUMBER", help=ALPHA_HELP)
@click.option("--allow-other-base", is_flag=True, help="Accept an adapter trained on another base.")
@output_option
@common_options
def command(
    *, adapter: str, model: str | None, directions: str | None, alpha: float | None, output: str | None, quiet: bool,
    as_json: bool, **rest: Any,
) -> None:  # fmt: skip
    """An update against the weight it is added to: figure 8, Table 7, the amplification factor.

    For each adapted weight: how much of W lies in the first r directions of Delta W, of W itself and of random ones
    (Frobenius norms of U^T W V^T), and how many times larger Delta W is than W is there. The base's weights are read
    from its files one at a time.
    """
    from deltaw.paper.analyses.weights import subspace_base
    from deltaw.ship.opening import ModelChoice, base_of

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    (opened,) = open_all([adapter], alpha)
    source = model or base_of(ModelChoice(adapter=str(as_path(adapter))))
    asked = () if directions is None else numbers(directions, "--directions")
    found = subspace_base(opened, source, directions=asked, **rest)
    publish(out, found, output, f"deltaw paper subspace {quoted(adapter)} OTHER --control")
