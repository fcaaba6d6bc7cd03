"""``deltaw hash``: the identity of an adapter's content."""

from __future__ import annotations

import click

from deltaw.cli._algebra import open_adapter, quoted
from deltaw.cli._common import Output, common_options, next_commands

__all__ = ["command"]


@click.command("hash")
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@common_options
def command(*, adapters: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Print the identity of an adapter's content.

    SHA-256 over every tensor and every module's scaling: the same for the same update, whatever the file's layout,
    metadata, names or dropout say beside. One line for each ADAPTER, the hash first.
    """
    out = Output(quiet=quiet, as_json=as_json)
    opened = [open_adapter(word) for word in adapters]
    found = [(adapter.where, adapter.hash) for adapter in opened]
    out.say(*(f"{digest}  {where}" for where, digest in found))
    if len(found) > 1:
        out.say("all the same content" if len({digest for _, digest in found}) == 1 else "not all the same content")
        out.say(next_commands("deltaw compare " + " ".join(quoted(where) for where, _ in found[:2])))
    else:
        out.say(next_commands(f"deltaw inspect {quoted(found[0][0])}"))
    out.finish({"adapters": [{"path": where, "hash": digest} for where, digest in found]})
