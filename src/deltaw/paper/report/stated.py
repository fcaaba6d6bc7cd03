"""What stands beside the paper's statements: counts that need no run, and figures drawn under another heading."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deltaw.paper.report.page import Paragraph, Table
from deltaw.paper.reproduce.records import Record
from deltaw.paper.tables import PrintedTable, Row

__all__ = ["stated"]

Rows = Mapping[str, list[Record]]
Blocks = list[Table | Paragraph]

DRAWN = {
    "figure2": ("e2e/full", "What holds at this scale", "BLEU on E2E, a line for each method"),
    "figure6": ("subspace/ranks", "Figure 3", "every block of the small model, one row each"),
    "figure7": ("subspace/seeds", "Figure 4", "every block of the small model, one row each"),
    "figure8": ("subspace/base", "Table 7", "every block of the small model, beside a random matrix"),
}
"""Figure of the paper -> our row, the heading under which it is drawn, and what it holds."""

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
TASKS_STATED = {"WikiSQL": "wikisql", "SAMSum": "samsum", "E2E": "e2e", "DART": "dart", "WebNLG": "webnlg"}


def stated(printed: PrintedTable, rows: Rows) -> Blocks:
    """Say what of ours belongs beside a statement of the paper.

    Args:
        printed: a table or figure of the paper, its claims of cost, or its data sets.
        rows: the records by row.

    Returns:
        Blocks of the page; empty where there is nothing.
    """
    if printed.id in DRAWN:
        row, under, what = DRAWN[printed.id]
        return [Paragraph(text=f"Ours is drawn under {under}: {what}.")] if row in rows else []
    others: dict[str, Callable[[], Blocks]] = {"claims": _claims, "datasets": lambda: _datasets(printed)}
    return others[printed.id]() if printed.id in others else []


def _claims() -> Blocks:
    """Counts from the shape of GPT-3: memory by ``deltaw paper memory``, files by ``deltaw paper counts``."""
    from deltaw.paper.cases import paper_cases
    from deltaw.paper.memory import StepShape, memory_account

    lines = [(f"memory, {claim.name}", claim.paper or "-", claim.ours) for claim in memory_account(StepShape()).claims]
    for case in paper_cases():
        if case.group in ("deployment", "checkpoint") and case.name.removeprefix("GPT-3 175B ") in _FILES:
            name = _FILES[case.name.removeprefix("GPT-3 175B ")]
            exact = f"{int(case.exact):,} bytes" if case.unit == "bytes" else f"{float(case.exact):,.1f} times"
            lines.append((name, case.label, f"{case.formula} = {exact}"))
    return [
        Table(head=("", "paper", "ours"), rows=lines),
        Paragraph(text="Ours from GPT-3's shape alone, without a run."),
    ]


_FILES = {
    "qv r=4, fp16": "checkpoint of LoRA qv r=4, fp16",
    "checkpoint, full over LoRA qv r=4": "checkpoint, full over LoRA",
    "trained values, full over LoRA qv r=4": "trained values, full over LoRA",
    "100 tasks, LoRA qv r=4": "100 tasks, LoRA",
    "100 tasks, full fine-tuning": "100 tasks, full fine-tuning",
}
"""Case -> what it is called beside the claims."""


def _datasets(printed: PrintedTable) -> Blocks:
    """Sizes of the complete files, as ``deltaw paper tasks`` holds them against what is in a directory."""
    from deltaw.train.data.tasks import TASKS

    lines = []
    for row in printed.rows:
        task = TASKS[TASKS_STATED[row.id]]
        sizes = {title: task.splits[name].rows for title, name in SPLITS.items() if name in task.splits}
        line = [row.id]
        for title in SPLITS:
            line += [_printed(row, title), _number(sizes.get(title))]
        known = [size for size in sizes.values() if size is not None]
        line += [_printed(row, "all"), _number(sum(known) if len(known) == len(sizes) else None)]
        lines.append(tuple(line))
    head = [""]
    for title in (*SPLITS, "all"):
        head += [f"{title} paper", f"{title} ours"]
    return [
        Table(head=tuple(head), rows=lines),
        Paragraph(text="Ours: pairs of input and text in the released files. `deltaw paper tasks` counts what is in a "
                  "directory and names the differences."),
    ]  # fmt: skip


def _printed(row: Row, column: str) -> str:
    return row.cells[column].text if column in row.cells else "-"


def _number(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"
