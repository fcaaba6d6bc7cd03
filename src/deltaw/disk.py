"""Writing files so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["TEMPORARY", "safetensors_bytes", "sync", "write_all", "write_files"]


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
    return b"".join((struct.pack("<Q", len(text)), text, memoryview(raw)[8 + length :]))


TEMPORARY = ".deltaw-tmp-"
"""How the name of a file begins until it is whole; a killed process may leave such files."""


def sync(path: Path) -> None:
    """Force a file, or a directory's entries, to the disk.

    Args:
        path: an existing file or directory; a directory is skipped where the system cannot flush one.
    """
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stage(path: Path, content: bytes) -> Path:
    """Write and flush a file beside its place, under a name of its own."""
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write several files, all staged and flushed before the first one appears.

    Args:
        directory: where; it exists.
        files: name -> content; they appear in this order.

    Raises:
        OSError: if the disk refuses; files that stood there before are then untouched.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for name, content in files.items():
            staged.append((_stage(directory / name, content), directory / name))
        for temporary, final in staged:
            temporary.replace(final)
        sync(directory)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an adapter, all or none.

    Args:
        directory: made if absent.
        files: name -> content; they appear in this order.

    Raises:
        CheckpointError: if the disk refuses; files that stood there before are then untouched.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_all(directory, files)
    except OSError as error:
        raise CheckpointError(
            "cannot write the adapter",
            where=str(directory),
            got=f"{type(error).__name__}: {error.strerror or error}",
            expected="a writable directory with room",
            hint="free some space or choose another directory; what stood there before is unchanged.",
        ) from error
