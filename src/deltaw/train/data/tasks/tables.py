"""Open separated, JSON and line files of tasks, and refuse columns that are not the task's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltaw.errors import DataError
from deltaw.train.data.sources.base import Source, unreadable
from deltaw.train.data.sources.jsonscan import index_json
from deltaw.train.data.sources.lines import JsonSource, SeparatedSource, TextSource, index_lines
from deltaw.train.data.tasks.files import File, named

__all__ = ["json_rows", "lines", "separated"]


def _opened(file: File, read: Callable[[], Source]) -> Source:
    try:
        return read()
    except DataError as error:
        raise named(error, file) from error


def separated(file: File, kind: str, columns: Sequence[str]) -> Source:
    """Open a csv or tsv file.

    Args:
        file: the file.
        kind: ``csv`` (quoted fields) or ``tsv`` (quotes are text).
        columns: those that the task reads.

    Returns:
        Its rows.

    Raises:
        DataError: if it lacks one of the columns, or its structure is broken.
    """
    source = _opened(file, lambda: SeparatedSource(file.path, kind))
    found = getattr(source, "columns", ())
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise unreadable(
            file.origin,
            "line 1",
            f"columns {', '.join(map(repr, found))}",
            f"a header with {', '.join(map(repr, columns))}",
            "pass the directory of this task; the columns belong to another file.",
        )
    return source


def lines(file: File, separator: str) -> Source:
    """Open a file of lines in two halves.

    Args:
        file: the file.
        separator: what stands between them.

    Returns:
        Its rows.
    """
    return _opened(file, lambda: TextSource(index_lines(file.path), separator))


def json_rows(file: File, *, lines: bool = False) -> Source:
    """Open a file of JSON objects.

    Args:
        file: the file.
        lines: whether it must hold one object per line.

    Returns:
        Its rows.
    """
    if lines:
        return _opened(file, lambda: JsonSource(index_lines(file.path), "jsonl"))

    def read() -> Source:
        index, kind, _ = index_json(file.path)
        return JsonSource(index, kind)

    try:
        return _opened(file, read)
    except DataError as error:
        hint = "copy or download the file again; it was cut off or is another kind of file."
        raise DataError(error.what, where=error.where, got=error.got, expected=error.expected, hint=hint) from error
