"""``deltaw extract``: an adapter from two checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from deltaw.cli._algebra import facts, free_place, output_option, quoted, rows, say_written
from deltaw.cli._common import Output, as_path, common_options, hush
from deltaw.errors import DeltawError

__all__ = ["command"]


@click.command("extract")
@click.option("--base", required=True, metavar="DIR", help="Directory of the base, with its safetensors.")
@click.option("--tuned", required=True, metavar="DIR", help="Directory of the tuned model.")
@click.option("--rank", type=int, metavar="N", help="Rank of every update.")
@click.option("--energy", type=float, metavar="SHARE", help="Share of each difference's squared norm to keep.")
@click.option("--allow-rest", is_flag=True, help="Leave over tensors that differ and that no LoRA can hold.")
@output_option
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(
    *,
    base: str,
    tuned: str,
    rank: int | None,
    energy: float | None,
    allow_rest: bool,
    output: str,
    every: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the LoRA that leads from one checkpoint to another.

    Both are read one tensor at a time, sharded or not. Give --rank or --energy. Weights of linear maps and embeddings
    are held; where norms, biases or shapes differ too, that is an error unless --allow-rest leaves them over, and then
    they are listed. Small matrices are decomposed exactly, large ones by a randomized method; what each update keeps
    is measured and says which.
    """
    from deltaw.algebra import extract

    out = Output(quiet=quiet, as_json=as_json)
    place, source = free_place(output), as_path(base)
    shape, why = _shape(source)
    report = extract(source, as_path(tuned), rank=rank, energy=energy, model=shape, allow_rest=allow_rest)
    notes = (*report.notes, *([f"the shape was not built: {why}"] if why else []))
    report = dataclasses.replace(report, every=every, notes=notes)
    written = report.adapter.save(place)
    out.say(report)
    say_written(
        out,
        report.adapter,
        place,
        written,
        f"deltaw inspect {quoted(place)}",
        f"deltaw generate --model {quoted(source)} --adapter {quoted(place)} --prompt '...'",
    )
    out.finish(
        {
            **facts(report.adapter, place, written),
            "kept": report.kept,
            "modules": rows(report.modules),
            "left_over": report.rest,
            "unchanged": report.unchanged,
            "notes": report.notes,
        }
    )


def _shape(base: Path) -> tuple[Any, str | None]:
    """The base's model without weights, or why there is none; then names say what each weight is."""
    if not (base / "config.json").is_file():
        return None, f"no config.json in {base}"
    try:
        hush()
        from deltaw.train.shape import meta_model

        return meta_model(str(base)), None
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed"
    except DeltawError as error:
        return None, error.what
