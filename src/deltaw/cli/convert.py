"""``deltaw convert``: an adapter that another tool wrote becomes a PEFT directory."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, as_path, common_options, hush, next_commands
from deltaw.errors import CheckpointError, ConfigError
from deltaw.reports import count, size, table

if TYPE_CHECKING:
    from deltaw.ship.formats import Ask, Imported, Mapped

__all__ = ["command"]

MANY = 24
"""From this many modules on, the table has one row per kind of module."""

ENABLE_HELP = "Trained parts of fused projections: names out of q,k,v, or one 0 or 1 per part (1,0,1)."
TREE_HELP = "The base's modules instead of --model: paths one a line, JSON, or the base's .safetensors."
FROM_HELP = "loralib, peft, peft-grouped, litgpt, kohya, diffusers, torchtune or mlx; default: detected."


@click.command("convert")
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", required=True, metavar="DIR", help="PEFT directory to make; it must not exist.")
@click.option("--from", "form", metavar="NAME", help=FROM_HELP)
@click.option("--model", metavar="DIR|NAME", help="The base; names and sizes are checked. Its weights are not read.")
@click.option("--tree", "tree", metavar="FILE", help=TREE_HELP)
@click.option("--alpha", type=float, metavar="NUMBER", help="LoRA's alpha, where the file does not store it.")
@click.option("--enable", metavar="PARTS", help=ENABLE_HELP)
@click.option("--part", metavar="NAME", help="Take one component of a pipeline: unet, transformer, text_encoder, ...")
@click.option("--lora-only", is_flag=True, help="Leave heads, biases and base weights in the file aside.")
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(*, source: str, output: str, every: bool, quiet: bool, as_json: bool, **said: Any) -> None:
    """Turn an adapter that another tool wrote into a PEFT directory.

    SOURCE is a file of tensors, or a directory with one, of loralib, PEFT (2023's included), litgpt, kohya, diffusers,
    torchtune or mlx-lm. The format is detected and the reason said. What a file does not store is asked for, never
    guessed; a tensor that finds no place is an error that lists the nearest names.
    """
    from deltaw.ship.formats import read_any

    hush()
    out = Output(quiet=quiet, as_json=as_json)
    place = as_path(output)
    _refuse_existing(place)
    found = read_any(source, _asked(said), format=said["form"])
    written = found.adapter.save(place)
    out.say(_report(found, place, written, every))
    base, where = said["model"] or found.adapter.raw.get("base_model_name_or_path"), shlex.quote(str(place))
    commands = [f"deltaw inspect {where}"]
    if base and found.format not in ("kohya", "diffusers"):
        commands.append(
            f"deltaw generate --model {shlex.quote(str(base))} --adapter {where} --prompt 'Once upon a time'"
        )
    out.say(next_commands(*commands))
    out.finish(
        {
            "path": place,
            "bytes": written,
            "format": found.format,
            "reason": found.reason,
            "modules": found.mapped,
            "trained_in_full": found.whole,
            "notes": found.notes,
            "left": found.left,
            "adapter_hash": found.adapter.hash,
        }
    )


def _refuse_existing(place: Path) -> None:
    if place.exists():
        raise CheckpointError(
            "the directory to make exists already",
            where=str(place),
            got="a directory" if place.is_dir() else "a file",
            expected="a path where nothing stands yet",
            hint="choose another --output, or remove it.",
        )


def _asked(said: dict[str, Any]) -> Ask:
    from deltaw.ship.formats import Ask, Tree, checked_alpha, parse_enable
    from deltaw.ship.formats.base import tree_of_base

    if said["model"] and said["tree"]:
        raise ConfigError(
            "--model and --tree say the same thing twice",
            where="--tree",
            got=f"--model {said['model']} --tree {said['tree']}",
            expected="one of them",
            hint="leave --tree out; the model's own modules are used.",
        )
    tree, base = tree_of_base(said["model"]) if said["model"] else (None, {})
    if said["tree"]:
        tree = Tree.read(as_path(said["tree"]))
    return Ask(
        tree=tree,
        base=base,
        base_name=said["model"],
        alpha=checked_alpha(said["alpha"]),
        enable=parse_enable(said["enable"]) if said["enable"] is not None else None,
        part=said["part"],
        lora_only=said["lora_only"],
    )


def _report(found: Imported, place: Path, written: int, every: bool) -> str:
    lines = [f"format   {found.format}: {found.title} ({found.reason})", "", _table(found.mapped, every)]
    if found.whole:
        names = [f"{item.path} {'x'.join(map(str, item.shape))}" for item in found.whole]
        lines.append(f"taken whole: {_some(names)}")
    lines += [f"note: {note}" for note in _first(found.notes)]
    if found.left:
        lines.append(f"left aside, as asked: {count(len(found.left))}: {_some(found.left)}")
    total = count(found.adapter.parameters)
    lines += ["", f"wrote    {place} ({len(found.mapped)} modules, {total} parameters, {size(written)})"]
    return "\n".join(lines)


def _table(mapped: Sequence[Mapped], every: bool) -> str:
    if every or len(mapped) < MANY:
        header = ("in the file", "module", "size", "rank", "scaling")
        return table(header, [(item.origin, item.path, *_cells(item)) for item in mapped])
    groups: dict[tuple[object, ...], list[Mapped]] = {}
    for item in mapped:
        groups.setdefault((_leaf(item.path), *_cells(item)), []).append(item)
    rows = [(group[0].origin, f"... {key[0]}", len(group), *key[1:]) for key, group in groups.items()]
    titles = ("in the file, for example", "module", "count", "size", "rank", "scaling")
    return table(titles, rows) + "\none row per kind of module; --modules lists each"


def _leaf(path: str) -> str:
    """The last name, with the one before it where it is a number."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _cells(item: Mapped) -> tuple[object, ...]:
    return f"{item.shape[0]} -> {item.shape[1]}", item.rank, f"{item.scaling:g}"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _first(notes: Sequence[str], most: int = 8) -> list[str]:
    more = len(notes) - most
    return [*notes[:most], *([f"and {more} more of this kind; --json lists them"] if more > 0 else [])]
