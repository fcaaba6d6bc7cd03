"""Writing files so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["TEMPORARY", "Content", "safetensors_file", "sync", "write_all", "write_files"]


Content = bytes | Callable[[Path], None]
"""What a file holds: its bytes, or what writes it at the path it is given."""


def safetensors_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Callable[[Path], None]:
    """Make the writer of a safetensors file whose bytes depend on its content alone.

    The values go from the tensors' memory to the file without a copy. The format's own writer orders metadata as a hash
    map does; the header is therefore written again in sorted order.

    Args:
        tensors: key -> tensor on any device; no two may share memory.
        metadata: strings for the header.

    Returns:
        What writes the file at a path; it raises OSError if the disk refuses.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> safetensors_file({"a": torch.zeros(1)}, {"b": "1", "c": "2"})(path)
        >>> path.read_bytes()[8:11]
        b'{"_'
    """
    plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}

    def write(path: Path) -> None:
        # the library leaves a file that its owner alone may read
        path.touch()
        mode = path.stat().st_mode
        try:
            safetensors.torch.save_file(plain, path, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        path.chmod(mode)
        _sort_header(path)

    return write


def _sort_header(path: Path) -> None:
    """Write a safetensors header again with its keys in order."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        # JSON is padded with blanks at its end; the other order takes no more room than the first
        assert len(text) <= length
        file.seek(8)
        file.write(text + b" " * (length - len(text)))


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


def _stage(path: Path, content: Content) -> Path:
    """Write and flush a file beside its place, under a name of its own."""
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_all(directory: Path, files: Mapping[str, Content]) -> int:
    """Write several files, all staged and flushed before the first one appears.

    Args:
        directory: where; it exists.
        files: name -> content; they appear in this order.

    Returns:
        Bytes written.

    Raises:
        OSError: if the disk refuses; files that stood there before are then untouched.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for name, content in files.items():
            staged.append((_stage(directory / name, content), directory / name))
        written = sum(temporary.stat().st_size for temporary, _ in staged)
        for temporary, final in staged:
            temporary.replace(final)
        sync(directory)
        return written
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def write_files(directory: Path, files: Mapping[str, Content]) -> int:
    """Write the files of an adapter, all or none.

    Args:
        directory: made if absent.
        files: name -> content; they appear in this order.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: if the disk refuses; files that stood there before are then untouched.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return write_all(directory, files)
    except OSError as error:
        raise CheckpointError(
            "cannot write the adapter",
            where=str(directory),
            got=f"{type(error).__name__}: {error.strerror or error}",
            expected="a writable directory with room",
            hint="free some space or choose another directory; what stood there before is unchanged.",
        ) from error
