"""Writing what a command makes: all files or none, and one error where the disk refuses."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deltaw.disk import write_all
from deltaw.errors import ConfigError

__all__ = ["csv_text", "write_output"]


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Write rows as comma-separated values.

    Args:
        rows: the titles first; every digit of a number is kept, None is an empty field.

    Returns:
        Lines that end in a newline each.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def write_output(directory: Path, files: Mapping[str, bytes], what: str) -> tuple[Path, ...]:
    """Write files into a directory, all or none; others stay.

    Args:
        directory: made if absent.
        files: name -> content.
        what: what they are, for the message.

    Returns:
        Their paths.

    Raises:
        ConfigError: if the disk refuses; what stood there before is unchanged.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_all(directory, files)
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be written",
            where=str(directory),
            got=f"{type(error).__name__}: {error.strerror or error}",
            expected="a writable directory with room",
            hint="choose another --output; what stood there before is unchanged.",
        ) from error
    return tuple(directory / name for name in files)
