"""``deltaw inspect``: what is in an adapter."""

from __future__ import annotations

import shlex

import click

from deltaw.cli._common import Output, common_options, next_commands

__all__ = ["command"]


@click.command("inspect")
@click.argument("adapter", metavar="ADAPTER")
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(*, adapter: str, every: bool, quiet: bool, as_json: bool) -> None:
    """Show what is in an adapter: ranks, norms, spectrum, size, hash.

    ADAPTER is a PEFT directory, written by deltaw or by others; no model is needed. The norm is the Frobenius norm of
    scaling * B A (of diag(b) B diag(d) A in VeRA); the effective rank is the exponential of its spectrum's entropy.
    """
    from deltaw.ship.inspection import inspect_adapter

    out = Output(quiet=quiet, as_json=as_json)
    found = inspect_adapter(adapter, every=every)
    out.say(found)
    base, where = shlex.quote(str(found.facts["base"] or "DIR")), shlex.quote(str(found.path))
    output = shlex.quote(f"{found.path.name}-merged")
    out.say(next_commands(f"deltaw merge --model {base} --adapter {where} --output {output}"))
    out.finish(
        {
            "facts": found.facts,
            "config": found.settings,
            "modules": found.modules,
            "trained_in_full": found.others,
            "trained_rows": found.rows,
            "shared": found.shared,
            "remarks": found.remarks,
            "warnings": found.warnings,
        }
    )
