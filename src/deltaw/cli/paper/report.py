"""``deltaw paper report``: the whole paper on one page."""

from __future__ import annotations

import click

from deltaw.cli._common import Output, as_path, common_options

__all__ = ["command"]


@click.command("report")
@click.option("--results", metavar="DIR", help="Records of deltaw paper run; default: those of the package.")
@click.option("-o", "--output", metavar="DIR", default="paper-report", show_default=True, help="Where the page goes.")
@common_options
def command(results: str | None, output: str, quiet: bool, as_json: bool) -> None:
    """Write one page: every table and figure of the paper beside what was run here.

    Markdown and HTML with the figures beside them. What cannot be reproduced is named, with what it would take.
    """
    from deltaw.paper.report import build, write_report
    from deltaw.paper.reproduce.records import RESULTS

    out = Output(quiet=quiet, as_json=as_json)
    page = build(RESULTS if results is None else as_path(results))
    files = write_report(page, as_path(output))
    out.say(f"written: {files[0]}, {files[1].name} and {len(files) - 2} figures")
    out.finish({"files": [str(file) for file in files]})
