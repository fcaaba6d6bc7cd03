"""``deltaw paper subspace``: how far the subspaces of two adapters overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._algebra import quoted
from deltaw.cli._common import Output, as_path, common_options
from deltaw.cli.paper._analysis import numbers, output_option, publish
from deltaw.errors import ConfigError

if TYPE_CHECKING:
    from deltaw.adapter import Adapter

__all__ = ["command"]

MODULE_HELP = "Module to look at: a path, a dotted suffix, a glob, with [q] for a slice; repeatable. Default: all."
ALPHA_HELP = "LoRA's alpha, for files that do not store it; phi does not depend on it, norms do."


@click.command("subspace")
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@click.option("--module", "modules", multiple=True, metavar="PATH", help=MODULE_HELP)
@click.option("--ranks", metavar="I,J", help="Directions of A and of B; default: all there are.")
@click.option("--side", type=click.Choice(["A", "B"]), default="A", show_default=True,
              help="A: input directions, right singular vectors; B: output ones (footnote 7).")  # fmt: skip
@click.option("--control", is_flag=True, help="Draw two random Gaussian matrices of the same shapes beside (figure 4).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random matrices.")
@click.option("--alpha", type=float, metavar="NUMBER", help=ALPHA_HELP)
@click.option("--allow-other-base", is_flag=True, help="Compare adapters of bases with different fingerprints.")
@output_option
@common_options
def command(
    *, first: str, second: str | None, ranks: str | None, control: bool, alpha: float | None, allow_other_base: bool,
    output: str | None, quiet: bool, as_json: bool, **rest: Any,
) -> None:  # fmt: skip
    """Overlap of two adapters' subspaces, phi of figures 3, 4, 6 and 7; or of one adapter's own.

    A and B are adapters of one base, of any tool: two ranks (figures 3 and 6), two seeds (figures 4 and 7). phi(i, j)
    says how much of the smaller of the first i directions of A and the first j of B lies in the other: 1 where all
    does, max(i, j) / width on average where they have nothing to do with each other. With A alone, its matrices are
    compared with each other.
    """
    out = Output(quiet=quiet, as_json=as_json)
    adapters = open_all([first] if second is None else [first, second], alpha)
    here = quoted(first)
    if second is None:
        from deltaw.paper.analyses.within import within

        _refuse_unread(ranks=ranks is not None, control=control, allow_other_base=allow_other_base)
        own = within(adapters[0], **rest)
        publish(out, own, output, f"deltaw paper subspace {here} OTHER --control")
        return
    from deltaw.paper.analyses.subspace import subspace

    asked = None if ranks is None else numbers(ranks, "--ranks", 2)
    found = subspace(
        *adapters, ranks=None if asked is None else (asked[0], asked[1]), control=control,
        allow_other_base=allow_other_base, **rest,
    )  # fmt: skip
    publish(
        out, found, output, f"deltaw compare {here} {quoted(second)}", f"deltaw paper subspace-base {here} --model DIR"
    )


def open_all(sources: Sequence[str], alpha: float | None) -> list[Adapter]:
    """Open adapters; alpha goes to those that do not say it.

    Args:
        sources: as typed.
        alpha: as typed.

    Returns:
        The adapters.
    """
    from deltaw.paper.analyses.pieces import open_adapter
    from deltaw.read import CONFIG

    says = [(as_path(source) / CONFIG).is_file() for source in sources]
    # where each of them says its own, the reader refuses the flag
    return [
        open_adapter(source, alpha=None if own and not all(says) else alpha)
        for source, own in zip(sources, says, strict=True)
    ]


def _refuse_unread(**flags: bool) -> None:
    idle = ["--" + name.replace("_", "-") for name, given in flags.items() if given]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} changes nothing for one adapter",
            where=", ".join(idle),
            got="A alone",
            expected="two adapters, A and B",
            hint="leave it out, or name the second adapter.",
        )
