"""``deltaw paper latency``: what a forward pass costs with each method."""

from __future__ import annotations

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, common_options
from deltaw.cli.paper._analysis import base_subject, numbers, output_option, publish, timing_options, title_of

__all__ = ["command"]


@click.command("latency")
@click.argument("model", metavar="MODEL")
@click.option("--batch", default="1", show_default=True, metavar="N,...", help="Rows.")
@click.option("--length", default="128", show_default=True, metavar="N,...", help="Tokens of a row.")
@click.option("--size", default="8", show_default=True, metavar="N,...",
              help="LoRA's rank, an adapter's bottleneck, a prefix's length.")  # fmt: skip
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Method to time; repeatable. Default: all.")
@click.option("--rounds", type=int, default=100, show_default=True, help="Trials that count.")
@timing_options
@output_option
@common_options
def command(
    *, model: str, batch: str, length: str, size: str, methods: tuple[str, ...], rounds: int, device: str, dtype: str,
    seed: int, output: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Time a forward pass with LoRA, merged and not, adapters and prefixes: Table 1, figure 5.

    MODEL is a directory, or a preset (gpt2-medium is the paper's) with random weights. Methods: base, LoRA, LoRA
    merged, Adapter L, Adapter H, PreEmbed, PreLayer. Each takes a pass in every round, in turning order; before that,
    the merged model must answer as the unmerged one.
    """
    from deltaw.paper.analyses.latency import latency

    out = Output(quiet=quiet, as_json=as_json)
    batches, lengths, sizes = (
        numbers(text, flag) for text, flag in ((batch, "--batch"), (length, "--length"), (size, "--size"))
    )
    base = base_subject(model, device=device, dtype=dtype, seed=seed)
    found = latency(
        base, name=title_of(model), batches=batches, lengths=lengths, sizes=sizes, methods=methods, rounds=rounds,
        seed=seed,
    )  # fmt: skip
    publish(out, found, output, f"deltaw paper throughput {quoted(model)}")
