"""Reading a file of others: safetensors or a pickle of tensors, whatever wrapped it, and what stands beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaw.errors import CheckpointError, nearest
from deltaw.held import read_held
from deltaw.ship.formats.contract import Source

__all__ = ["read_source"]

_NAMES = (
    "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin", "lit_model.pth.lora", "adapter_model.pt",
)  # fmt: skip
"""Files that hold an adapter by their name, surest first."""
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".lora")
_BESIDE = ("adapter_config.json", "hyperparameters.yaml", "model_config.yaml")


def read_source(path: str | Path) -> Source:
    """Read a file, or the adapter file of a directory.

    Args:
        path: safetensors, a pickle that holds nothing but tensors, or a directory with one such file.

    Returns:
        What is in it.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it would have to run code.
    """
    place = Path(path).expanduser()
    file = _find(place)
    held = read_held(file)
    notes = [f"'{held.prefix}' was taken off every name"] if held.prefix else []
    return Source(
        tensors=held.tensors,
        path=file,
        config={**_beside(file.parent), **held.config},
        metadata=held.metadata,
        stated=held.stated,
        notes=(*held.notes, *notes),
    )


def _find(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise CheckpointError(
            "there is no such adapter file",
            where=str(place),
            got="nothing at this path",
            expected="a file of tensors, or a directory with one",
            hint=f"nearest there: {nearest(place.name, siblings, 2)}.",
        )
    for name in _NAMES:
        if (place / name).is_file():
            return place / name
    found = sorted(p for p in place.iterdir() if p.is_file() and p.suffix in _ENDINGS)
    if len(found) != 1:
        listed = ", ".join(p.name for p in found[:6]) or ", ".join(sorted(p.name for p in place.iterdir())[:6])
        raise CheckpointError(
            "which file is the adapter's cannot be told",
            where=str(place),
            got=listed or "an empty directory",
            expected=f"one file that ends in {', '.join(_ENDINGS)}",
            hint="name the file itself.",
        )
    return found[0]


def _beside(directory: Path) -> dict[str, Any]:
    """The configuration files that trainers write next to an adapter."""
    found: dict[str, Any] = {}
    for name in _BESIDE:
        path = directory / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            entries = dict(_flat_yaml(text)) if path.suffix == ".yaml" else json.loads(text)
        except ValueError as error:
            entries = error
        if not isinstance(entries, dict):
            raise CheckpointError(
                f"{name} beside the tensors cannot be read",
                where=str(path),
                got=str(entries)[:160] if isinstance(entries, ValueError) else type(entries).__name__,
                expected="JSON that holds an object" if path.suffix == ".json" else "lines of key: value",
                hint="the file is damaged; copy the adapter again.",
            )
        found.update(entries)
    return found


def _flat_yaml(text: str) -> Iterator[tuple[str, Any]]:
    """The scalars at the top level of a YAML file: all that is asked of it, without a parser for the rest."""
    for line in text.splitlines():
        match = re.match(r"^(\w+):\s+(.+?)\s*$", line)
        if match is None:
            continue
        name, value = match.groups()
        try:
            yield name, json.loads(value.lower() if value.lower() in ("true", "false", "null") else value)
        except json.JSONDecodeError:
            yield name, value.strip("'\"")
