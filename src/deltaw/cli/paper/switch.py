"""``deltaw paper switch``: how long it takes to turn from one adapter to another."""

from __future__ import annotations

from typing import Any

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options
from deltaw.cli.paper._analysis import base_subject, output_option, publish, timing_options, title_of

__all__ = ["command"]


@click.command("switch")
@click.argument("model", metavar="MODEL")
@click.option("--adapter", "adapters", multiple=True, metavar="DIR", help="Adapter of it; repeatable, at least two.")
@click.option("--count", type=int, default=8, show_default=True, help="Random adapters, where none are given.")
@click.option("--rank", type=int, default=8, show_default=True, help="Of random adapters, on W_q and W_v.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Switches that count, each way.")
@click.option("--allow-other-base", is_flag=True, help="Accept adapters trained on another base.")
@timing_options
@output_option
@common_options
def command(
    *, model: str, device: str, dtype: str, seed: int, output: str | None, quiet: bool, as_json: bool, **rest: Any
) -> None:
    """Time the switch between adapters of one base: active, merged, from disk (section 4.1).

    MODEL is a directory, or a preset with random weights. Afterwards merged and unmerged answers must agree, and the
    base must have its own bits again.
    """
    from deltaw.paper.analyses.switch import switch

    out = Output(quiet=quiet, as_json=as_json)
    base = base_subject(model, device=device, dtype=dtype, seed=seed)
    found = switch(base, name=title_of(model), seed=seed, **rest)
    publish(out, found, output, f"deltaw paper deployment {quoted(model)} --rank {rest['rank']}")
