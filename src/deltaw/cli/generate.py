"""``deltaw generate``: continue prompts with the base, the adapter or the merged model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options
from deltaw.cli._models import model_options, open_causal, take_model
from deltaw.cli._prompts import FORMS, form_used, prompt_to_ids
from deltaw.cli._sampling import Sampling, complete, room_for, sampling_options, take_sampling
from deltaw.errors import ConfigError, DataError

if TYPE_CHECKING:
    from deltaw.ship.opening import ModelChoice, Opened

__all__ = ["command", "read_prompts"]

FORM_HELP = "How prompts are written: " + "; ".join(f"{name}: {what}" for name, what in FORMS.items()) + "."


@click.command("generate")
@model_options
@click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt (repeatable).")
@click.option("--prompts", "file", metavar="FILE", help="Prompts: one a line, jsonl with a 'prompt', or - for stdin.")
@click.option("--form", type=click.Choice(list(FORMS)), default="auto", show_default=True, help=FORM_HELP)
@click.option("--merged", is_flag=True, help="Fold the adapter into the weights first.")
@click.option("--base", "beside", is_flag=True, help="Show the base's text beside the adapter's.")
@sampling_options
@common_options
def command(
    *,
    texts: tuple[str, ...],
    file: str | None,
    form: str,
    merged: bool,
    beside: bool,
    quiet: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Continue prompts with the base, the adapter or the merged model.

    The text is streamed as it comes. With --base each prompt is answered twice, by the base and by the adapter.
    """
    out = Output(quiet=quiet, as_json=as_json)
    sampling = take_sampling(rest)
    choice = take_model(rest)
    _check(choice, merged, beside)
    prompts = [*texts, *(read_prompts(file) if file else [])]
    if not prompts:
        raise ConfigError(
            "there is no prompt",
            where="--prompt",
            got="no --prompt, and no line from --prompts",
            expected="at least one prompt",
            hint="add --prompt 'Once upon a time'",
        )
    opened = open_causal(choice)
    out.say(*([opened.report] if opened.report is not None else []))
    if merged:
        from deltaw.ship.opening import fold

        out.say(fold(opened))
    used = form_used(opened, form)
    if used != "text":
        out.say(f"prompts are written in the form {used!r}: {FORMS[used]}")
    rows = []
    for prompt in prompts:
        ids = prompt_to_ids(opened, used, prompt)
        shown = prompt if used == "text" else f"{prompt}\n"
        row = {"prompt": prompt}
        for label, scope in _sides(opened, merged, beside):
            with scope:
                row[label] = _show(opened, ids, f"[{label}] {shown}", sampling, out)
        rows.append(row)
    facts = {"model": opened.source, "adapter": opened.adapter, "merged": merged, "form": used}
    out.finish({**facts, "outputs": rows})


def _check(choice: ModelChoice, merged: bool, beside: bool) -> None:
    for flag, given in (("--merged", merged), ("--base", beside)):
        if given and choice.adapter is None:
            raise ConfigError(
                f"{flag} needs an adapter",
                where=flag,
                got="no --adapter",
                expected="--adapter DIR",
                hint=f"add --adapter DIR, or leave {flag} out",
            )
    if merged and beside:
        raise ConfigError(
            "--base and --merged exclude each other",
            where="--merged",
            got="both",
            expected="one of them: a merged model has no base to show",
            hint="run generate twice",
        )


def _sides(opened: Opened, merged: bool, beside: bool) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    from deltaw.ship.opening import base_alone

    if beside:
        yield "base", base_alone(opened)
    yield "merged" if merged else "adapter" if opened.adapter else "base", nullcontext()


def _show(opened: Opened, ids: list[int], shown: str, sampling: Sampling, out: Output) -> str:
    # Refused before anything of the prompt is shown.
    room_for(opened.model, len(ids))

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    if out.talks:
        write(shown)
    answer = complete(opened.model, opened.tokenizer, ids, sampling, write if out.talks else None)
    out.say("")
    return answer


def read_prompts(file: str) -> list[str]:
    """Read prompts from a file: one a line, or JSON lines with a key "prompt".

    Args:
        file: path, or "-" for standard input.

    Returns:
        The prompts; empty lines are left out.

    Raises:
        DataError: if the file cannot be read, or a JSON line holds no prompt.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the prompts cannot be read",
            where=file,
            got=str(error),
            expected="a UTF-8 text file with one prompt a line, or jsonl",
            hint="check the path after --prompts",
        ) from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not file.endswith((".jsonl", ".json")):
        return [line for _, line in lines]
    return [_prompt(line, f"{file}:{number}") for number, line in lines]


def _prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    found = row.get("prompt") if isinstance(row, dict) else row
    if not isinstance(found, str):
        raise DataError(
            "a line of the prompts file holds no prompt",
            where=where,
            got=line[:80],
            expected='{"prompt": "..."}, or a JSON string',
            hint="use a .txt file for plain lines",
        )
    return found
