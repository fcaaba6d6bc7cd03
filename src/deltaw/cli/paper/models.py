"""``deltaw paper models``: the paper's models, and one of them with its weights on a fixed input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from deltaw.cli._common import Output, common_options, next_commands

__all__ = ["command"]

FIXED_IDS = (40, 60, 80, 100)


@click.command("models")
@click.argument("source", metavar="[MODEL]", required=False)
@click.option("--task", type=click.Choice(["auto", "causal", "classification"]), default="auto", show_default=True,
              help="What the model is for; auto: what its config.json says.")  # fmt: skip
@click.option("--text", help="Input, encoded by the model's own tokenizer.")
@click.option("--ids", help="Input as token ids, such as '40 60 80 100', which is the default.")
@click.option("--top", type=int, default=5, show_default=True, help="How many of the largest logits to print.")
@common_options
def command(
    *, source: str | None, task: str, text: str | None, ids: str | None, top: int, quiet: bool, as_json: bool
) -> None:
    """List the paper's models with their counts, or open one with its weights.

    MODEL is a directory or a hub name: its weights are loaded, its shape is held against the paper's, and its logits
    on a fixed input are printed, so that two loads can be compared. Without it, the paper's shapes are counted.
    """
    out = Output(quiet=quiet, as_json=as_json)
    if source is None:
        _refuse_unread(task, text, ids)
        rows = _shapes()
        out.say(_listing(rows), next_commands("deltaw paper counts", "deltaw paper models DIR"))
        out.finish({"models": rows})
        return
    from deltaw.paper.opening import fixed_logits, open_model

    opened = open_model(source, task=task)
    found = fixed_logits(opened.model, _input(opened, text, ids), top)
    total = sum(p.numel() for p in opened.model.parameters())
    shape = opened.shape or "none of the paper's"
    out.say(f"model: {source}, {type(opened.model).__name__}, {total:,} values", f"shape: {shape}", found,
            *(f"note: {note}" for note in opened.notes))  # fmt: skip
    facts = {"model": source, "class": type(opened.model).__name__, "parameters": total, "shape": opened.shape}
    out.finish({**facts, "task": opened.task, "logits": found, "notes": opened.notes})


def _refuse_unread(task: str, text: str | None, ids: str | None) -> None:
    from deltaw.errors import ConfigError

    given = [flag for flag, value in (("--text", text), ("--ids", ids)) if value is not None]
    given += ["--task"] if task != "auto" else []
    if given:
        raise ConfigError(
            f"{given[0]} has no model to speak to",
            where=given[0],
            got="no MODEL",
            expected="deltaw paper models MODEL with it",
            hint="give a directory or a hub name, or leave the option out",
        )


def _input(opened: Any, text: str | None, ids: str | None) -> Sequence[int]:
    """The ids to ask for: of a text, as given, or the fixed ones."""
    from deltaw.errors import ConfigError

    if text is not None and (ids is not None or opened.tokenizer is None):
        raise ConfigError(
            "a text cannot be the input here",
            where="--text",
            got="--ids besides" if ids is not None else "a model without a tokenizer",
            expected="one of --text and --ids, and a tokenizer for a text",
            hint="use --ids alone",
        )
    if text is not None:
        return list(opened.tokenizer(text)["input_ids"])
    words = ids.replace(",", " ").split() if ids is not None else [str(index) for index in FIXED_IDS]
    if not all(word.isdigit() for word in words):
        raise ConfigError(
            "these are no token ids", where="--ids", got=repr(ids), expected="whole numbers",
            hint="such as --ids '40 60 80 100'",
        )  # fmt: skip
    return [int(word) for word in words]


def _shapes() -> list[dict[str, Any]]:
    """The paper's shapes, counted on the meta device."""
    from deltaw.paper import models

    return [
        {
            "name": name, "title": known.title, "class": type(models.meta_model_of(name)).__name__,
            "layers": known.layers, "width": known.width, "parameters": models.total_parameters(name),
            "without_head": models.body_parameters(name), "rank": known.rank,
            "lora_qv": models.lora_parameters(name, "qv", known.rank),
            "head": models.head_parameters(name, 2) if known.head else 0, "hub": known.hub,
        }
        for name, known in models.PAPER_MODELS.items()
    ]  # fmt: skip


def _listing(rows: Sequence[dict[str, Any]]) -> str:
    from deltaw.reports import table

    header = ("model", "class", "blocks", "width", "values", "without head", "LoRA qv", "at r", "head of 2 labels")
    keys = ("name", "class", "layers", "width", "parameters", "without_head", "lora_qv", "rank", "head")
    return table(header, [[row[key] for key in keys] for row in rows])
