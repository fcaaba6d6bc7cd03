"""Writing texts and whole directories so that a crash leaves the old or the new one, never a part."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from deltaw.disk import TEMPORARY, sync, write_all

__all__ = ["remove_leftovers", "remove_tree", "replace_directory", "write_text"]

TRASH = ".deltaw-trash-"


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all, in UTF-8.

    Args:
        path: where; its directory exists.
        content: the text.

    Raises:
        OSError: if the disk is full or the place is not writable; the old file is as it was.
    """
    write_all(path.parent, {path.name: content.encode("utf-8")})


def replace_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a directory of files whole or not at all.

    An older directory of the same name is moved aside first; a crash between the two renames leaves it under a
    temporary name and the new one unborn, which readers see as "not there".

    Args:
        path: where; its parent exists.
        fill: writes the files into the directory it is given.

    Raises:
        OSError: if the disk is full or the place is not writable; nothing half-written stays.
    """
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        fill(temporary)
        for file in sorted(temporary.rglob("*")):
            sync(file)
        sync(temporary)
        if path.exists():
            remove_tree(path)
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_tree(path: Path) -> None:
    """Delete a directory so that a crash never leaves part of it under its own name.

    Args:
        path: an existing directory.
    """
    trash = path.parent / f"{TRASH}{path.name}-{uuid.uuid4().hex[:8]}"
    path.rename(trash)
    sync(path.parent)
    shutil.rmtree(trash, ignore_errors=True)


def remove_leftovers(directory: Path) -> list[str]:
    """Clear what a killed run left: temporary and half-deleted entries.

    Args:
        directory: an output directory; it need not exist.

    Returns:
        Names of the entries removed.
    """
    if not directory.is_dir():
        return []
    found = [entry for entry in directory.iterdir() if entry.name.startswith((TEMPORARY, TRASH))]
    for entry in found:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return sorted(entry.name for entry in found)
