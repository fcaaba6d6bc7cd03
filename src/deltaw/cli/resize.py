"""``deltaw resize``: an adapter of lower rank."""

from __future__ import annotations

import dataclasses

import click

from deltaw.cli._algebra import facts, free_place, open_adapter, output_option, quoted, rows, say_written
from deltaw.cli._common import Output, common_options

__all__ = ["command"]


@click.command("resize")
@click.argument("adapter", metavar="ADAPTER")
@click.option("--rank", type=int, metavar="N", help="Largest rank of any module; smaller ones stay.")
@click.option("--energy", type=float, metavar="SHARE", help="Share of each module's squared norm to keep, such as 0.9.")
@click.option(
    "--budget", type=int, metavar="N", help="Values of A and B in the whole adapter, spent where they matter."
)
@output_option
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(
    *,
    adapter: str,
    rank: int | None,
    energy: float | None,
    budget: int | None,
    output: str,
    every: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Cut an adapter's ranks, losing as little of its updates as that allows.

    ADAPTER is a PEFT directory; no model is needed. Give one of --rank, --energy and --budget. Every module gets the
    nearest update of its new rank (QR of both factors, SVD of the small core, float64); the dense matrix is never
    formed. The kept energy and the error are measured on what is written. Modules that need not change keep their
    bits.
    """
    out = Output(quiet=quiet, as_json=as_json)
    place = free_place(output)
    source = open_adapter(adapter)
    from deltaw.algebra import resize

    report = dataclasses.replace(resize(source, rank=rank, energy=energy, budget=budget), every=every)
    written = report.adapter.save(place)
    out.say(report)
    say_written(
        out,
        report.adapter,
        place,
        written,
        f"deltaw compare {quoted(source.where)} {quoted(place)}",
        f"deltaw inspect {quoted(place)}",
    )
    out.finish(
        {
            **facts(report.adapter, place, written),
            "parameters_before": report.parameters_before,
            "kept": report.kept,
            "error": report.error,
            "modules": rows(report.modules),
            "notes": report.notes,
        }
    )
