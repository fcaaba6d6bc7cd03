"""Places on disk: the cache directory, the identity of a file's content, unpacked copies of compressed files."""

from __future__ import annotations

import atexit
import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from deltaw.errors import DataError

__all__ = ["COMPRESSED", "cache_root", "content_hash", "identity", "plain"]

COMPRESSED: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": cast("Callable[[Path], IO[bytes]]", gzip.open),
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_BLOCK = 1 << 20
_WHOLE = 64 << 20
_SAMPLES = 64


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Choose the directory that holds unpacked files and tokenized data, and create it.

    Args:
        cache_dir: a directory named by the caller; else the environment's ``DELTAW_CACHE``; else ``~/.cache/deltaw``.

    Returns:
        An existing, writable directory. Where the chosen one cannot be written (a read-only home), a temporary one
        that is removed when the process ends.
    """
    chosen = Path(cache_dir or os.environ.get("DELTAW_CACHE") or Path.home() / ".cache" / "deltaw").expanduser()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen):
            return chosen
    except OSError:
        return _temporary()


def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="deltaw-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def content_hash(path: Path) -> str:
    """Hash a file: all of it up to 64 MiB, beyond that its size and 64 evenly spaced blocks of 1 MiB.

    Args:
        path: an existing file.

    Returns:
        32 hexadecimal digits.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(_BLOCK):
                digest.update(block)
        else:
            for index in range(_SAMPLES):
                file.seek((size - _BLOCK) * index // (_SAMPLES - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def identity(paths: list[Path]) -> str:
    """Name the content of files, so that a cache made from other content is never used.

    Args:
        paths: existing files, in reading order.

    Returns:
        32 hexadecimal digits. Files that are hashed whole are named by their content alone, so that a copy or a touch
        keeps its cache; larger ones by size, modification time and sampled content.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        stat = path.stat()
        digest.update(content_hash(path).encode())
        if stat.st_size > _WHOLE:
            digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()


def plain(path: Path, cache_dir: str | Path | None) -> Path:
    """Give the uncompressed form of a file, unpacked once into the cache, because a stream has no random access.

    Args:
        path: an existing file; any suffix.
        cache_dir: see :func:`cache_root`.

    Returns:
        ``path`` itself where it is not compressed, else the unpacked copy, whose name has lost the last suffix.

    Raises:
        DataError: if the compressed stream is damaged or cut off.
    """
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is None:
        return path
    folder = cache_root(cache_dir) / "unpacked" / identity([path])
    target = folder / path.stem
    if _intact(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with opener(path) as packed, os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(packed, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())
        _sum_of(target).write_text(content_hash(Path(temporary)))
        os.replace(temporary, target)  # noqa: PTH105
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        Path(temporary).unlink(missing_ok=True)
        raise _damaged(path, error) from error
    return target


def _sum_of(target: Path) -> Path:
    return target.with_name(target.name + ".sum")


def _intact(target: Path) -> bool:
    """Say whether an unpacked copy is there, as it was written."""
    try:
        return content_hash(target) == _sum_of(target).read_text()
    except OSError:
        return False


def _damaged(path: Path, error: Any) -> DataError:
    return DataError(
        "a compressed data file cannot be unpacked",
        where=str(path),
        got=f"{type(error).__name__}: {error}",
        expected=f"a complete {path.suffix} stream, and room on disk for its content",
        hint="copy or download the file again, or unpack it yourself and pass the unpacked file.",
    )
