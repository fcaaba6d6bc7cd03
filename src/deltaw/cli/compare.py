"""``deltaw compare``: how two adapters relate."""

from __future__ import annotations

import dataclasses

import click

from deltaw.cli._algebra import open_adapter, quoted, rows
from deltaw.cli._common import Output, common_options, next_commands

__all__ = ["command"]


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--allow-other-base", is_flag=True, help="Compare adapters of bases with different fingerprints.")
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(*, first: str, second: str, allow_other_base: bool, every: bool, quiet: bool, as_json: bool) -> None:
    """Compare two adapters: cosine of their updates, overlap of their subspaces.

    A and B are PEFT directories; no model is needed. The cosine is that of the two updates as vectors: 1 where one is
    a positive multiple of the other, 0 where they have nothing in common, -1 where they are opposed. phi A and phi B
    are the LoRA paper's subspace similarity (eq. 4) of the whole input and output subspaces: 1 where the smaller lies
    in the larger.
    """
    from deltaw.algebra import compare

    out = Output(quiet=quiet, as_json=as_json)
    one, other = open_adapter(first), open_adapter(second)
    report = dataclasses.replace(compare(one, other, allow_other_base=allow_other_base), every=every)
    out.say(report)
    a, b = quoted(one.where), quoted(other.where)
    out.say(next_commands(f"deltaw combine {a}:0.5 {b}:0.5 --output sum", f"deltaw inspect {a}"))
    out.finish(
        {
            "a": {"path": one.where, "hash": report.hashes[0], "norm": report.norms[0]},
            "b": {"path": other.where, "hash": report.hashes[1], "norm": report.norms[1]},
            "same_content": report.hashes[0] == report.hashes[1],
            "cosine": report.cosine,
            "phi_A": report.phi_A,
            "phi_B": report.phi_B,
            "modules": rows(report.modules),
            "notes": report.notes,
        }
    )
