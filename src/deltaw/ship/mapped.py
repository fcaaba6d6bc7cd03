"""Safetensors files as mapped memory, and writing one anew with some of its tensors replaced.

A tensor of a mapped file costs no memory until it is read, and what was read is given back by ``release``. Rewriting
copies the bytes that stay from file to file, header included, so that only replaced tensors pass through this process.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["MappedFile", "rewrite"]

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_CHUNK = 1 << 23
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Stored(NamedTuple):
    """Where a tensor lies in its file.

    Args:
        dtype: torch's, or None where torch has none.
        shape: its shape.
        start: offset of its first byte from the start of the file.
        stop: one past its last byte.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def aligned(self) -> bool:
        """Whether it can be read where it lies."""
        return self.dtype is not None and self.start % self.dtype.itemsize == 0


class MappedFile:
    """One safetensors file, mapped.

    Args:
        path: the file.

    Raises:
        CheckpointError: if it is damaged or absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # the library's own reader checks the header: offsets without gaps, sizes as shapes and dtypes say
            with safe_open(str(path), framework="pt"):
                pass
            self.bytes = path.stat().st_size
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, Any] = json.loads(file.read(length))
                self._map = _mapped(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                "the checkpoint cannot be read",
                where=str(path),
                got=(str(error) or type(error).__name__).splitlines()[0],
                expected="complete safetensors files",
                hint="the file is truncated or damaged; copy it again.",
            ) from None
        header.pop("__metadata__", None)
        at = 8 + length
        self.tensors = {
            key: Stored(_DTYPES.get(said["dtype"]), tuple(said["shape"]), *(at + end for end in said["data_offsets"]))
            for key, said in header.items()
        }

    def tensor(self, key: str) -> Tensor:
        """A tensor as a view of the file; writing to it never reaches the file.

        Args:
            key: its key; its dtype is one of torch's, and it is aligned.

        Returns:
            The tensor, on the CPU, with a storage of its own.
        """
        stored = self.tensors[key]
        assert stored.dtype is not None
        if stored.start == stored.stop:
            return torch.empty(stored.shape, dtype=stored.dtype)
        with warnings.catch_warnings():
            # nothing writes to it, so that it need not be writable
            warnings.filterwarnings("ignore", message=".*not writable.*")
            view = torch.frombuffer(
                self._map, dtype=stored.dtype, offset=stored.start, count=torch.Size(stored.shape).numel()
            )
        return view.reshape(stored.shape)

    def release(self) -> None:
        """Give back the memory of all that was read so far; it is read again when it is asked for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _mapped(file: BinaryIO) -> mmap.mmap:
    """The file in memory, its pages this process's own where it writes to them, and no memory set aside for them."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def rewrite(source: MappedFile, target: Path, values: Mapping[str, Callable[[], Tensor]]) -> None:
    """Write a file anew: the same header, the same bytes, but for some tensors.

    Args:
        source: the file to start from.
        target: where; there is no file yet.
        values: key -> gives the new tensor, of the dtype and shape of the old one; asked for one at a time, in the
            order of the file.

    Raises:
        OSError: if the disk refuses.
    """
    at = 0
    with source.path.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        for key in sorted(values, key=lambda key: source.tensors[key].start):
            stored = source.tensors[key]
            _copy(old, new, at, stored.start)
            tensor = values[key]()
            assert tensor.dtype == stored.dtype and tuple(tensor.shape) == stored.shape
            raw: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            _put(new, memoryview(raw))
            del tensor, raw
            source.release()
            at = stored.stop
        _copy(old, new, at, source.bytes)


def _put(new: Any, content: memoryview) -> None:
    """Write all of it: a raw file may take less at once."""
    while content:
        content = content[new.write(content) :]


def _copy(old: Any, new: Any, start: int, stop: int) -> None:
    """Copy a range from file to file, in the kernel where it can."""
    start = _copy_inside(old, new, start, stop)
    old.seek(start)
    while start < stop:
        content = old.read(min(_CHUNK, stop - start))
        if not content:
            raise OSError(errno.EIO, "the base's file became shorter while it was read")
        _put(new, memoryview(content))
        start += len(content)


def _copy_inside(old: Any, new: Any, start: int, stop: int) -> int:
    """Let the kernel copy as far as it does; returns where it left off."""
    while start < stop and hasattr(os, "copy_file_range"):
        try:
            done = os.copy_file_range(old.fileno(), new.fileno(), min(stop - start, 1 << 30), start)
        except OSError as error:
            if error.errno in _FULL:
                raise
            return start
        if not done:
            return start
        start += done
    return start
