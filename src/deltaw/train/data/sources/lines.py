"""Files of text: rows are found by byte offset once, then read where they lie.

An index costs 24 bytes per row; the text itself stays on disk, so a file may be larger than memory.
"""

from __future__ import annotations

import csv
import io
import json
import mmap
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.train.data.sources.base import Row, RowProblem, empty, unreadable

__all__ = ["Index", "JsonSource", "SeparatedSource", "TextSource", "index_lines", "without_constants"]

BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Index:
    """Byte ranges of rows in a file.

    Args:
        path: the uncompressed file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        self._map: mmap.mmap | None = None

    def add(self, start: int, end: int, line: int) -> None:
        """Append one row.

        Args:
            start: first byte.
            end: one past the last byte.
            line: number of the line where it starts, from 1.
        """
        self._starts.append(start)
        self._ends.append(end)
        self._lines.append(line)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory map behind; it is opened again on the other side."""
        return {**self.__dict__, "_map": None}

    def line(self, index: int) -> int:
        """Number the line where a row starts.

        Args:
            index: position from 0.

        Returns:
            The line number, from 1.
        """
        return self._lines[index]

    def text(self, index: int) -> str:
        """Read one row.

        Args:
            index: position from 0.

        Returns:
            Its text.

        Raises:
            RowProblem: if the bytes are not UTF-8.
        """
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return self._map[self._starts[index] : self._ends[index]].decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowProblem(f"the bytes are not UTF-8 ({error.reason} at byte {error.start} of the row)") from error

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each row, shape (rows,)."""
        return np.frombuffer(self._ends, dtype=np.int64) - np.frombuffer(self._starts, dtype=np.int64)


def index_lines(path: Path, *, skip: int = 0) -> Index:
    """Find the lines of a file that hold something.

    Args:
        path: the uncompressed file.
        skip: how many lines to leave out at the top, such as a header.

    Returns:
        The byte range of each line without its line break; blank lines are left out.

    Raises:
        DataError: if the file is UTF-16, which has other line breaks.
    """
    index, start = Index(path), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end, size = start + len(line.rstrip(b"\r\n")), len(line)
            if number == 1:
                refuse_utf16(path, line)
                start += len(BOM) * line.startswith(BOM)
                size -= len(BOM) * line.startswith(BOM)
            if number > skip and line.strip():
                index.add(start, end, number)
            start += size
    return index


def refuse_utf16(path: Path, head: bytes) -> None:
    """Refuse a file that begins with the mark of UTF-16.

    Args:
        path: the file.
        head: its first bytes.

    Raises:
        DataError: if it does.
    """
    if head.startswith(_UTF16):
        raise unreadable(
            path,
            "line 1",
            "a UTF-16 byte order mark",
            "UTF-8 text",
            f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}",
        )


class _Lines:
    """Rows that are read through an index."""

    unit = "line"

    def __init__(self, index: Index, kind: str) -> None:
        self.index, self.kind, self.notes = index, kind, list[str]()
        if not len(index):
            raise empty(index.path)

    def __len__(self) -> int:
        return len(self.index)

    def place(self, index: int) -> int:
        return self.index.line(index)

    def row(self, index: int) -> Row:
        return self.parse(self.index.text(index))

    def each(self, start: int) -> Iterator[tuple[int, Row | RowProblem]]:
        for index in range(start, len(self)):
            try:
                yield index, self.row(index)
            except RowProblem as problem:
                yield index, problem

    def parse(self, text: str) -> Row:
        raise AssertionError("each source parses its own rows")


class JsonSource(_Lines):
    """Rows that are JSON objects: the lines of a jsonl file, or the elements of a json file.

    Args:
        index: where they are.
        kind: ``jsonl`` or ``json``.
    """

    def __init__(self, index: Index, kind: str) -> None:
        super().__init__(index, kind)
        # An array written without line breaks is one line: numbering its rows by lines would name none of them.
        if len(index) > 1 and index.line(0) == index.line(len(index) - 1):
            self.unit = "row"

    def place(self, index: int) -> int:
        """Number a row by the line where it starts, or by its position where one line holds all."""
        return self.index.line(index) if self.unit == "line" else index + 1

    def parse(self, text: str) -> Row:
        """Read one JSON object.

        Args:
            text: the bytes of the row, decoded.

        Returns:
            The object.

        Raises:
            RowProblem: if it is not JSON, or not an object.
        """
        try:
            value = json.loads(text, parse_constant=without_constants)
        except json.JSONDecodeError as error:
            raise RowProblem(f"not valid JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise RowProblem("JSON nested too deeply") from error
        if not isinstance(value, dict):
            raise RowProblem(f"a JSON {type(value).__name__}, not an object with named fields")
        return value


def without_constants(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON.

    Args:
        name: the constant.

    Raises:
        RowProblem: always.
    """
    raise RowProblem(f"{name} is not valid JSON")


