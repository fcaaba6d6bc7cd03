"""Records of triples with their texts, from the XML that WebNLG and DART share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from deltaw.errors import DataError
from deltaw.train.data.sources.base import Row, RowProblem, unreadable
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import EmptyText

__all__ = ["Entry", "encode", "read_xml", "rows_of"]

_BLOCK = 1 << 20


@dataclass(kw_only=True)
class Entry:
    """One record.

    Args:
        line: where it starts.
        category: its topic.
        triples: (subject, relation, object), in order.
        texts: (line, comment, text), in order.
        problem: why its triples cannot be read; empty where they can.
    """

    line: int
    category: str = ""
    triples: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[tuple[int, str, str]] = field(default_factory=list)
    problem: str = ""

    def add(self, parts: Iterable[object]) -> None:
        """Append one triple.

        Args:
            parts: its parts; three texts, or the entry has a problem.
        """
        found = tuple(parts)
        if len(found) != 3 or not all(isinstance(part, str) and part.strip() for part in found):
            self.problem = self.problem or f"a triple of {len(found)} parts, {' | '.join(map(str, found))!r}"
            return
        first, relation, last = map(str, found)
        self.triples.append((first, relation, last))


def encode(triples: Iterable[tuple[str, str, str]], *, lower: bool = False) -> str:
    """Write triples as the paper's code does.

    Args:
        triples: (subject, relation, object), in order.
        lower: whether the relation is written in lower case.

    Returns:
        ``s : p : o | s : p : o``.

    Source:
        microsoft/LoRA, examples/NLG/src/format_converting_webnlg.py and format_converting_dart.py.

    Example:
        >>> encode([("Aarhus", "LEADER", "Jacob Bundsgaard")], lower=True)
        'Aarhus : leader : Jacob Bundsgaard'
    """
    return " | ".join(f"{first} : {name.lower() if lower else name} : {last}" for first, name, last in triples)


def rows_of(
    file: File, number: int, entry: Entry, *, split: str, group: str = "", lower: bool = False
) -> Iterator[tuple[File, int, Row | RowProblem]]:
    """Make the rows of one record: one for each of its texts.

    Args:
        file: where it stands.
        number: its position from 1 in the split.
        entry: the record.
        split: the split.
        group: the group of the record.
        lower: whether relations are written in lower case.

    Yields:
        tuple[File, int, Row | RowProblem]: file, line, and row or problem.
    """
    problem = entry.problem or ("" if entry.triples else "a record without triples")
    context = encode(entry.triples, lower=lower)
    for place, (line, _, text) in enumerate(entry.texts, 1):
        if problem or not text.strip():
            yield file, line, RowProblem(problem) if problem else EmptyText(context)
            continue
        row = {"id": f"{split}-{number}-{place}", "context": context, "completion": text.strip()}
        yield file, line, {**row, "group": group, "entry": f"{split}-{number}"}


class _Reader:
    """Collects entries from the events of the parser."""

    def __init__(self, parser: Any) -> None:
        self.parser = parser
        self.done: list[Entry] = []
        self.entry: Entry | None = None
        self.open: tuple[int, str] | None = None
        self.text: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        if name == "entry":
            self.entry = Entry(line=line, category=attributes.get("category", ""))
        elif name in ("mtriple", "lex"):
            self.open, self.text = (line, attributes.get("comment", "")), []

    def data(self, text: str) -> None:
        if self.open is not None:
            self.text.append(text)

    def end(self, name: str) -> None:
        if name == "entry" and self.entry is not None:
            self.done.append(self.entry)
            self.entry = None
        elif name in ("mtriple", "lex") and self.open is not None:
            (line, comment), self.open = self.open, None
            text = "".join(self.text)
            if self.entry is not None and name == "mtriple":
                self.entry.add(part.strip() for part in text.strip().split(" | "))
            elif self.entry is not None:
                self.entry.texts.append((line, comment, text))


def _no_doctype(*declaration: object) -> None:
    raise RowProblem("a document type declaration")


def read_xml(file: File) -> Iterator[Entry]:
    """Read the records of one file, with their lines.

    Args:
        file: a ``benchmark`` of ``entry`` elements with ``mtriple`` and ``lex`` in them.

    Yields:
        Entry: one record after another.

    Raises:
        DataError: if it is no complete XML, or holds no record.
    """
    parser = expat.ParserCreate()
    reader = _Reader(parser)
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reader.data, _no_doctype
    count = 0
    with file.path.open("rb") as stream:
        block = b" "
        while block:
            block = stream.read(_BLOCK)
            try:
                parser.Parse(block, not block)
            except expat.ExpatError as error:
                raise _broken(file, error.lineno, f"invalid XML: {expat.ErrorString(error.code)}") from error
            except RowProblem as problem:
                raise _broken(file, parser.CurrentLineNumber, str(problem)) from problem
            yield from reader.done
            count += len(reader.done)
            reader.done.clear()
    if not count:
        raise _broken(file, 1, "no element 'entry'")


def _broken(file: File, line: int, got: str) -> DataError:
    hint = "copy or download the file again; it was cut off or is another kind of file."
    error = unreadable(file.path, f"line {line}", got, "<entry> elements with <mtriple> and <lex>, all closed", hint)
    return DataError(error.what, where=f"{file.shown}, line {line}", got=got, expected=error.expected, hint=hint)
