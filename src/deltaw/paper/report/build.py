"""From records to the page."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from deltaw.errors import ConfigError
from deltaw.paper.output import write_output
from deltaw.paper.report.claims import claims
from deltaw.paper.report.compare import compare
from deltaw.paper.report.figures import PRINTED, QUALITY, figures
from deltaw.paper.report.page import Code, Details, Heading, Image, Page, Paragraph, Table
from deltaw.paper.report.stated import stated
from deltaw.paper.reproduce.records import RESULTS, Record, by_row, read_records
from deltaw.paper.tables import PrintedTable, errata, printed_tables
from deltaw.paper.tables.show import grid, heading

__all__ = ["build", "write_report"]

Rows = Mapping[str, list[Record]]


def build(directory: Path = RESULTS) -> Page:
    """Make the page.

    Args:
        directory: of the records; those of the package by default.

    Returns:
        The page, with the figures that belong to it.

    Raises:
        ConfigError: if there is no record.
        CheckpointError: if a record cannot be read.
    """
    records = read_records(directory)
    if not records:
        raise ConfigError(
            "there are no results to report",
            where=str(directory),
            got="no record",
            expected="files that `deltaw paper run` wrote",
            hint="run `deltaw paper run e2e/lora-qv-r4 --quick` for a first one, or leave --results out",
        )
    rows = by_row(records)
    page = Page("LoRA: the paper beside this library")
    page.add(
        Paragraph(text=
            "Every table and figure of arXiv:2106.09685 as printed, beside what was run here: on small models and real "
            "data, with the number of seeds, the date, the machine and the commands. The models differ from the "
            "paper's by factors of 40 to 55,000 in size, so that the figures themselves cannot agree; what can is who "
            "comes before whom."
        ),
        Heading(text="What holds at this scale"),
        Table(head=("claim of the paper", "here", "figures"), rows=claims(rows)),
    )  # fmt: skip
    page.files |= {name: text for name, text in figures(rows).items() if text}
    if QUALITY in page.files:
        page.add(Image(name=QUALITY, text="quality over parameters"))
    _counts(page)
    page.add(Heading(text="Tables and figures"))
    for printed in printed_tables():
        _section(page, printed, rows, directory)
    _errata(page)
    _sources(page, rows)
    return page


def _counts(page: Page) -> None:
    """The exact numbers, which need no training."""
    from deltaw.paper.cases import paper_cases

    cases = paper_cases()
    page.add(
        Heading(text="Exact numbers"),
        Paragraph(text=f"{len(cases)} counts and sizes follow from shapes alone. `deltaw paper counts` computes them, "
                  "from the modules of models on the meta device where there are any, and compares."),
        Details(summary="all of them", blocks=[
            Table(head=("case", "exact", "the paper's label", "errata"), rows=[
                (case.name, _exact(case.exact), case.label, " ".join(case.errata)) for case in cases
            ])
        ]),
    )  # fmt: skip


def _exact(value: int | Fraction) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.6g}"


def _section(page: Page, printed: PrintedTable, rows: Rows, directory: Path) -> None:
    name = heading(printed)
    page.add(Heading(text=f"{name}: {printed.title}", level=3))
    state = "can be reproduced" if printed.reproducible == "yes" else printed.reproducible
    words = [f"Full size: {state}", printed.why, f"needs {printed.needs}" if printed.needs else ""]
    page.add(Paragraph(text="; ".join(filter(None, words)) + "."))
    beside = [*compare(printed, rows), *stated(printed, rows)]
    mine = {row: made for row, made in rows.items() if made[0].table == printed.id and made[0].sheet}
    page.add(*beside)
    for made in mine.values():
        _sheet(page, made[0], directory)
    if printed.id == "figure2":
        page.add(
            Paragraph(text="The paper's, from its Tables 15 and 4:"), Image(name=PRINTED, text="Figure 2 as printed")
        )
    elif not beside and not mine:
        page.add(Paragraph(text=_absent(printed)))
    _printed(page, printed)


def _absent(printed: PrintedTable) -> str:
    if printed.id in ("table9", "table10", "table11", "table12", "table17"):
        return "Ours: the settings are configurations, `deltaw paper recipe`, each equal to the printed ones."
    if printed.id in ("table13", "table14"):
        return "Ours: not run. The readers, metrics and settings are there: `deltaw train --task webnlg` or `dart`."
    if printed.id == "table4":
        return "Ours: not run on these tasks; the methods stand beside Table 15, on E2E."
    return "Ours: not run at any scale."


def _sheet(page: Page, record: Record, directory: Path) -> None:
    """The table and figure of an analysis, long ones folded."""
    sheet = record.sheet
    page.add(Paragraph(text=f"Ours, {record.title}: {sheet['title']}."))
    if record.figure:
        page.files[record.figure] = (directory / record.figure).read_text(encoding="utf-8")
        page.add(Image(name=record.figure, text=record.title))
    head = tuple(sheet["rows"][0]) if sheet["rows"] else ()
    cells = [tuple(_cell(value) for value in row.values()) for row in sheet["rows"]]
    made = Table(head=head, rows=cells)
    page.add(Details(summary=f"{len(cells)} rows", blocks=[made]) if len(cells) > 14 else made)
    page.add(*(Paragraph(text=f"Note: {note}.") for note in sheet["notes"]))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _printed(page: Page, printed: PrintedTable) -> None:
    """The paper's table as it stands there."""
    head, rows = grid(printed)
    notes = [*(f"{mark} {meaning}" for mark, meaning in printed.marks.items()), *printed.notes]
    notes += [f"see {name} below" for name in printed.errata]
    blocks: list[Table | Paragraph] = [Table(head=head, rows=rows), *(Paragraph(text=note) for note in notes)]
    page.add(Details(summary=f"{heading(printed)} as printed ({printed.metric})", blocks=blocks))


def _errata(page: Page) -> None:
    rows = [(name, item.what, item.evidence, item.choice) for name, item in errata().items()]
    page.add(Heading(text="Errata"), Table(head=("", "what", "evidence", "here"), rows=rows))


def _sources(page: Page, rows: Rows) -> None:
    """Where every number comes from."""
    lines = []
    for made in rows.values():
        for record in made:
            inputs = ", ".join(f"{name} {digest[:8]}" for name, digest in record.inputs.items())
            lines.append((record.command, str(record.seed), record.date, f"{record.seconds:.0f} s", inputs))
    machines = sorted({record.hardware for made in rows.values() for record in made})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r.versions.items()) for made in rows.values() for r in made})
    page.add(
        Heading(text="Where the numbers come from"),
        Paragraph(text=f"{sum(map(len, rows.values()))} runs on {'; '.join(machines)}. {'; '.join(versions)}."),
        Table(head=("command", "seed", "date", "took", "inputs, SHA-256"), rows=lines),
        Details(
            summary="what each command runs", blocks=[Code(text="\n".join(made[0].steps)) for made in rows.values()]
        ),
    )  # fmt: skip


def write_report(page: Page, directory: Path) -> tuple[Path, ...]:
    """Write the page and its figures, all or none.

    Args:
        page: the page.
        directory: made if absent.

    Returns:
        ``report.md``, ``report.html`` and the figures.

    Raises:
        ConfigError: if the disk refuses.
    """
    files = {"report.md": page.markdown(), "report.html": page.html(), **page.files}
    return write_output(directory, {name: text.encode() for name, text in files.items()}, "the report")
