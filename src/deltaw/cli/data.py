"""``deltaw data``: look at a data file the way training does, before anything is trained."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options, hush, next_commands
from deltaw.cli._fields import field_options, take_fields
from deltaw.cli._tasks import Asked, Read, other_split, read_rows, task_options
from deltaw.train.config import DataConfig
from deltaw.train.fields import specs

if TYPE_CHECKING:
    from deltaw.train.data import Dataset, Format, Rows

__all__ = ["command"]

_BAR = 40


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A tokenizer, the rows and what they mean."""

    config: DataConfig
    asked: Asked
    tokenizer: Any
    rows: Rows
    format: Format
    labels: tuple[str, ...]
    max_length: int
    length_reason: str


@click.group("data")
def command() -> None:
    """Look at a data file the way training does.

    show prints examples with the trained tokens marked; check tokenizes the whole file and reports what becomes of it.
    """


def _shared(*skip: str) -> Callable[[Any], Any]:
    """The options of both commands; a field that a command does not read gets no flag there."""

    def decorate(function: Any) -> Any:
        for option in (
            common_options,
            field_options(DataConfig, "data", skip=("valid_fraction", "shuffle_pairs", *skip)),
            task_options("train"),
            click.option("--model", required=True, help="Hub name, model directory, or one with a tokenizer only."),
        ):
            function = option(function)
        return function

    return decorate