class TextSource(_Lines):
    """Lines of plain text: one text per line, or two halves around a separator.

    Args:
        index: where the lines are.
        separator: what stands between prompt and completion; None for whole lines.
    """

    def __init__(self, index: Index, separator: str | None) -> None:
        super().__init__(index, "txt")
        self.separator = separator

    def parse(self, text: str) -> Row:
        """Read one line.

        Args:
            text: the line.

        Returns:
            ``{"text"}``, or ``{"prompt", "completion"}`` without the blanks around either half.

        Raises:
            RowProblem: if the separator is missing.
        """
        if self.separator is None:
            return {"text": text}
        prompt, found, completion = text.partition(self.separator)
        if not found:
            raise RowProblem(f"no separator {self.separator!r} in the line")
        return {"prompt": prompt.strip(), "completion": completion.strip()}


# A header-less layout that is common enough to be known: GLUE's CoLA.
_COLA = ("source", "label", "mark", "sentence")


class SeparatedSource(_Lines):
    """Rows of a csv file (quoted fields) or a tsv file (no quoting, as in GLUE).

    Args:
        path: the uncompressed file.
        kind: ``csv`` or ``tsv``.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.quoted = kind == "csv"
        with path.open("rb") as file:
            head = file.readline()
        refuse_utf16(path, head)
        first = head.removeprefix(BOM).decode("utf-8", errors="replace").rstrip("\r\n")
        self.delimiter = _delimiter(first) if self.quoted else "\t"
        cells = self._cells(first)
        self.columns, has_header = _header(path, cells)
        super().__init__(_index_records(path, self) if self.quoted else index_lines(path, skip=has_header), kind)
        if not has_header:
            self.notes.append(f"no header line: the columns are read as {', '.join(self.columns)} (GLUE's CoLA layout)")
        if self.quoted and self.delimiter != ",":
            self.notes.append(f"the fields are separated by {self.delimiter!r}")

    def _cells(self, text: str) -> list[str]:
        if not self.quoted:
            return text.split("\t")
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        return next(csv.reader([text], delimiter=self.delimiter, strict=True), [])

    def parse(self, text: str) -> Row:
        """Read one record.

        Args:
            text: the record, line breaks inside quotes included.

        Returns:
            The cells by column, all of them strings.

        Raises:
            RowProblem: if the number of cells is not the number of columns.
        """
        try:
            cells = self._cells(text) if "\n" not in text else _multiline(text, self.delimiter)
        except csv.Error as error:
            raise RowProblem(f"not valid CSV: {error}") from error
        if len(cells) != len(self.columns):
            raise RowProblem(f"{len(cells)} field{'s' * (len(cells) != 1)} where the header has {len(self.columns)}")
        return dict(zip(self.columns, cells, strict=True))

    def closed(self, text: str) -> bool:
        """Say whether a record is complete, that is, has no open quote.

        Args:
            text: the record so far.

        Returns:
            False where a quoted field goes on.
        """
        try:
            _multiline(text, self.delimiter)
        except csv.Error as error:
            return "unexpected end of data" not in str(error)
        return True


def _multiline(text: str, delimiter: str) -> list[str]:
    # Not splitlines: only \r and \n end a line of csv, other separators of Unicode are text.
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])


def _delimiter(first: str) -> str:
    """Take a comma unless the header has none; spreadsheets of some countries write semicolons."""
    return "," if "," in first else max((";", "\t", "|", ","), key=first.count)


def _header(path: Path, cells: list[str]) -> tuple[tuple[str, ...], bool]:
    """Take the first line as the header, after looking whether it can be one."""
    names = tuple(cell.strip() for cell in cells)
    if len(names) == len(_COLA) and names[1] in ("0", "1") and names[2] in ("", "*"):
        return _COLA, False
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    blank = [number for number, name in enumerate(names, 1) if not name]
    # One blank name is what a data frame written with its index looks like.
    if twice or len(blank) > 1 or (blank and blank != [1]) or all(_number(name) for name in names):
        got = f"columns {', '.join(map(repr, names))}"
        hint = "add a header line with one name per column, such as prompt,completion or text,label."
        raise unreadable(path, "line 1", got, "a header: distinct, non-empty column names", hint)
    return tuple(name or "index" for name in names), True


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# A record that is still open after so much is an unclosed quote, not a long field.
_OPEN_BYTES, _OPEN_TRIES = 16 << 20, 1000


def _index_records(path: Path, source: SeparatedSource) -> Index:
    """Find the records of a csv file; a quoted field may hold line breaks."""
    index, position, begin, first_line, tries = Index(path), 0, 0, 0, 0
    pending: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not pending:
                begin, first_line, size, tries = position, number, 0, 0
            position += len(line)
            size += len(line)
            pending.append(line)
            # Only a line with a quote can open or close a field.
            if b'"' in line or len(pending) > 1:
                tries += b'"' in line
                if b'"' not in line or not source.closed(b"".join(pending).decode("utf-8", errors="replace")):
                    if size > _OPEN_BYTES or tries > _OPEN_TRIES:
                        break
                    continue
            if first_line > 1 and (len(pending) > 1 or line.strip()):
                index.add(begin, begin + len(b"".join(pending).rstrip(b"\r\n")), first_line)
            pending = []
    if pending:
        raise unreadable(
            path,
            f"line {first_line}",
            "a quote that is never closed",
            'quotes in pairs; a quote inside a quoted field is written ""',
            "close the quote, or save the file as tsv, where quotes have no meaning.",
        )
    return index
