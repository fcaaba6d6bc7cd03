"""The paper's printed results as runs: figure 2 again from Table 15, alone or beside one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltaw.errors import ConfigError
from deltaw.paper.analyses.quality import Quality, Scored, quality, read_quality
from deltaw.paper.labels import read_label
from deltaw.paper.models import PAPER_MODELS
from deltaw.paper.tables import TABLE_IDS, PrintedTable, printed_table, printed_tables
from deltaw.paper.tables.show import heading

__all__ = ["figure2", "gather_quality", "is_printed", "printed_runs"]

_FIGURE, _LEVEL = "figure2", "table4"


def is_printed(source: str) -> bool:
    """Say whether a source of results is a printed table.

    Args:
        source: as typed.

    Returns:
        True for a name of ``TABLE_IDS`` that is no file here.
    """
    return source in TABLE_IDS and not Path(source).exists()


def printed_runs(name: str) -> list[Scored]:
    """A printed table as runs: one for each cell that is a score of a method with a size.

    Sizes are the printed ones, rounded or cut as they are. Columns where lower is better are left out. Where a table
    has several models, the method's name begins with the model's.

    Args:
        name: one of ``TABLE_IDS``; a figure stands for the table that holds its data.

    Returns:
        The runs in the order of the paper; the row's name is the setting.

    Raises:
        ConfigError: if there is no such table, or none of its rows is a method with a size.

    Example:
        >>> printed_runs("table15")[0]
        Scored(method='PreEmbed', parameters=400000, score=55.9, task='WikiSQL', setting='PreEmbed lp=32, li=8')
    """
    table = _data_of(name)
    shown = [column.id for column in table.columns if column.better == "higher"]
    rows = [row for row in table.rows if row.method and row.parameters]
    several = len({row.model for row in rows}) > 1
    runs = []
    for row in rows:
        digits, unit = read_label(row.parameters)
        for task in shown:
            cell = row.cells.get(task)
            if cell is not None and cell.value is not None:
                method = f"{PAPER_MODELS[row.model].title} {row.method}" if several else row.method
                runs.append(
                    Scored(
                        method=method, parameters=round(digits * unit.numerator / unit.denominator), score=cell.value,
                        task=task, setting=row.id,
                    )
                )  # fmt: skip
    if not runs:
        usable = [each.id for each in printed_tables() if any(row.method and row.parameters for row in each.rows)]
        raise ConfigError(
            "this table has no quality over parameters",
            where=name,
            got="no row that is a method with a number of trained values and a score",
            expected=f"one of {_FIGURE}, {', '.join(usable)}",
            hint=f"deltaw paper tables {name} prints it; deltaw paper quality {_FIGURE} draws the paper's figure.",
        )
    return runs


def figure2() -> Quality:
    """The paper's figure 2 from Table 15, with full fine-tuning's scores of Table 4 as levels.

    Returns:
        The figure's value.

    Source:
        arXiv:2106.09685, figure 2, Tables 4 and 15.
    """
    return gather_quality([_FIGURE])


def gather_quality(sources: Sequence[str | Path], *, title: str | None = None, metric: str | None = None) -> Quality:
    """Put files of results and printed tables into one figure.

    Args:
        sources: paths of files for ``read_quality``, and names of printed tables. Beside another source, the methods of
            a printed table say which table they are of.
        title: what was scored on what; None takes that of a printed table which is alone.
        metric: name of the score; None the same.

    Returns:
        The figure's value.

    Raises:
        ConfigError: if a printed table has no quality over parameters.
        DataError: if a file cannot be read.
    """
    runs: list[Scored] = []
    levels: list[Scored] = []
    notes: list[str] = []
    for source in sources:
        if not is_printed(str(source)):
            runs += read_quality(source)
            continue
        table = _data_of(str(source))
        mark = f" ({heading(table)})" if len(sources) > 1 else ""
        runs += _marked(printed_runs(str(source)), mark)
        notes.append(f"{heading(table)}: sizes as printed, rounded or cut")
        if source == _FIGURE:
            known = [run for run in printed_runs(_LEVEL) if run.method == "FT"]
            shown = {column.id for column in table.columns}
            levels += _marked((run for run in known if run.task in shown), " (Table 4)")
    named = _named(str(sources[0])) if len(sources) == 1 and is_printed(str(sources[0])) else {}
    named |= {key: value for key, value in (("title", title), ("metric", metric)) if value is not None}
    return quality(runs, levels=levels, notes=notes, **named)


def _named(name: str) -> dict[str, str]:
    """Title and score of a printed table that is alone."""
    table = printed_table(name)
    data = _data_of(name)
    named = {"title": f"{heading(table)}: {table.title}"}
    if {column.unit for column in data.columns} == {"%"}:
        named["metric"] = f"{'accuracy' if 'accuracy' in data.metric else 'score'}, %"
    return named


def _marked(runs: Iterable[Scored], mark: str) -> list[Scored]:
    return [dataclasses.replace(run, method=run.method + mark) for run in runs]


def _data_of(name: str) -> PrintedTable:
    """A printed table, or the one that holds a figure's data."""
    table = printed_table(name)
    return printed_table(table.data) if table.data else table
