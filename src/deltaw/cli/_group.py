"""The table of verbs, and the click group that imports a verb's module only when the verb is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from deltaw.version import __version__

__all__ = ["VERBS", "LazyGroup", "Verb", "command"]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One row of the table of verbs.

    Args:
        section: heading of the help page it stands under.
        module: the module that defines it as ``command``.
        line: its line on the help page; the first line of its own help says the same.
    """

    section: str
    module: str
    line: str


VERBS: dict[str, Verb] = {
    "train": Verb(
        section="Train",
        module="deltaw.cli.train",
        line="Train an adapter: a model and a data file in, a verified adapter out.",
    ),
    "data": Verb(
        section="Train",
        module="deltaw.cli.data",
        line="Look at a data file the way training does.",
    ),
    "plan": Verb(
        section="Train",
        module="deltaw.cli.plan",
        line="Count parameters, bytes and memory for a model shape, without weights.",
    ),
    "eval": Verb(
        section="Use",
        module="deltaw.cli.eval",
        line="Score a model on a data file, the base beside the adapter.",
    ),
    "generate": Verb(
        section="Use",
        module="deltaw.cli.generate",
        line="Continue prompts with the base, the adapter or the merged model.",
    ),
    "chat": Verb(
        section="Use",
        module="deltaw.cli.chat",
        line="Talk to a model; switch its adapter on and off on the way.",
    ),
    "merge": Verb(
        section="Adapters",
        module="deltaw.cli.merge",
        line="Write base and adapter as one plain model, and verify that it is faithful.",
    ),
    "inspect": Verb(
        section="Adapters",
        module="deltaw.cli.inspect",
        line="Show what is in an adapter: ranks, norms, spectrum, size, hash.",
    ),
    "compare": Verb(
        section="Adapters",
        module="deltaw.cli.compare",
        line="Compare two adapters: cosine of their updates, overlap of their subspaces.",
    ),
    "resize": Verb(
        section="Adapters",
        module="deltaw.cli.resize",
        line="Cut an adapter's ranks, losing as little of its updates as that allows.",
    ),
    "combine": Verb(
        section="Adapters",
        module="deltaw.cli.combine",
        line="Add adapters, each times a weight; negative weights subtract.",
    ),
    "extract": Verb(
        section="Adapters",
        module="deltaw.cli.extract",
        line="Find the LoRA that leads from one checkpoint to another.",
    ),
    "hash": Verb(
        section="Adapters",
        module="deltaw.cli.hash",
        line="Print the identity of an adapter's content.",
    ),
    "convert": Verb(
        section="Adapters",
        module="deltaw.cli.convert",
        line="Turn an adapter that another tool wrote into a PEFT directory.",
    ),
    "paper": Verb(
        section="Paper",
        module="deltaw.cli.paper",
        line="The paper's models, counts, tasks, metrics, analyses and tables.",
    ),
}

EXIT_CODES = [
    ("0", "done"),
    ("1", "a fault of deltaw, or a package that is not installed"),
    ("2", "a flag or a configuration file"),
    ("3", "the data"),
    ("4", "the model, a target, or a verb at the wrong moment"),
    ("5", "adapter files, or a training state to resume from"),
    ("6", "a merge that is not faithful"),
    ("130", "interrupted; what was trained is saved"),
]


class LazyGroup(click.Group):
    """A group whose commands are the rows of a table, each imported when it is run.

    Args:
        verbs: the table, in the order of the help page.
        **settings: what ``click.Group`` takes.
    """

    def __init__(self, *, verbs: Mapping[str, Verb], **settings: Any) -> None:
        super().__init__(**settings)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order of the table.

        Args:
            ctx: the context of the call.

        Returns:
            The verbs.
        """
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one verb.

        Args:
            ctx: the context of the call.
            cmd_name: the verb.

        Returns:
            Its command, or None where there is no such verb.
        """
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        found = importlib.import_module(verb.module).command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs under their headings, from the table alone.

        Args:
            ctx: the context of the call.
            formatter: what the help page is written to.
        """
        for section in dict.fromkeys(verb.section for verb in self.verbs.values()):
            with formatter.section(section):
                formatter.write_dl([(name, verb.line) for name, verb in self.verbs.items() if verb.section == section])


class _Frame(LazyGroup):
    """The group of all verbs, whose help page ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End the page with the exit codes.

        Args:
            ctx: the context of the call.
            formatter: what the help page is written to.
        """
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)


@click.command(
    cls=_Frame,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="deltaw", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (also: DELTAW_DEBUG=1).")
@click.pass_context
def command(ctx: click.Context, debug: bool) -> None:
    """LoRA for PyTorch: train low-rank adapters, prove what they do, merge them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
