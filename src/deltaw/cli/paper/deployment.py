"""``deltaw paper deployment``: what many tasks take on disk."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, common_options, hush
from deltaw.cli.paper._analysis import byte_count, output_option, publish, title_of
from deltaw.errors import ConfigError

__all__ = ["command"]

PAPER = ("GPT-3 175B", 350 * 10**9, 2 * 18_874_368)
"""The paper's own figures: name, bytes of the base in fp16, bytes of r = 4 on W_q and W_v."""


@click.command("deployment")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--weights", metavar="LETTERS", help="Adapted projections of MODEL, out of q, k, v, o.  [default: qv]")
@click.option("--rank", type=int, help="LoRA's rank on MODEL.  [default: 4]")
@click.option("--bytes-each", type=int, help="Bytes of a value of MODEL.  [default: 2]")
@click.option("--base-bytes", metavar="SIZE", help="Size of the base instead, such as 350GB.")
@click.option("--adapter-bytes", metavar="SIZE", help="Size of an adapter instead, such as 35MB.")
@click.option("--tasks", type=int, default=100, show_default=True, help="How many tasks.")
@output_option
@common_options
def command(
    *, model: str | None, weights: str | None, rank: int | None, bytes_each: int | None, base_bytes: str | None,
    adapter_bytes: str | None, tasks: int, output: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Storage of many tasks: one base and its adapters against a whole model each (footnote 4).

    MODEL is a preset, a directory or a cached hub name, of which the shape alone is read; without it, the sizes are
    those of the paper or the ones given.
    """
    from deltaw.paper.analyses.deployment import deployment

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    name, base, adapter = PAPER
    if model is not None:
        name, (base, adapter) = title_of(model), _sizes(model, weights or "qv", 4 if rank is None else rank,
                                              2 if bytes_each is None else bytes_each)  # fmt: skip
    else:
        _refuse_unread({"--weights": weights, "--rank": rank, "--bytes-each": bytes_each})
        name = PAPER[0] if base_bytes is None else "the base"
    base = base if base_bytes is None else byte_count(base_bytes, "--base-bytes")
    adapter = adapter if adapter_bytes is None else byte_count(adapter_bytes, "--adapter-bytes")
    found = deployment(model=name, base_bytes=base, adapter_bytes=adapter, tasks=tasks)
    publish(out, found, output, "deltaw paper switch MODEL")


def _sizes(source: str, weights: str, rank: int, bytes_each: int) -> tuple[int, int]:
    """Bytes of base and adapter."""
    import deltaw as dw
    from deltaw.paper.analyses.recipes import rank_sweep
    from deltaw.paper.analyses.turns import require_positive
    from deltaw.train.shape import meta_model

    require_positive(bytes_each=bytes_each)
    shape = meta_model(source)
    recipe = rank_sweep(shape, name=source, ranks=(rank,), weights=(weights,)).recipes[0]
    return bytes_each * dw.plan(shape, recipe.config()).total, bytes_each * recipe.parameters


def _refuse_unread(flags: dict[str, object]) -> None:
    idle = [flag for flag, value in flags.items() if value is not None]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} changes nothing without a model",
            where=", ".join(idle),
            got="no MODEL",
            expected="a preset, a directory or a cached hub name",
            hint=f"deltaw paper deployment gpt3-175b {idle[0]} ...",
        )
