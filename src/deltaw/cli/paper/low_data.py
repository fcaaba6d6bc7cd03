"""``deltaw paper low-data``: the methods after training on few examples."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, common_options
from deltaw.cli.paper._analysis import output_option, publish
from deltaw.errors import ConfigError

__all__ = ["command"]


@click.command("low-data")
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--total", type=int, metavar="N", help="Size of the whole training set, for the protocol.")
@click.option("--title", help="What was scored on what, for results.")
@click.option("--metric", help="Name of the score, for results.")
@output_option
@common_options
def command(
    *, file: str | None, total: int | None, title: str | None, metric: str | None, output: str | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Few training examples: the protocol of Table 17, or the results as Table 16.

    Without FILE the runs are listed: method, sample, batch, epochs, learning rate, sizes. FILE is CSV or JSON with a
    row for each finished run: method, examples, score; seeds stand in rows of their own.
    """
    from deltaw.paper.analyses import low_data

    out = Output(quiet=quiet, as_json=as_json)
    if file is None:
        _refuse_unread("without a file of results", "no FILE", {"--title": title, "--metric": metric})
        runs = low_data.protocol() if total is None else low_data.protocol(total)
        publish(out, runs, output, "deltaw paper low-data RESULTS.csv --output DIR")
        return
    _refuse_unread("for results", f"the results in {file}", {"--total": total})
    words = {name: value for name, value in (("title", title), ("metric", metric)) if value is not None}
    publish(out, low_data.collect(low_data.read_low_data(file), **words), output, "deltaw paper quality FILE")


def _refuse_unread(case: str, got: str, flags: dict[str, object]) -> None:
    idle = [flag for flag, value in flags.items() if value is not None]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} changes nothing {case}",
            where=", ".join(idle),
            got=got,
            expected="--total with the protocol, --title and --metric with a file of results",
            hint="leave it out.",
        )
