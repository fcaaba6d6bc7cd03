"""``deltaw paper throughput``: training speed of full fine-tuning against LoRA."""

from __future__ import annotations

import os
from typing import Any

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options
from deltaw.cli.paper._analysis import base_subject, output_option, publish, timing_options, title_of

__all__ = ["command"]


@click.command("throughput")
@click.argument("model", metavar="MODEL")
@click.option("--batch", type=int, default=4, show_default=True, help="Rows of a step.")
@click.option("--length", type=int, default=128, show_default=True, help="Tokens of a row.")
@click.option("--rank", type=int, default=4, show_default=True, help="LoRA's rank, on W_q and W_v.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Steps that count.")
@timing_options
@output_option
@common_options
def command(
    *, model: str, device: str, dtype: str, seed: int, output: str | None, quiet: bool, as_json: bool, **rest: Any
) -> None:
    """Training speed and peak memory: full fine-tuning against LoRA (section 4.2).

    MODEL is a directory, or a preset with random weights. Both take one step with AdamW in every round, in turning
    order; tokens are random, and nothing is written.
    """
    # torch's record of allocations says on stderr when it starts and stops, unless this is set before torch is loaded
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from deltaw.paper.analyses.throughput import throughput

    out = Output(quiet=quiet, as_json=as_json)
    base = base_subject(model, device=device, dtype=dtype, seed=seed)
    found = throughput(base, name=title_of(model), seed=seed, **rest)
    publish(out, found, output, f"deltaw plan {quoted(model)}", f"deltaw paper latency {quoted(model)}")
