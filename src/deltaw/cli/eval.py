"""``deltaw eval``: score a model on a data file, the base beside the adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options, hush, next_commands, plain
from deltaw.cli._fields import field_options, take_fields
from deltaw.cli._models import model_options, take_model
from deltaw.cli._tasks import Asked, Read, read_rows, task_options
from deltaw.errors import ConfigError, DataError
from deltaw.train.config import DataConfig

if TYPE_CHECKING:
    from deltaw.ship.opening import ModelChoice, Opened
    from deltaw.ship.scoring import Score
    from deltaw.train.data import Dataset, Format, Rows

__all__ = ["command"]

SKIPPED = ("valid", "valid_fraction", "shuffle_pairs")


@click.command("eval")
@model_options
@field_options(DataConfig, "data", skip=SKIPPED)
@task_options("valid")
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True,
              help="Tokens in a batch at most, padding included.")  # fmt: skip
@click.option("--rows", "rows_file", metavar="FILE", help="Write one JSON line for each row; the file must not exist.")
@common_options
def command(
    *,
    task: str | None,
    split: str | None,
    seed: int | None,
    batch_tokens: int,
    rows_file: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Score a model on a data file, the base beside the adapter.

    The rows are read the way deltaw train reads them. Language models: loss per trained token in nats, perplexity,
    share of tokens and of whole answers that greedy choice gets right. Classes: accuracy, Matthews correlation, F1.
    Values: Pearson and Spearman correlation.
    """
    out = Output(quiet=quiet, as_json=as_json)
    target = None if rows_file is None else _new_file(rows_file)
    hush()
    choice = take_model(flags)
    given = take_fields(DataConfig, "data", flags)
    data = DataConfig(**given)
    asked = Asked(task=task, split=split, seed=seed, usual="valid")
    read = _read(data, asked)
    opened, examples = _prepare(choice, data, given, read.rows, read.format)
    out.say(*([opened.report] if opened.report is not None else []))
    out.say(examples.report)
    scores = _scores(opened, examples, batch_tokens)
    out.say(_table(scores, len(examples)))
    if opened.heads and opened.adapter:
        out.say("note: the base has no trained head of its own, so there is nothing of it to show beside the adapter")
    if target is not None:
        _write_rows(target, scores)
        out.say(f"wrote {len(examples):,} lines to {target}")
    out.say(next_commands(*_next(opened, data, asked)))
    out.finish(
        {
            "model": opened.source,
            "adapter": opened.adapter,
            "task": opened.task,
            "examples": len(examples),
            **{side: score.metrics for side, score in scores.items()},
        }
    )


def _read(data: DataConfig, asked: Asked) -> Read:
    if not data.path:
        hint = "deltaw eval --model DIR --data rows.jsonl"
        raise ConfigError("no data file is named", where="--data", got="nothing", expected="a path", hint=hint)
    return read_rows(data, asked)


def _prepare(
    choice: ModelChoice, data: DataConfig, given: dict[str, Any], rows: Rows, kind: Format
) -> tuple[Opened, Dataset]:
    """Open the model for the rows' task; tokenize the rows with its labels, written as its adapter was trained."""
    from deltaw.ship.opening import open_model
    from deltaw.train.data import Options, build, context_length

    opened = open_model(choice, task=kind.task)
    if opened.task != kind.task:
        raise DataError(
            "the rows do not fit the model",
            where=data.path,
            got=f"format {kind.name} ({kind.reason}), which is {kind.task}",
            expected=f"rows for {opened.task}",
            hint="check --data, or say --task",
        )
    length = data.max_length or context_length(opened.source, opened.tokenizer)[0]
    names = [field.name for field in dataclasses.fields(Options) if field.name != "max_length"]
    recorded = {} if opened.form is None else opened.form.settings()
    options = {
        name: getattr(data, name) if name in given else recorded.get(name, getattr(data, name)) for name in names
    }
    labels = _class_names(opened, rows, kind) if kind.task == "classification" else None
    examples = build(
        rows, kind, opened.tokenizer, max_length=length, labels=labels, cache_dir=data.cache_dir, **options
    )
    if labels is not None and tuple(labels) != opened.labels:
        opened = dataclasses.replace(opened, labels=tuple(labels))
    return opened, examples


