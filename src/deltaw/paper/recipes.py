"""The paper's settings as configurations that ``deltaw train --config`` reads, each deviation explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deltaw.errors import ConfigError, nearest
from deltaw.paper.recipe_errata import Change, changes, has_script, remarks, starts_from_mnli
from deltaw.paper.recipe_tables import MODELS, PARTS, TABLES, TITLES, cells
from deltaw.train.best import task_metric
from deltaw.train.config import SECTIONS, spec_of

__all__ = ["SOURCES", "Recipe", "all_recipes", "recipe"]

SOURCES = {
    "decided": "the paper's table, with what is known to be wrong in it put right",
    "printed": "the paper's table, to the letter",
    "script": "what the scripts of microsoft/LoRA do",
}

# Cells of the tables -> configuration keys.
KEYS = {
    "method": "adapter.method", "batch": "optim.batch_size", "epochs": "optim.epochs", "lr": "optim.lr",
    "warmup": "optim.warmup", "warmup_tokens": "optim.warmup_tokens", "weight_decay": "optim.weight_decay",
    "label_smoothing": "optim.label_smoothing", "rank": "adapter.rank", "alpha": "adapter.alpha",
    "dropout": "adapter.dropout", "length": "data.max_length", "head_dropout": "model.head_dropout",
    "bottleneck": "baseline.bottleneck", "prefix_length": "baseline.prefix_length",
    "infix_length": "baseline.infix_length", "beams": "decode.beams", "length_penalty": "decode.length_penalty",
    "no_repeat": "decode.no_repeat",
}  # fmt: skip
TARGETS = {"roberta": ["query", "value"], "deberta": ["query_proj", "value_proj"], "gpt2": ["c_attn[q,v]"]}
_TASK_KEY = "model.task"
STORED = ("adapter.rank", "adapter.alpha")
LONGEST_ANSWER = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One column of one row of a table.

    Args:
        table: such as ``table9``.
        row: the model, or the method.
        task: the column.
        source: a key of ``SOURCES``.
        values: dotted configuration key -> value; keys of decoding begin with ``decode.``.
        comments: key -> why its value is what it is, or what stands elsewhere.
        notes: lines for the head of the file.
    """

    table: str
    row: str
    task: str
    source: str
    values: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its path among the recipes, without an ending."""
        end = "" if self.source == "decided" else f".{self.source}"
        return f"{self.table}/{self.row}/{self.task}{end}"

    @property
    def _names_task(self) -> bool:
        """Whether training knows the task by name, and so its files."""
        return self.values[_TASK_KEY] in spec_of(_TASK_KEY).choices

    def sections(self) -> dict[str, dict[str, Any]]:
        """What ``deltaw train`` reads of it.

        Returns:
            section -> key -> value.
        """
        found: dict[str, dict[str, Any]] = {}
        for key, value in self.values.items():
            section, name = key.split(".")
            if key != _TASK_KEY or self._names_task:
                found.setdefault(section, {})[name] = value
        return {section: found[section] for section in SECTIONS if section in found}

    def decoding(self) -> dict[str, Any]:
        """The flags of ``deltaw paper decode``.

        Returns:
            Name -> value; empty where nothing is decoded.
        """
        found = {key.removeprefix("decode."): value for key, value in self.values.items() if key.startswith("decode.")}
        return found | ({"max_tokens": LONGEST_ANSWER} if found else {})

    def __str__(self) -> str:
        """The TOML file."""
        lines = [
            f"# {self.table.replace('table', 'Table ')} of arXiv:2106.09685, {TITLES[self.table]}: "
            f"{self.row}, {self.task}.",
            f"# {self.source}: {SOURCES[self.source]}.",
            *(f"# {note}." for note in self.notes),
            *(f"# {line}" for line in self._decode_lines()),
        ]
        if not self._names_task:
            lines.append(f"# the task is {self.values[_TASK_KEY]}: choose its files with --data")
        for section, table in self.sections().items():
            lines += ["", f"[{section}]"]
            for name, value in table.items():
                comment = self.comments.get(f"{section}.{name}")
                lines.append(f"{name} = {json.dumps(value)}" + (f"  # {comment}" if comment else ""))
        return "\n".join(lines) + "\n"

    def _decode_lines(self) -> list[str]:
        found = self.decoding()
        if not found:
            return []
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.items())
        said = [f"{key}: {text}" for key, text in self.comments.items() if key.startswith("decode.")]
        head = f"deltaw paper decode --model {self.values['model.path']} --adapter OUT --task {self.task} --data DIR"
        return [*said, "then:", f"  {head} {flags} --output ANSWERS"]


def recipe(table: str, row: str, task: str, source: str = "decided") -> Recipe:
    """Make the settings of one column of one row.

    Args:
        table: table9, table10, table11, table12 or table17.
        row: a model, or a method.
        task: a column.
        source: a key of ``SOURCES``.

    Returns:
        The recipe; its ``str`` is the TOML file.

    Raises:
        ConfigError: for names that do not exist, or where the reference has no script.

    Source:
        Hu et al. 2021, arXiv:2106.09685, appendix D; microsoft/LoRA at c4593f0.

    Example:
        >>> found = recipe("table10", "deberta-v2-xxlarge", "mnli")
        >>> found.values["adapter.rank"], recipe(*found.name.split("/"), "printed").values["adapter.rank"]
        (16, 8)
    """
    _check("table", table, TABLES)
    _check("row", row, TABLES[table])
    _check("task", task, PARTS[table])
    _check("source", source, SOURCES)
    if source == "script" and not has_script(table, row, task):
        raise ConfigError(
            "the reference has no script for this",
            where=f"{table}, {row}, {task}",
            got="--as script",
            expected="--as decided or --as printed",
            hint="drop --as script",
        )
    printed, known = _printed(table, row, task), changes(table, row, task)
    notes = [*remarks(table, row, task)]
    if starts_from_mnli(row, task):
        kept = {key: printed.pop(key) for key in STORED}
        final = {change.key: _chosen(change, source, kept[change.key]) for change in known if change.key in kept}
        stored = ", ".join(f"{key.split('.')[1]} {value:g}" for key, value in (kept | final).items())
        notes.append(f"it starts from the best MNLI adapter: add --adapter DIR, which brings {stored}")
        printed.pop("adapter.targets")
        printed["adapter.new_head"] = True
        known = [change for change in known if change.key not in STORED]
    values, comments = dict(printed), {}
    for change in known:
        chosen = _chosen(change, source, printed.get(change.key))
        if chosen is not None:
            values[change.key] = chosen
        comments[change.key] = _comment(change, source, printed.get(change.key), chosen)
    notes += [f"elsewhere {text}" for key, text in comments.items() if key not in values]
    batch = values["optim.batch_size"] * values.get("optim.accumulate", 1)
    notes.append(f"{batch} sequences in a step")
    order = {section: place for place, section in enumerate(SECTIONS)}
    ordered = dict(sorted(values.items(), key=lambda item: order.get(item[0].split(".")[0], len(order))))
    return Recipe(
        table=table, row=row, task=task, source=source, values=ordered,
        comments={key: text for key, text in comments.items() if key in values}, notes=tuple(notes),
    )  # fmt: skip


def _check(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConfigError(
            f"there is no {name} {value!r}",
            where="deltaw paper recipe",
            got=repr(value),
            expected=f"one of {', '.join(known)}",
            hint=f"closest: {nearest(value, known)}",
        )


def _chosen(change: Change, source: str, printed: Any) -> Any:
    if source == "script":
        return change.script
    return change.decided if source == "decided" and change.decided is not None else printed


def _comment(change: Change, source: str, printed: Any, chosen: Any) -> str:
    """What stands elsewhere, and why."""
    said = "nothing" if printed is None else json.dumps(printed)
    table = f"printed: {said}"
    script = f"script: {json.dumps(change.script)}"
    others = [text for text, other in ((table, printed), (script, change.script)) if other != chosen]
    where = "" if chosen is not None else f"{change.key}: "
    return f"{where}{', '.join(others)}; {change.why}" if others else change.why


def _printed(table: str, row: str, task: str) -> dict[str, Any]:
    """The table's cells as configuration values, and what goes with them without saying."""
    found = cells(table, row, task)
    model = MODELS.get(found.pop("model", row))
    values: dict[str, Any] = {"model.path": model} if model else {}
    values[_TASK_KEY] = _task(table, task)
    values |= {KEYS[name]: value for name, value in found.items()}
    values["optim.schedule"] = "linear"
    family = next((name for name in TARGETS if model and name in model), "gpt2")
    if found["method"] == "lora":
        values["adapter.targets"] = TARGETS[family]
    if table == "table12" and row in ("lora", "adapter-h"):
        values["adapter.rank" if row == "lora" else "baseline.bottleneck"] = 8
    if table in ("table9", "table10"):
        values["data.truncation"] = "cut"
    if table == "table11":
        values["data.joiner"] = "<|endoftext|>"
    if table in ("table9", "table10", "table11"):
        values["run.eval_epochs"] = True
    if table in ("table9", "table10"):
        values["run.best_by"] = task_metric(task)
    return values


def _task(table: str, task: str) -> str:
    if table == "table17":
        return "mnli" if task == "392k" else f"mnli_{task}"
    return task


def all_recipes() -> Iterator[Recipe]:
    """Make every recipe that is worth a file.

    Yields:
        Recipe: each column of each row as decided, and as in the script where there is one.
    """
    for table, rows in TABLES.items():
        for row in rows:
            for task in PARTS[table]:
                yield recipe(table, row, task)
                if has_script(table, row, task):
                    yield recipe(table, row, task, "script")
