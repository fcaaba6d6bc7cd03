"""``deltaw paper memory``: what one training step holds under every method of the paper."""

from __future__ import annotations

from typing import Any

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options, hush
from deltaw.cli.paper._analysis import output_option, publish, title_of

__all__ = ["command"]


@click.command("memory")
@click.argument("source", metavar="[MODEL]", default="gpt3-175b")
@click.option("--matrices", default="qv", show_default=True, help="What LoRA adapts: letters of q, k, v and o.")
@click.option("--rank", type=int, help="LoRA's rank; default: the paper's for this model, else 8.")
@click.option("--bottleneck", type=int, default=8, show_default=True, help="Bottleneck of the adapters.")
@click.option("--drop-layers", type=int,
              help="Blocks without adapters in Adapter D; default: 5, or all but the last.")  # fmt: skip
@click.option("--prefix", type=int, default=8, show_default=True, help="Special tokens before the prompt.")
@click.option("--infix", type=int, default=8, show_default=True, help="Special tokens after the prompt.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float16", show_default=True,
              help="Number format of weights and activations.")  # fmt: skip
@click.option("--batch", type=int, default=1, show_default=True, help="Rows of a micro-batch.")
@click.option("--length", type=int, help="Tokens of a row; default: the model's context, at most 2048.")
@click.option("--labels", type=int, help="Number of labels of a classifier.")
@click.option("--gradient-checkpointing", is_flag=True, help="Recompute activations in the backward pass.")
@output_option
@common_options
def command(*, output: str | None, quiet: bool, as_json: bool, **sizes: Any) -> None:
    """Account for the memory of one training step, method by method.

    MODEL is one of the paper's models (gpt2, gpt2-medium, gpt2-large, roberta-base, roberta-large,
    deberta-v2-xxlarge, gpt3-175b), another preset of deltaw plan, a directory with a config.json, or a hub name.
    Nothing but shapes is read.
    """
    from deltaw.paper.memory import StepShape, memory_account

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    step = StepShape(**sizes)
    account = memory_account(step, name=title_of(step.source))
    publish(out, account, output, f"deltaw paper throughput {quoted(step.source)}")
