"""Reading a file of others: safetensors or a pickle of tensors, whatever wrapped it, and what stands beside it."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.errors import CheckpointError, nearest
from deltaw.ship.formats.contract import Source

__all__ = ["read_source"]

_NAMES = (
    "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin", "lit_model.pth.lora", "adapter_model.pt",
)  # fmt: skip
"""Files that hold an adapter by their name, surest first."""
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".lora")
_WRAPPERS = ("model_state_dict", "state_dict", "model", "adapter")
"""Keys under which training scripts put the tensors."""
_BESIDE = ("adapter_config.json", "hyperparameters.yaml", "model_config.yaml")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


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
    tensors, config, metadata, notes = _tensors(file)
    tensors, prefix = _without_prefix(tensors)
    if prefix:
        notes.append(f"'{prefix}' was taken off every name")
    return Source(
        tensors=tensors,
        path=file,
        config={**_beside(file.parent), **config},
        metadata=metadata,
        notes=tuple(notes),
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


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str], list[str]]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as opened:
                # ``keys`` is a method of the handle, which is no mapping
                names = list(opened.keys())
                return {key: opened.get_tensor(key) for key in names}, {}, dict(opened.metadata() or {}), []
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(file, error) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(
            "the tensors cannot be read",
            where=str(file),
            got=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:160]}",
            expected="a safetensors file, or a pickle of tensors, complete",
            hint="the file is cut off or damaged; copy or download it again.",
        ) from None
    tensors, config, notes = _unwrapped(loaded, file)
    return tensors, config, {}, notes


def _refused(file: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """A pickle may call any function; torch refuses those that are not about tensors."""
    text = " ".join(str(error).split())
    called = re.search(r"(?:GLOBAL|function|class) `?([\w.]+)`? (?:was not|which is not|not|is not)", text)
    named = re.search(r"Unsupported (?:global|class)[^`]*`?([\w]+[.][\w.]+)", text)
    found = called or named
    got = f"the file asks to load {found.group(1)}" if found else "bytes that are no pickle of tensors"
    return CheckpointError(
        "the file holds more than tensors, or is damaged",
        where=str(file),
        got=got,
        expected="a pickle of tensors alone: anything else could run code on this machine",
        hint="deltaw does not run it; ask for a safetensors file, or save the state dict alone with torch.save.",
    )


def _unwrapped(loaded: object, file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Take the tensors out of what a training script put around them."""
    notes: list[str] = []
    config: dict[str, Any] = {}
    while isinstance(loaded, Mapping):
        inner = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        others = sorted(str(key) for key in loaded if key != inner)
        stated = loaded.get("adapter_config")
        config.update(stated if isinstance(stated, Mapping) else {})
        others = [key for key in others if key != "adapter_config"]
        if others:
            notes.append(f"the tensors stood under '{inner}'; beside it, not read: {', '.join(others[:6])}")
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        kinds = sorted({type(v).__name__ for v in loaded.values()}) if isinstance(loaded, Mapping) else []
        raise CheckpointError(
            "the file holds no dictionary of tensors",
            where=str(file),
            got=f"{type(loaded).__name__}" + (f" of {', '.join(kinds[:4])}" if kinds else ""),
            expected="name -> tensor, plain or under " + ", ".join(map(repr, _WRAPPERS)),
            hint="save the adapter's state dict alone with torch.save, or convert it to safetensors.",
        )
    return {str(key): value for key, value in loaded.items()}, config, notes


def _without_prefix(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    taken = ""
    while tensors and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), "")):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        taken += prefix
    return tensors, taken


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