@command.command("show", short_help="Print examples with the trained tokens marked.")
@_shared("valid", "max_truncated")
@click.option("--rows", "count", type=click.IntRange(1), default=3, show_default=True, help="How many rows.")
@click.option("--skip", type=click.IntRange(0), default=0, show_default=True, help="Rows to pass over first.")
def show(*, model: str, count: int, skip: int, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Print examples with the trained tokens marked: green, and between [[ and ]]."""
    out = Output(quiet=quiet, as_json=as_json)
    opened = _open(model, flags)
    dataset = _tokenize(opened, _picked(opened, skip, count), count_only=True)
    examples = list(_examples(opened, dataset, skip, skip + count))
    out.say(f"data      {opened.rows.path} ({opened.rows.kind}, {len(opened.rows):,} rows)")
    out.say(*(f"note      {note}" for note in opened.rows.notes))
    out.say(f"format    {opened.format.name}: {opened.format.reason}")
    if opened.format.task == "causal":
        out.say(f"template  {dataset.report.template}")
    out.say(f"length    at most {opened.max_length:,} tokens ({opened.length_reason})")
    for example in examples:
        out.say(
            "", f"{example['place']}: {example['tokens']:,} tokens, {example['trained']:,} trained{example['label']}"
        )
        _print(out, example["marked"])
    out.say("", next_commands(f"deltaw data check --model {shlex.quote(model)} {_typed(opened, same_split=True)}"))
    out.finish({
        "format": opened.format.name, "task": opened.format.task, "reason": opened.format.reason,
        "examples": [{**example, "marked": str(example["marked"])} for example in examples],
    })  # fmt: skip


@command.command("check")
@_shared()
def check(*, model: str, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Tokenize a whole file and report what becomes of its rows."""
    from deltaw.train.data import note_overlap

    out = Output(quiet=quiet, as_json=as_json)
    opened = _open(model, flags)
    dataset = _tokenize(opened, opened.rows)
    reports = {"train": dataset.report}
    config = opened.config
    if config.valid is not None:
        held = _held(opened, config.valid)
        other = dataclasses.replace(opened, rows=held.rows, format=held.format)
        valid = _tokenize(other, held.rows, labels=dataset.labels or None)
        note_overlap(dataset, valid)
        reports["valid"] = valid.report
    for report in reports.values():
        out.say(report, *_histogram(report.histogram), "")
    out.say(next_commands(f"deltaw train --model {shlex.quote(model)} {_typed(opened)}"))
    out.finish(reports)


def _held(opened: _Opened, valid: str) -> Read:
    """The validation rows: another file, or another split of the task."""
    from deltaw.train.data import detect, load_rows

    config = opened.config
    if opened.asked.words():
        return other_split(config, opened.asked, valid)
    rows = load_rows(valid, separator=config.separator, cache_dir=config.cache_dir)
    found = detect(rows, format=opened.format.name, columns=config.columns, task=opened.format.task)
    return Read(rows=rows, format=found)


def _open(model: str, flags: dict[str, Any]) -> _Opened:
    from deltaw.errors import ConfigError
    from deltaw.train.data import context_length, load_tokenizer

    asked = Asked(task=flags.pop("task"), split=flags.pop("split"), seed=flags.pop("seed"), usual="train")
    config = DataConfig(**take_fields(DataConfig, "data", flags))
    if not config.path:
        hint = "deltaw data show --model DIR --data rows.jsonl"
        raise ConfigError("no data file is named", where="--data", got="nothing", expected="a path", hint=hint)
    read = read_rows(config, asked)
    hush()
    tokenizer = load_tokenizer(model)
    length, reason = context_length(model, tokenizer)
    if config.max_length is not None:
        length, reason = config.max_length, "as asked"
    return _Opened(
        config=config, asked=asked, tokenizer=tokenizer, rows=read.rows, format=read.format, labels=read.labels,
        max_length=length, length_reason=reason,
    )  # fmt: skip


def _picked(opened: _Opened, skip: int, count: int) -> Rows:
    """The rows to tokenize: those shown, or all where class names have to be collected."""
    from deltaw.errors import ConfigError

    if skip >= len(opened.rows):
        got = f"--skip {skip} of {len(opened.rows):,} rows"
        hint = "pass a smaller --skip."
        raise ConfigError("there are no such rows", where="--skip", got=got, expected="rows to show", hint=hint)
    if opened.format.task == "classification":
        return opened.rows
    return opened.rows.select(range(skip, min(skip + count, len(opened.rows))))


def _tokenize(opened: _Opened, rows: Rows, *, labels: list[str] | None = None, count_only: bool = False) -> Dataset:
    from deltaw.train.data import build

    config = opened.config
    return build(
        rows,
        opened.format,
        opened.tokenizer,
        max_length=opened.max_length,
        loss_on=config.loss_on,
        truncation=config.truncation,
        # A few rows say nothing about the share of a file that is too long.
        max_truncated=1.0 if count_only else config.max_truncated,
        template=config.template,
        template_options=config.template_options,
        system=config.system,
        joiner=config.joiner,
        end_token=config.end_token,
        bad_rows=config.bad_rows,
        labels=labels or list(opened.labels) or None,
        cache_dir=config.cache_dir,
    )


def _examples(opened: _Opened, dataset: Dataset, start: int, stop: int) -> Iterator[dict[str, Any]]:
    from deltaw.train.data import show as marked

    whole = opened.format.task == "classification"
    for example in dataset:
        row = example.row if whole else example.row + start
        if not start <= row < stop:
            continue
        label = "" if example.label is None else f", label {example.label:g}"
        if dataset.labels:
            label = f", label {dataset.labels[int(example.label or 0)]!r} ({example.label})"
        yield {
            "place": opened.rows.number(row),
            "tokens": len(example.ids),
            "trained": sum(weight > 0 for weight in example.weights),
            "label": label,
            "ids": example.ids,
            "weights": example.weights,
            "marked": marked(example, opened.tokenizer),
        }


def _typed(opened: _Opened, *, same_split: bool = False) -> str:
    """The settings as flags again, for the next command."""
    config, words = opened.config, list[str]()
    if opened.asked.words():
        words.append(opened.asked.words() if same_split else f"--task {opened.asked.task}")
    for spec in specs(DataConfig, "data"):
        value = getattr(config, spec.name)
        if value == spec.default:
            continue
        pairs = [f"{name}={item}" for name, item in value.items()] if isinstance(value, Mapping) else [str(value)]
        words.extend(f"{spec.flag} {shlex.quote(text)}" for text in pairs)
    return " ".join(words)


def _print(out: Output, text: Any) -> None:
    """Print with colour on a terminal that has it; the marks stand in the text either way."""
    if out.talks:
        from rich.console import Console

        Console(soft_wrap=True, highlight=False).print(text)


def _histogram(bars: list[tuple[int, int]]) -> Iterator[str]:
    most = max((count for _, count in bars), default=1)
    yield "tokens per example"
    for bound, count in bars:
        yield f"{'up to':>7} {bound:>6,}  {'#' * max(1, round(_BAR * count / most))} {count:,}"
