"""Reading a PEFT directory from disk: the files themselves, not yet their meaning."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["BASELINE_CONFIG", "CONFIG", "WEIGHTS", "read_config", "read_tensors"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASELINE_CONFIG = "baseline_config.json"
"""What stands there instead where the directory holds one of the baselines, which are no LoRA."""
_PICKLE = "adapter_model.bin"


def _absent_hint(directory: Path) -> str:
    if not directory.exists():
        return "check the spelling and the working directory."
    if not directory.is_dir():
        return "pass the directory, not a file in it."
    if (directory / BASELINE_CONFIG).exists():
        return "this is a baseline and no LoRA adapter: read by deltaw eval, generate, chat and deltaw.baselines.load."
    if (directory / "config.json").exists() and not (directory / CONFIG).exists():
        return "this is a model, not an adapter; pass the directory that save() or deltaw train wrote."
    return "pass the directory that save() or deltaw train wrote."


def _absent(directory: Path, name: str) -> CheckpointError:
    if directory.is_dir():
        inside = sorted(path.name for path in directory.iterdir())[:6]
        got = "files: " + ", ".join(inside) if inside else "an empty directory"
    else:
        got = "a file" if directory.exists() else "no such directory"
    return CheckpointError(
        f"no {name} here",
        where=str(directory),
        got=got,
        expected=f"a PEFT directory with {CONFIG} and {WEIGHTS}",
        hint=_absent_hint(directory),
    )


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``.

    Args:
        directory: the adapter's directory.

    Returns:
        The parsed object.

    Raises:
        CheckpointError: if it is absent or no JSON object.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise _absent(directory, CONFIG)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{CONFIG} is not JSON",
            where=str(path),
            got=str(error),
            expected="a JSON object",
            hint="the file is damaged; copy the adapter again.",
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{CONFIG} is no object",
            where=str(path),
            got=type(raw).__name__,
            expected="a JSON object",
            hint="the file is damaged; copy the adapter again.",
        )
    return raw


def read_tensors(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors: safetensors first, else a pickle that may hold nothing but tensors.

    Args:
        directory: the adapter's directory.

    Returns:
        key -> tensor on the CPU, and the safetensors metadata.

    Raises:
        CheckpointError: if there is no such file, or it is truncated or damaged.
    """
    path, pickled = directory / WEIGHTS, directory / _PICKLE
    try:
        if path.is_file():
            with safe_open(str(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        if pickled.is_file():
            loaded = torch.load(pickled, map_location="cpu", weights_only=True)
            if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
                raise pickle.UnpicklingError("not a dictionary of tensors")
            return loaded, {}
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        broken = path if path.is_file() else pickled
        raise CheckpointError(
            "the adapter's tensors cannot be read",
            where=str(broken),
            got=f"{broken.stat().st_size:,} bytes: {(str(error) or type(error).__name__).splitlines()[0]}",
            expected="a complete safetensors file, or a pickle of tensors",
            hint="the file is truncated or damaged; copy it again.",
        ) from None
    raise _absent(directory, WEIGHTS)