def _class_names(opened: Opened, rows: Rows, kind: Format) -> list[str]:
    """Names by position: the model's own; positions as names where it has placeholders and the rows hold numbers."""
    from deltaw.train.data.detect import sample_rows

    placeholders = tuple(f"LABEL_{index}" for index in range(len(opened.labels)))
    if opened.labels != placeholders:
        return list(opened.labels)
    seen = sorted({str(kind.parse(row).label) for row in sample_rows(rows)})  # type: ignore[union-attr]
    numbers = [str(index) for index in range(len(opened.labels))]
    if set(seen) <= set(numbers):
        return numbers
    if set(seen) <= set(placeholders):
        return list(placeholders)
    raise DataError(
        "the model does not say which class is which",
        where=opened.source,
        got=f"placeholders {', '.join(placeholders)}, and labels {', '.join(seen[:6])} in the rows",
        expected="class names recorded with the model or the adapter, or labels that are positions from 0",
        hint="write the labels of the rows as 0, 1, ... in the model's order",
    )


def _scores(opened: Opened, examples: Dataset, batch_tokens: int) -> dict[str, Score]:
    from deltaw.ship.opening import base_alone
    from deltaw.ship.scoring import score

    found = {}
    if opened.adapter is None:
        return {"base": score(opened, examples, batch_tokens=batch_tokens)}
    if not opened.heads:
        with base_alone(opened):
            found["base"] = score(opened, examples, batch_tokens=batch_tokens)
    found["adapter"] = score(opened, examples, batch_tokens=batch_tokens)
    return found


def _table(scores: dict[str, Score], count: int) -> str:
    from deltaw.reports import table
    from deltaw.train.report import metric

    sides = list(scores)
    header = [f"{count:,} examples", *sides, *(["change"] if len(sides) == 2 else [])]
    rows = []
    for name in scores[sides[0]].metrics:
        values = [scores[side].metrics[name] for side in sides]
        cells = [metric(name, value) for value in values]
        change = values[-1] - values[0]
        rows.append(
            [name, *cells, *([f"{'+' if change >= 0 else ''}{metric(name, change)}"] if len(sides) == 2 else [])]
        )
    return table(header, rows)


def _new_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists() or not path.parent.is_dir():
        raise ConfigError(
            "the rows cannot be written there",
            where=f"--rows {name}",
            got="a file that exists" if path.exists() else "a directory that does not exist",
            expected="a new file in an existing directory",
            hint="choose another name",
        )
    return path


def _write_rows(path: Path, scores: dict[str, Score]) -> None:
    from deltaw.train.files import write_text

    lines = []
    for together in zip(*(score.rows for score in scores.values()), strict=True):
        sides = {side: _without_row(plain(row)) for side, row in zip(scores, together, strict=True)}
        lines.append(json.dumps({"row": together[0].row, **sides}, allow_nan=False))
    write_text(path, "\n".join(lines) + "\n")


def _without_row(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "row" and value is not None}


def _next(opened: Opened, data: DataConfig, asked: Asked) -> list[str]:
    from deltaw.baselines import is_baseline

    if opened.adapter is None and asked.words():
        return [f"deltaw train --model {opened.source} --task {asked.task} --data {data.path}"]
    if opened.adapter is None:
        return [f"deltaw train --model {opened.source} --data FILE --valid {data.path}"]
    if is_baseline(opened.adapter):
        return [f"deltaw eval --model {opened.source} --adapter {opened.adapter} --data OTHER"]
    return [
        f"deltaw merge --model {opened.source} --adapter {opened.adapter} --output {Path(opened.adapter).name}-merged"
    ]
