"""Find the rows of a json file without holding it: an array of objects, objects one after another, or objects by key.

The text is decoded in pieces; each value is parsed once to find where it ends, then forgotten.
"""

from __future__ import annotations

import codecs
import json
from json import JSONDecoder
from pathlib import Path

from deltaw.train.data.sources.base import RowProblem, unreadable
from deltaw.train.data.sources.lines import BOM, Index, index_lines, refuse_utf16, without_constants

__all__ = ["index_json"]

_PIECE = 1 << 20
_SPACE = " \t\r\n"


class _Cursor:
    """A forward-only view of a UTF-8 file as text, counted in bytes and lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("rb")
        head = self.file.read(4)
        refuse_utf16(path, head)
        self.byte = len(BOM) if head.startswith(BOM) else 0
        self.file.seek(self.byte)
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.at, self.line, self.done = "", 0, 1, False
        self.scan = JSONDecoder(parse_constant=without_constants).raw_decode

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.done:
            return False
        # Doubling keeps one huge value from being parsed once per piece.
        block = self.file.read(max(_PIECE, len(self.text) - self.at))
        self.done = not block
        try:
            added = self.decode(block, final=self.done)
        except UnicodeDecodeError as error:
            raise self.error(f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text") from error
        self.text, self.at = self.text[self.at :] + added, 0
        return True

    def error(self, got: str, expected: str) -> Exception:
        hint = "correct the file there, or write one JSON object per line as .jsonl."
        return unreadable(self.path, f"line {self.line}", got, expected, hint)

    def skip_to(self, at: int) -> None:
        passed = self.text[self.at : at]
        self.byte += len(passed.encode("utf-8"))
        self.line += passed.count("\n")
        self.at = at

    def peek(self) -> str:
        """The next character that is no blank, without taking it; empty at the end."""
        while True:
            at = self.at
            while at < len(self.text) and self.text[at] in _SPACE:
                at += 1
            self.skip_to(at)
            if at < len(self.text):
                return self.text[at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> None:
        found = self.peek()
        if found != wanted:
            raise self.error(f"{found!r}" if found else "the end of the file", f"{wanted!r}")
        self.skip_to(self.at + 1)

    def value(self) -> object:
        """Parse and pass the next value."""
        self.peek()
        while True:
            try:
                value, end = self.scan(self.text, self.at)
            except RowProblem as problem:
                raise self.error(str(problem), "strict JSON") from problem
            except json.JSONDecodeError as error:
                if self.more():
                    continue
                self.skip_to(min(error.pos, len(self.text)))
                raise self.error(f"invalid JSON: {error.msg}", "a JSON object") from error
            # A number may go on in the next piece; objects and strings end where they end.
            if end == len(self.text) and not isinstance(value, (dict, list, str)) and self.more():
                continue
            self.skip_to(end)
            return value


def index_json(path: Path) -> tuple[Index, str, list[str]]:
    """Find the rows of a json file.

    Args:
        path: the uncompressed file.

    Returns:
        The byte ranges of the rows; ``json`` or, where the file holds one object per line, ``jsonl``; notes for the
        user.

    Raises:
        DataError: if the file is broken, with the line, or holds no list of objects.
    """
    cursor = _Cursor(path)
    with cursor.file:
        first = cursor.peek()
        index = Index(path)
        if first == "[":
            _array(cursor, index)
            return index, "json", []
        if first != "{":
            got = f"{first!r} as its first character" if first else "nothing"
            raise cursor.error(got, "a JSON array of objects, or one JSON object per line")
        if _first_line_is_object(path):
            return index_lines(path), "jsonl", ["the json file holds one object per line and is read as jsonl"]
        return index, "json", _object(cursor, index)


def _first_line_is_object(path: Path) -> bool:
    with path.open("rb") as file:
        for line in file:
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                break
        rest = any(other.strip() for other in file)
    try:
        value = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and (rest or not _holds_rows(value))


def _holds_rows(value: dict[str, object]) -> bool:
    """Say whether an object is a container of rows rather than a row."""
    values = list(value.values())
    listed = len(values) == 1 and isinstance(values[0], list) and bool(values[0]) and isinstance(values[0][0], dict)
    return (listed and "messages" not in value and "conversations" not in value) or (
        bool(values) and all(isinstance(item, dict) for item in values)
    )


def _element(cursor: _Cursor, index: Index) -> None:
    cursor.peek()
    start, line = cursor.byte, cursor.line
    value = cursor.value()
    if not isinstance(value, dict):
        cursor.line = line
        raise cursor.error(f"an element that is a {type(value).__name__}", "objects with named fields")
    index.add(start, cursor.byte, line)


def _array(cursor: _Cursor, index: Index) -> None:
    cursor.take("[")
    while cursor.peek() != "]":
        if len(index):
            cursor.take(",")
        _element(cursor, index)
    cursor.take("]")
    if cursor.peek():
        raise cursor.error(f"{cursor.peek()!r} after the array", "the end of the file")


def _object(cursor: _Cursor, index: Index) -> list[str]:
    """Rows as the values of one object, under one key of it, or pretty-printed one after another."""
    start, line = cursor.byte, cursor.line
    cursor.take("{")
    if cursor.peek() == "}":
        raise cursor.error("an empty object", "rows")
    key = str(cursor.value())
    cursor.take(":")
    kind = cursor.peek()
    if kind == "[":
        _array_in(cursor, index, key)
        return [f"the rows are the list under the key {key!r}"]
    if kind != "{":
        cursor.file.seek(start)
        fresh = _Cursor(cursor.path)
        with fresh.file:
            while fresh.peek():
                _element(fresh, index)
        return []
    _element(cursor, index)
    while cursor.peek() != "}":
        cursor.take(",")
        cursor.value()
        cursor.take(":")
        _element(cursor, index)
    cursor.line = line
    return ["the rows are the values of one object; its keys are not used"]


def _array_in(cursor: _Cursor, index: Index, key: str) -> None:
    cursor.take("[")
    while cursor.peek() != "]":
        if len(index):
            cursor.take(",")
        _element(cursor, index)
    cursor.take("]")
    if cursor.peek() != "}":
        raise cursor.error(
            f"more keys beside the list {key!r}", "one list of objects, so that it is clear which rows are meant"
        )
