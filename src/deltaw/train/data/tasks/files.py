"""Find a task's files in a directory: under usual names, compressed or not, in the task's folder or in an archive."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from deltaw.errors import DataError
from deltaw.train.data.sources.place import COMPRESSED, cache_root, identity, plain

__all__ = ["MARK", "File", "find", "inside", "named"]

MARK = "SYNTHETIC.txt"
"""A file of this name says that its neighbors are made up."""

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz")
_INDEX = "members.json"
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a task.

    Args:
        path: where it can be read; not compressed.
        origin: the file of the user that it comes from.
        shown: how messages name it.
        synthetic: whether the directory says that it is made up.
    """

    path: Path
    origin: Path
    shown: str
    synthetic: bool = False

    @property
    def stem(self) -> str:
        """The last part of its name, for rows of many files."""
        return PurePosixPath(self.shown).name


def named(error: DataError, file: File) -> DataError:
    """Say where a fault is in the user's words: the file that was named, not its unpacked copy.

    Args:
        error: raised by a reader of the unpacked copy.
        file: what was read.

    Returns:
        The same error under the file's own name.
    """
    where = error.where.replace(str(file.path), file.shown)
    return DataError(error.what, where=where, got=error.got, expected=error.expected, hint=error.hint)


def find(
    directory: Path, names: Sequence[str], folders: Sequence[str], archives: Sequence[str], cache_dir: Path | str | None
) -> list[File]:
    """Look for the files of one layout.

    Args:
        directory: what the user named: the task's folder, one above it, or an archive.
        names: file names or globs; every one must match something.
        folders: names of the task's folder.
        archives: globs of archives that may hold the files.
        cache_dir: where compressed files are unpacked.

    Returns:
        The files, in the order of the names and sorted within a glob; empty where one of the names matches nothing.

    Raises:
        DataError: if an archive or a compressed file is damaged.
    """
    if directory.is_file():
        return _in_archive(directory, names, folders, cache_dir)
    for root in _roots(directory, folders):
        found = [_matches(root, name) for name in names]
        if all(found):
            return [_file(path, root, cache_dir) for paths in found for path in paths]
    for root in _roots(directory, folders):
        for pattern in archives:
            for archive in sorted(root.glob(pattern)):
                files = _in_archive(archive, names, folders, cache_dir)
                if files:
                    return files
    return []


def _in_archive(
    archive: Path, names: Sequence[str], folders: Sequence[str], cache_dir: Path | str | None
) -> list[File]:
    if not archive.name.lower().endswith(ARCHIVES):
        return []
    tree = _unpacked(archive, cache_dir)
    return [
        dataclasses.replace(
            file, origin=archive, shown=file.shown.replace(str(tree), str(archive)), synthetic=_marked(archive.parent)
        )
        for file in find(tree, names, folders, (), cache_dir)
    ]


def _roots(directory: Path, folders: Sequence[str]) -> Iterator[Path]:
    yield directory
    yield from (directory / folder for folder in folders if (directory / folder).is_dir())


def _matches(root: Path, name: str) -> list[Path]:
    for suffix in ("", *COMPRESSED):
        paths = sorted(path for path in root.glob(name + suffix) if path.is_file())
        if paths:
            return paths
    return []


def _file(path: Path, root: Path, cache_dir: Path | str | None) -> File:
    return File(path=plain(path, cache_dir), origin=path, shown=str(path), synthetic=_marked(path.parent, root))


def _marked(*folders: Path) -> bool:
    return any((folder / MARK).is_file() for folder in folders)


def inside(directory: Path) -> str:
    """List what a directory holds, for a message.

    Args:
        directory: existing or not.

    Returns:
        Up to ten names.
    """
    if not directory.exists():
        return "no such directory"
    if directory.is_file():
        return f"a file, {directory.name}"
    names = sorted(item.name + "/" * item.is_dir() for item in directory.iterdir())
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more or "an empty directory"


def _unpacked(archive: Path, cache_dir: Path | str | None) -> Path:
    """Unpack an archive's plain files into the cache, once."""
    folder = cache_root(cache_dir) / "unpacked" / identity([archive])
    tree = folder / "tree"
    if _whole(folder, tree):
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        sizes = _extract(archive, place)
    except (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError) as error:
        shutil.rmtree(place, ignore_errors=True)
        raise DataError(
            "an archive cannot be unpacked",
            where=str(archive),
            got=f"{type(error).__name__}: {error}",
            expected="a complete tar archive, and room on disk for its content",
            hint="copy or download the archive again, or unpack it yourself and pass the directory.",
        ) from error
    shutil.rmtree(tree, ignore_errors=True)
    place.rename(tree)
    (folder / _INDEX).write_text(json.dumps(sizes))
    return tree


def _whole(folder: Path, tree: Path) -> bool:
    try:
        sizes = json.loads((folder / _INDEX).read_text())
        return all((tree / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _extract(archive: Path, place: Path) -> dict[str, int]:
    """Copy regular files out; links, devices and names that lead outside are left where they are."""
    sizes: dict[str, int] = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            name = PurePosixPath(os.path.normpath(member.name))
            content = packed.extractfile(member) if member.isfile() else None
            if content is None or name.is_absolute() or ".." in name.parts:
                continue
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file, _BLOCK)
            sizes[str(name)] = target.stat().st_size
    return sizes
