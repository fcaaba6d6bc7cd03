"""``deltaw train``: a model and a data file in, a verified adapter out."""

from __future__ import annotations

from typing import Any

import click

from deltaw.cli._common import Output, common_options
from deltaw.cli._fields import field_options, take_fields
from deltaw.train.config import SECTIONS
from deltaw.train.settings import from_values, read_toml

__all__ = ["command"]

INTERRUPTED = 130


class _Sectioned(click.Command):
    """Lists the flags under the sections of the TOML file that they stand for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        groups: dict[str, list[tuple[str, str]]] = {f"[{section}]": [] for section in SECTIONS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            section = f"[{(param.name or '').partition('__')[0]}]"
            if record is not None:
                groups.setdefault(section if section in groups else "Options", []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _all_fields(function: Any) -> Any:
    """Every key of the configuration as a flag, section by section."""
    for section, group in reversed(SECTIONS.items()):
        function = field_options(group, section)(function)
    return function


@click.command("train", cls=_Sectioned, context_settings={"max_content_width": 120})
@click.option("--config", "file", type=click.Path(), help="A TOML file of settings; flags override it.")
@click.option("--dry-run", is_flag=True, help="Do everything before step 1, then stop; write nothing.")
@_all_fields
@common_options
def command(file: str | None, dry_run: bool, quiet: bool, as_json: bool, **flags: Any) -> int:
    """Train an adapter: a model and a data file in, a verified adapter out.

    Needs no more than --model and --data; everything else is chosen and explained before step 1.
    """
    values = {section: take_fields(group, section, flags) for section, group in SECTIONS.items()}
    config = from_values(*([read_toml(file)] if file else []), values)
    output = Output(quiet=quiet, as_json=as_json)

    from deltaw.train.driver import run
    from deltaw.train.report import payload
    from deltaw.train.signals import StopOnSignal

    with StopOnSignal() as stop:
        if output.talks:
            from deltaw.train.console import ConsoleReporter

            reporter = ConsoleReporter()
            try:
                report = run(config, (reporter, stop), dry_run=dry_run)
            finally:
                reporter.close()
        else:
            report = run(config, (stop,), dry_run=dry_run)
    if dry_run:
        output.say(report)
    output.finish(payload(report))
    return INTERRUPTED if report.interrupted else 0
