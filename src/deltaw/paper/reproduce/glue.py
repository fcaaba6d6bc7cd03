"""Rows on GLUE: the methods of Table 2 on a small encoder, and tasks that start from the MNLI adapter.

RoBERTa's head holds a dense layer, which every method of the paper trains (ERR17). BERT's is the pooler, which belongs
to the base: full fine-tuning trains it, the others do not but for the rows that say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaw.paper.analyses.low_data import protocol
from deltaw.paper.recipe_tables import SIZES, cells
from deltaw.paper.reproduce.row import TIMES, Commands, Outputs, Row
from deltaw.train.best import task_metric

__all__ = ["FEW", "FROM_MNLI", "LONG", "ROWS", "TASKS"]

BATCH, ROWS_READ = 16, 8192
LORA = ("--method", "lora", "--rank", "8", "--alpha", "16", "--target", "query", "--target", "value", "--lr", "1e-3")
METHODS = {
    "full": ("FT", ("--method", "full", "--lr", "1e-4")),
    "bias": ("BitFit", ("--method", "bias", "--lr", "3e-3")),
    "adapter-h": ("Adapter H", ("--method", "adapter-h", "--bottleneck", "8", "--lr", "1e-3")),
    "lora": ("LoRA", LORA),
    "lora-pooler": ("LoRA and the pooler", (*LORA, "--train-also", "pooler")),
}
ENCODER = "all-MiniLM-L6-v2, a BERT-shaped encoder of 22.7M parameters"


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task: its name for ``--task``, its folder, its title in the report, its steps, rows and batch."""

    name: str
    folder: str
    title: str
    steps: int
    rows: int = ROWS_READ
    batch: int = BATCH

    @property
    def metric(self) -> str:
        """What the paper reports for it."""
        found = task_metric(self.name)
        assert found is not None, self.name
        return found


TASKS = (
    _Task(name="cola", folder="CoLA", title="CoLA", steps=1000),
    _Task(name="sst2", folder="SST-2", title="SST-2", steps=1000),
    _Task(name="mrpc", folder="MRPC", title="MRPC", steps=300),
    _Task(name="rte", folder="RTE", title="RTE", steps=250),
    _Task(name="stsb", folder="STS-B", title="STS-B", steps=500),
    _Task(name="mnli_9k", folder="MNLI_9k", title="MNLI, a subset of 9k", steps=500),
    _Task(name="qnli_9k", folder="QNLI_9k", title="QNLI, a subset of 9k", steps=300),
)

MNLI = next(task for task in TASKS if task.name == "mnli_9k")
FROM_MNLI = tuple(task for task in TASKS if task.name in ("mrpc", "rte", "stsb"))
LONG = tuple(dataclasses.replace(task, steps=TIMES * task.steps) for task in TASKS if task.name in ("mrpc", "stsb"))


FEW = {
    column: _Task(
        name=f"sst2_{column}", folder="SST-2", title="SST-2", steps=run.steps, rows=run.examples, batch=run.batch
    )
    for column, run in zip(SIZES, (run for run in protocol().runs if run.method == "LoRA"), strict=True)
    if column in ("100", "1k")
}
"""Column of Table 17 -> a draw of SST-2, trained as long and with as large a batch as stands there."""


def _prefix(method: str, column: str, rate: str) -> tuple[str, ...]:
    """The lengths of Table 17; its rates are for a far larger model."""
    cell = cells("table17", method, column)
    lengths = ("--prefix-length", str(cell["prefix_length"]), "--infix-length", str(cell["infix_length"]))
    return ("--method", method, *lengths, "--lr", rate)


def _train(task: _Task, method: tuple[str, ...], quick: bool, out: str) -> tuple[str, ...]:
    return (
        "train", "--model", "{encoder}", "--task", task.name, "--data", "{data}/glue", *method,
        "--steps", str(3 if quick else task.steps), "--batch-size", str(task.batch), "--limit", str(task.rows),
        "--max-length", "128",
        "--truncation", "cut", "--max-truncated", "1", "--warmup", "0.06", "--eval-every", "0",
        "--eval-limit", "64" if quick else "1600", "--save-every", "0", "--threads", "1", "--seed", "{seed}",
        "--output", f"{{out}}/{out}", "--overwrite", "--json",
    )  # fmt: skip


def _values(task: _Task, printed: Outputs) -> Mapping[str, float]:
    """What all steps together made: the state with the lowest loss may be the first, which learned nothing."""
    train = printed["train"]
    return {
        task.title: (train["last"] or train["after"])[task.metric],
        "before": train["before"][task.metric],
        "parameters": train["parameters"],
    }


def _settings(task: _Task, method: tuple[str, ...]) -> dict[str, object]:
    return {
        "method": " ".join(method), "steps": task.steps, "batch": task.batch, "longest": 128,
        "training rows, at most": task.rows,
    }  # fmt: skip


def _row(name: str, task: _Task, title: str, method: tuple[str, ...], table: str = "table2") -> Row:
    def commands(quick: bool) -> Commands:
        return {"train": _train(task, method, quick, "trained")}

    def values(printed: Outputs, output: Path) -> Mapping[str, float]:
        return _values(task, printed)

    return Row(
        name=name, title=title, table=table, on=ENCODER, inputs=(f"glue/{task.folder}", "{encoder}"),
        commands=commands, values=values, settings=_settings(task, method),
    )  # fmt: skip


def _from_mnli(task: _Task) -> Row:
    """LoRA that starts from the adapter of the MNLI row, its head left behind."""

    def commands(quick: bool) -> Commands:
        start = ("--adapter", "{out}/mnli", "--new-head", *LORA[-2:])
        return {
            "mnli": _train(MNLI, LORA, quick, "mnli"),
            "train": _train(task, start, quick, "trained"),
        }

    def values(printed: Outputs, output: Path) -> Mapping[str, float]:
        return _values(task, printed)

    return Row(
        name=f"glue/{task.name}-lora-from-mnli", title="LoRA, from the MNLI adapter", table="table2", on=ENCODER,
        inputs=(f"glue/{task.folder}", "glue/MNLI_9k", "{encoder}"), commands=commands, values=values,
        settings={**_settings(task, LORA), "starts from": f"{MNLI.steps} steps on the MNLI subset"},
    )  # fmt: skip


def _low_data(column: str, task: _Task) -> tuple[Row, ...]:
    """The methods of Table 16 on examples drawn from SST-2."""
    methods = {
        "full": METHODS["full"],
        "prefix-embedding": ("PreEmbed", _prefix("prefix-embedding", column, "1e-2")),
        "prefix-layer": ("PreLayer", _prefix("prefix-layer", column, "3e-3")),
        "lora": METHODS["lora"],
    }
    return tuple(_row(f"low-data/{task.name}-{key}", task, *method, table="table16") for key, method in methods.items())


ROWS = (
    *(_row(f"glue/{task.name}-{key}", task, *METHODS[key]) for task in TASKS for key in METHODS),
    *(_from_mnli(task) for task in FROM_MNLI),
    *(_row(f"glue/{task.name}-{key}-long", task, *METHODS[key]) for task in LONG for key in ("full", "lora")),
    *(row for column, task in FEW.items() for row in _low_data(column, task)),
)
