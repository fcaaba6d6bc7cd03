"""What one file of others holds: tensors, whatever a training script put around them, and what stands beside them.

Safetensors and pickles are read; a pickle that asks for anything but tensors is refused, and nothing in it runs.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["Held", "read_held"]

_WRAPPERS = ("model_state_dict", "state_dict", "model", "adapter")
"""Keys under which training scripts put the tensors."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A file as it was read: nothing in it has been interpreted.

    Args:
        tensors: key -> tensor, on the CPU, wrappers and prefixes taken off.
        config: a configuration that stood beside the tensors in a pickle, or nothing.
        metadata: safetensors metadata.
        stated: what a pickled state dict says of its modules beside their tensors, path -> notes.
        prefix: what was taken off every name.
        notes: what reading it left aside.
    """

    tensors: dict[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prefix: str = ""
    notes: tuple[str, ...] = ()


def read_held(file: Path) -> Held:
    """Read a file of tensors.

    Args:
        file: safetensors by its ending, else a pickle that holds nothing but tensors.

    Returns:
        What is in it.

    Raises:
        CheckpointError: if it is damaged, holds no tensors by name, or would have to run code.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as opened:
                # ``keys`` is a method of the handle, which is no mapping
                names = list(opened.keys())
                tensors = {key: opened.get_tensor(key) for key in names}
                metadata = dict(opened.metadata() or {})
            bare, prefix = _bare(tensors)
            return Held(tensors=bare, metadata=metadata, prefix=prefix)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(file, error) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(
            "the tensors cannot be read",
            where=str(file),
            got=f"{type(error).__name__}: {_first_sentence(error)}",
            expected="a safetensors file, or a pickle of tensors, complete",
            hint="the file is cut off or damaged; copy or download it again.",
        ) from None
    return _unwrapped(loaded, file)


def _first_sentence(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0].partition(". ")[0][:160]


def _refused(file: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """A pickle may call any function; torch refuses those that are not about tensors."""
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL `?([\w.]+)", text)
    got = f"the file asks to load {found.group(1)}" if found else "bytes that are no pickle of tensors"
    return CheckpointError(
        "the file holds more than tensors, or is damaged",
        where=str(file),
        got=got,
        expected="a pickle of tensors alone: anything else could run code on this machine",
        hint="deltaw does not run it; ask for a safetensors file, or save the state dict alone with torch.save.",
    )


def _unwrapped(loaded: object, file: Path) -> Held:
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
    tensors, prefix = _bare({str(key): value for key, value in loaded.items()})
    told = getattr(loaded, "_metadata", None)
    stated = (
        {} if not isinstance(told, Mapping) else {f"{path}.".removeprefix(prefix)[:-1]: v for path, v in told.items()}
    )
    stated = {path: value for path, value in stated.items() if isinstance(value, Mapping)}
    return Held(tensors=tensors, config=config, stated=stated, prefix=prefix, notes=tuple(notes))


def _bare(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    taken = ""
    while tensors and (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), "")):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        taken += prefix
    return tensors, taken
