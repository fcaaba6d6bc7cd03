"""Writing files so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["safetensors_bytes", "write_files"]


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone.

    The format's own writer orders metadata as a hash map does; the header is therefore written again in sorted order.

    Args:
        tensors: key -> tensor on any device.
        metadata: strings for the header.

    Returns:
        The file's content.

    Example:
        >>> import torch
        >>> safetensors_bytes({"a": torch.zeros(1)}, {"b": "1", "c": "2"})[8:11]
        b'{"_'
    """
    plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    raw: bytes = safetensors.torch.save(plain, dict(metadata))
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a directory, all staged and flushed before the first one appears.

    Args:
        directory: made if absent.
        files: name -> content; they appear in this order.

    Raises:
        CheckpointError: if the disk refuses; files that stood there before are then untouched.
    """
    staged: list[tuple[str, Path]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=directory)
            staged.append((temporary, directory / name))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, final in staged:
            Path(temporary).chmod(0o644)
            Path(temporary).replace(final)
        _flush(directory)
    except OSError as error:
        raise CheckpointError(
            "cannot write the adapter",
            where=str(directory),
            got=f"{type(error).__name__}: {error.strerror or error}",
            expected="a writable directory with room",
            hint="free some space or choose another directory; what stood there before is unchanged.",
        ) from error
    finally:
        for temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)


def _flush(directory: Path) -> None:
    """Make the renames themselves survive a power cut, where the system can flush a directory."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
