"""``deltaw paper counts``: every number of the paper that follows from shapes alone."""

from __future__ import annotations

from pathlib import Path

import click

from deltaw.cli._common import Output, as_path, common_options

__all__ = ["command"]


@click.command("counts")
@click.option("--group", "groups", multiple=True, metavar="GROUP",
              help="Only this group; may be given several times. One of lora, checkpoint, adapter, prefix, combined, "
              "total, baseline, head, latency, ratio, deployment.")  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the lines to this file as well.")
@common_options
def command(*, groups: tuple[str, ...], csv_file: Path | None, quiet: bool, as_json: bool) -> None:
    """Count what the paper counts, exactly, beside what it prints.

    Each line: a formula with its numbers, the exact value, the same counted on a module tree (an adapter planned on the
    model, on the meta device), the printed label and whether the value rounds to it, is cut to it, or differs, and the
    erratum that is to blame.
    """
    from deltaw.paper.cases import paper_cases
    from deltaw.paper.ledger import settle_counts

    out = Output(quiet=quiet, as_json=as_json)
    ledger = settle_counts(paper_cases(), groups)
    out.say(ledger)
    payload = ledger.payload()
    if csv_file is not None:
        written = _write(as_path(csv_file), ledger.to_csv())
        out.say(f"wrote {written}")
        payload["csv"] = written
    out.finish(payload)


def _write(path: Path, text: str) -> Path:
    from deltaw.errors import ConfigError

    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(
            "the file cannot be written",
            where=str(path),
            got=error.strerror or str(error),
            expected="a file in a directory that exists and may be written to",
            hint="create the directory first, or choose another file after --csv",
        ) from None
    return path
