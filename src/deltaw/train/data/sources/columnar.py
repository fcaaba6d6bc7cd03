"""Columnar files: parquet by row group, and the directories that datasets' ``save_to_disk`` writes, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deltaw.errors import DataError, nearest
from deltaw.train.data.sources.base import Row, RowProblem, empty, unreadable

__all__ = ["ArrowSource", "ParquetSource", "saved_files"]

_BATCH = 1024


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "parquet and saved datasets need pyarrow",
            where="the Python environment",
            got="no package pyarrow",
            expected="pyarrow 14 or newer",
            hint="pip install 'deltaw[train]'",
        ) from error
    return pyarrow


class _Tables:
    """Rows in tables that are loaded one at a time."""

    unit = "row"
    kind = ""

    def __init__(self, path: Path, counts: list[int]) -> None:
        self.path, self.notes = path, list[str]()
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._held: tuple[int, Any] = (-1, None)
        if not len(self):
            raise empty(path) if path.is_file() else _no_rows(path)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (-1, None)}

    def place(self, index: int) -> int:
        return index + 1

    def table(self, number: int) -> Any:
        raise AssertionError("each source loads its own tables")

    def _locate(self, index: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        if self._held[0] != number:
            self._held = (number, self.table(number))
        return self._held[1], index - (int(self._ends[number - 1]) if number else 0)

    def row(self, index: int) -> Row:
        table, at = self._locate(index)
        row: Row = table.slice(at, 1).to_pylist()[0]
        return row

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        index = start
        while index < len(self):
            table, at = self._locate(index)
            for row in table.slice(at, _BATCH).to_pylist():
                yield index, row
                index += 1


class ParquetSource(_Tables):
    """Rows of a parquet file; one row group is held at a time.

    Args:
        path: the uncompressed file.
    """

    kind = "parquet"

    def __init__(self, path: Path) -> None:
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _broken(path, error) from error
        super().__init__(path, groups)

    def table(self, number: int) -> Any:
        """Load one row group.

        Args:
            number: its position from 0.

        Returns:
            A pyarrow table.

        Raises:
            DataError: if its bytes are damaged.
        """
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                return file.read_row_group(number)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _broken(self.path, error) from error


class ArrowSource(_Tables):
    """Rows of the arrow files of a saved dataset; they are mapped, not read.

    Args:
        path: the directory.
        files: its arrow files, in order.
    """

    kind = "datasets"

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.files = files
        super().__init__(path, [self._open(file).num_rows for file in files])

    def _open(self, file: Path) -> Any:
        pyarrow = _pyarrow()
        try:
            mapped = pyarrow.memory_map(str(file))
            try:
                return pyarrow.ipc.open_stream(mapped).read_all()
            except pyarrow.ArrowInvalid:
                return pyarrow.ipc.open_file(mapped).read_all()
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _broken(file, error) from error

    def table(self, number: int) -> Any:
        """Map one arrow file.

        Args:
            number: its position from 0.

        Returns:
            A pyarrow table.
        """
        return self._open(self.files[number])


def saved_files(path: Path) -> tuple[Path, list[Path], list[str]]:
    """Find the arrow files of a saved dataset; of a saved collection of splits, its training split.

    Args:
        path: the directory.

    Returns:
        The directory of the split, its arrow files in order, notes for the user.

    Raises:
        DataError: if the directory is no saved dataset, or has several splits and none is called train.
    """
    notes: list[str] = []
    if (path / "dataset_dict.json").is_file():
        splits = [str(name) for name in _json(path / "dataset_dict.json").get("splits", [])]
        if "train" not in splits and len(splits) != 1:
            got = f"the splits {', '.join(splits) or 'none'}"
            raise unreadable(
                path, "", got, "one split, or one called train", "name one: pass the directory of a split."
            )
        name = "train" if "train" in splits else splits[0]
        notes.append(f"split {name!r} of {', '.join(splits)}; pass {path.name}/NAME for another")
        path = path / name
    if not (path / "state.json").is_file():
        inside = sorted(item.name for item in path.iterdir())[:8]
        got = f"a directory without state.json; inside: {', '.join(inside) or 'nothing'}"
        hint = f"pass one of its files, such as {nearest('train', inside, 1)}, or write the dataset with save_to_disk."
        raise unreadable(path, "", got, "a directory written by datasets' save_to_disk", hint)
    entries = _json(path / "state.json").get("_data_files", [])
    return path, [path / entry["filename"] for entry in entries], notes


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    return value


def _no_rows(path: Path) -> DataError:
    hint = "check that the dataset was filled before save_to_disk."
    return DataError("a data file holds no rows", where=str(path), got="0 rows", expected="at least one row", hint=hint)


def _broken(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200].replace(str(path), path.name)
    hint = "copy or write the file again; check its suffix against its content."
    return unreadable(path, "", f"{type(error).__name__}: {reason}", f"a complete {path.suffix} file", hint)
