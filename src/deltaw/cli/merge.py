"""``deltaw merge``: write base and adapter as one plain model, and verify that it is faithful."""

from __future__ import annotations

import shlex
from typing import Any

import click

from deltaw.cli._common import Output, common_options, hush, next_commands, stops_as_interrupts
from deltaw.cli._models import model_options, take_model
from deltaw.cli.generate import read_prompts

__all__ = ["command"]

PROBES_HELP = "Texts to compare on: one a line, jsonl with a 'prompt', or - for stdin; default: built-in ones."
VERIFY_HELP = "Compare with the model with its adapter on; default: where the model fits into memory."
TOLERANCE_HELP = "Accept this max |logit difference| / max |logit| instead of judging by what the dtype allows."


@click.command("merge")
@model_options
@click.option("-o", "--output", required=True, metavar="DIR", help="Directory to make; it must not exist.")
@click.option("--probes", metavar="FILE", help=PROBES_HELP)
@click.option("--tolerance", type=float, metavar="NUMBER", help=TOLERANCE_HELP)
@click.option("--verify/--no-verify", default=None, help=VERIFY_HELP)
@common_options
def command(
    *, output: str, probes: str | None, tolerance: float | None, verify: bool | None, quiet: bool, as_json: bool,
    **rest: Any,
) -> None:  # fmt: skip
    """Write base and adapter as one plain model, and verify that it is faithful.

    The directory is complete (weights, config, tokenizer, chat template, generation config) and loads in plain
    transformers. The base's shards are copied with the touched tensors replaced, so that merging takes the memory of
    about two of them, whatever the model's size. The result is read back and compared with the model with its adapter
    on; where it does not reproduce it within what a float64 merge allows in that dtype, nothing is left behind and the
    exit code is 6. --dtype is the dtype of the files; auto is the base's own, another one takes the model in memory.
    """
    from deltaw.ship.merge import merge_directory

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    choice = take_model(rest)
    texts = read_prompts(probes) if probes else None
    with stops_as_interrupts():
        written = merge_directory(choice, output, texts=texts, tolerance=tolerance, verify=verify)
    out.say(written)
    model = shlex.quote(str(written.path))
    labels = "SequenceClassification" in (written.path / "config.json").read_text(encoding="utf-8")
    out.say(
        next_commands(
            f"deltaw eval --model {model} --data FILE"
            if labels
            else f"deltaw generate --model {model} --prompt 'Once upon a time'"
        )
    )
    report = written.fidelity
    out.finish(
        {
            "path": written.path,
            "files": written.files,
            "bytes": written.bytes,
            "base": written.base,
            "adapter": written.adapter,
            "adapter_hash": written.adapter_hash,
            "streamed": written.streamed,
            "faithful": None if report is None else report.faithful,
            "notes": (*written.notes, *(() if report is None else report.notes)),
            "fidelity": report,
        }
    )
