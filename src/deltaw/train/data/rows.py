"""Rows of a data file, read where they lie: text and columnar formats, also compressed, and saved datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.errors import DataError, nearest
from deltaw.train.data.sources.base import Row, RowProblem, Source, empty, unreadable
from deltaw.train.data.sources.columnar import ArrowSource, ParquetSource, saved_files
from deltaw.train.data.sources.jsonscan import index_json
from deltaw.train.data.sources.lines import JsonSource, SeparatedSource, TextSource, index_lines
from deltaw.train.data.sources.place import COMPRESSED, identity, plain

__all__ = ["Rows", "load_rows"]

Picks = range | NDArray[np.int64]


class Rows:
    """A sequence of rows; ``rows[i]`` reads one from disk, nothing else is held.

    Args:
        source: where they come from.
        path: what the user named.
        files: the files behind it, for the identity.
        options: reading options that change the rows, for the identity.
        picks: positions in the source, in order; None for all.
    """

    def __init__(
        self, source: Source, path: Path, files: list[Path], options: str = "", picks: Picks | None = None
    ) -> None:
        self.source, self.path, self.files, self._options = source, path, files, options
        self.picks: Picks = range(len(source)) if picks is None else picks
        self._identity: str | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.picks)

    def __getitem__(self, index: int) -> Row:
        """Read one row.

        Args:
            index: position from 0; negative counts from the end.

        Returns:
            The values by column name.

        Raises:
            DataError: if the row is broken; the message has its line.
        """
        try:
            return self.source.row(int(self.picks[index]))
        except RowProblem as problem:
            hint = "correct or remove the row."
            what = "a row cannot be read"
            raise DataError(
                what, where=self.where(index), got=str(problem), expected="a whole row", hint=hint
            ) from None

    def __iter__(self) -> Iterator[Row]:
        """Read all rows in order."""
        return (self[index] for index in range(len(self)))

    def each(self) -> Iterator[tuple[int, Row | RowProblem]]:
        """Read all rows in order without stopping at broken ones.

        Yields:
            tuple[int, Row | RowProblem]: the position from 0, and the row or its problem.
        """
        if isinstance(self.picks, range) and self.picks.step == 1:
            for index, row in self.source.each(self.picks.start):
                if index >= self.picks.stop:
                    return
                yield index - self.picks.start, row
            return
        for index, pick in enumerate(self.picks):
            try:
                yield index, self.source.row(int(pick))
            except RowProblem as problem:
                yield index, problem

    @property
    def kind(self) -> str:
        """The file format, such as ``jsonl``."""
        return self.source.kind

    @property
    def notes(self) -> list[str]:
        """Choices made while reading that the user should see."""
        return self.source.notes

    def number(self, index: int) -> str:
        """Name a row as an editor shows it.

        Args:
            index: position from 0.

        Returns:
            Such as ``line 12`` or ``row 12``, counted from 1.
        """
        return f"{self.source.unit} {self.source.place(int(self.picks[index]))}"

    def where(self, index: int) -> str:
        """Name the place of a row for an error message.

        Args:
            index: position from 0.

        Returns:
            The path and the line or row number.
        """
        return f"{self.path}, {self.number(index)}"

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Rows:
        """Take some of the rows, without reading them.

        Args:
            indices: positions in these rows, in the wanted order.

        Returns:
            A view on the same file.
        """
        picks: Picks
        if isinstance(indices, range) and isinstance(self.picks, range):
            picks = self.picks[indices.start : indices.stop : indices.step]
        else:
            picks = np.asarray(self.picks, dtype=np.int64)[np.asarray(indices, dtype=np.int64)]
        return Rows(self.source, self.path, self.files, self._options, picks)

    def identity(self) -> str:
        """Name the content of these rows; see :func:`deltaw.train.data.sources.place.identity`.

        Returns:
            A string that differs when the files, the reading options or the choice of rows differ.
        """
        if self._identity is None:
            self._identity = identity(self.files)
        chosen = repr(self.picks)
        if not isinstance(self.picks, range):
            chosen = hashlib.blake2b(self.picks.tobytes(), digest_size=16).hexdigest()
        return f"{self._identity}|{self.kind}|{self._options}|{chosen}"


def _lines(path: Path, separator: str | None) -> Source:
    return TextSource(index_lines(path), separator)


def _jsonl(path: Path, separator: str | None) -> Source:
    return JsonSource(index_lines(path), "jsonl")


def _json(path: Path, separator: str | None) -> Source:
    index, kind, notes = index_json(path)
    source = JsonSource(index, kind)
    source.notes.extend(notes)
    return source


def _csv(path: Path, separator: str | None) -> Source:
    return SeparatedSource(path, "csv")


def _tsv(path: Path, separator: str | None) -> Source:
    return SeparatedSource(path, "tsv")


def _parquet(path: Path, separator: str | None) -> Source:
    return ParquetSource(path)


READERS: dict[str, Callable[[Path, str | None], Source]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _lines,
    ".parquet": _parquet,
}


def load_rows(
    path: str | Path,
    *,
    limit: int | None = None,
    separator: str | None = None,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Open a data file. Text formats are indexed by byte offset, columnar ones by row group; no row is kept.

    Args:
        path: a file, its format named by the suffix (``.jsonl .json .csv .tsv .txt .parquet``, also with ``.gz``,
            ``.bz2`` or ``.xz`` behind it), or a directory written by datasets' ``save_to_disk``.
        limit: read only so many rows from the top.
        separator: for ``.txt``: what stands between prompt and completion in each line, such as ``||``.
        cache_dir: where compressed files are unpacked; see :func:`deltaw.train.data.sources.place.cache_root`.

    Returns:
        The rows, by position.

    Raises:
        DataError: if the file is missing, empty, of an unknown kind, or broken in its structure.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        folder, files, notes = saved_files(path)
        source: Source = ArrowSource(folder, files)
        source.notes.extend(notes)
        kind = "a saved dataset"
    else:
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
        kind = suffixes[-1] if suffixes else ""
        if kind not in READERS:
            raise _unknown_kind(path, kind)
        if not path.stat().st_size:
            raise empty(path)
        files = [path]
        source = READERS[kind](plain(path, cache_dir), separator)
    if separator is not None and kind != ".txt":
        hint = "leave out the separator, or pass the .txt file it belongs to."
        raise unreadable(path, "", f"separator {separator!r} with {kind}", "a .txt file, whose lines it splits", hint)
    if limit is not None and limit < 1:
        raise unreadable(path, "", f"limit {limit}", "a limit of at least 1 row", "leave out the limit to read all.")
    picks = None if limit is None else range(min(limit, len(source)))
    return Rows(source, path, files, repr(separator), picks)


def _missing(path: Path) -> DataError:
    folder: Any = path.parent
    names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    near = nearest(path.name, names) if names else "nothing, the folder does not exist or is empty"
    return DataError(
        "the data file does not exist",
        where=str(path),
        got="no file or directory of this name",
        expected=f"an existing path; closest in {folder}: {near}",
        hint="check the spelling and the working directory.",
    )


def _unknown_kind(path: Path, kind: str) -> DataError:
    return DataError(
        "the kind of a data file is not known",
        where=str(path),
        got=f"the suffix {kind!r}" if kind else "no suffix",
        expected=f"one of {' '.join(READERS)}, also with {' '.join(COMPRESSED)}, or a saved dataset's directory",
        hint=f"rename the file to what it holds; closest suffix: {nearest(kind, READERS, 1)}.",
    )
