"""Hypotheses and references in files, in the layouts of the reference scripts.

``lines``: one segment a line, in the hypotheses and in each of one or more reference files; a reference file may have
an empty line where a segment has fewer references. ``e2e``: one reference file whose groups are separated by empty
lines (e2e-metrics); a file without any empty line has one reference a line, unless there is one hypothesis only.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.errors import ConfigError, DataError, nearest

__all__ = ["LAYOUTS", "Segments", "read_lines", "read_segments"]

LAYOUTS = ("lines", "e2e")


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Texts ready to be scored.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        empty_references: empty lines of the reference files.
    """

    hypotheses: list[str]
    references: list[list[str]]
    empty_references: int = 0


def read_lines(path: str | Path) -> list[str]:
    """Read a text file, compressed with gzip or not, as lines without the blanks around them.

    Args:
        path: the file.

    Returns:
        Lines; empty ones stay.

    Raises:
        DataError: if it cannot be read, or is not UTF-8: then with the line.
    """
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise DataError(
            "a file cannot be read",
            where=str(path),
            got=getattr(error, "strerror", None) or str(error),
            expected="a text file with one segment on each line",
            hint="give the path of an existing file, as it is or compressed with gzip",
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            "a file is not UTF-8",
            where=f"{path}, line {line}",
            got=f"the byte 0x{raw[error.start]:02x}",
            expected="text in UTF-8",
            hint=f"convert it: iconv -f latin1 -t utf-8 {Path(path).name}",
        ) from None
    # Only line feeds end a segment: splitlines would also end one at a form feed or U+2028 within a text.
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def read_segments(
    hypotheses: str | Path,
    references: str | Path | Sequence[str | Path],
    *,
    layout: str = "lines",
    allow_empty: bool = False,
) -> Segments:
    """Read the files that belong together.

    Args:
        hypotheses: the file of the texts that are judged.
        references: one file, or with the layout ``lines`` several.
        layout: how the references stand in their files.
        allow_empty: let hypotheses be empty.

    Returns:
        The texts.

    Raises:
        ConfigError: if there is no such layout, or it takes one reference file and several are given.
        DataError: if a file cannot be read, counts differ, or a text is missing: with file and line.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            "there is no such layout",
            where="layout",
            got=repr(layout),
            expected=" or ".join(LAYOUTS),
            hint=f"closest: {nearest(layout, LAYOUTS, 1)}",
        )
    files = [references] if isinstance(references, str | Path) else list(references)
    if not files or (layout == "e2e" and len(files) > 1):
        raise ConfigError(
            "the layout e2e has one file of references" if files else "there is no file of references",
            where="references",
            got=f"{len(files)} files",
            expected="one file with groups separated by empty lines" if files else "at least one file",
            hint="for one reference a line in several files use --layout lines",
        )
    texts = _hypotheses(hypotheses, allow_empty)
    if layout == "e2e":
        return Segments(hypotheses=texts, references=_groups(files[0], hypotheses, len(texts)))
    columns = [read_lines(file) for file in files]
    for file, column in zip(files, columns, strict=True):
        _same_count(hypotheses, len(texts), file, len(column), "lines")
    groups = [list(group) for group in zip(*columns, strict=True)]
    for number, group in enumerate(groups, 1):
        if not any(group):
            raise _no_reference(", ".join(map(str, files)), number)
    empty = sum(not text for group in groups for text in group)
    return Segments(hypotheses=texts, references=groups, empty_references=empty)


def _hypotheses(path: str | Path, allow_empty: bool) -> list[str]:
    texts = read_lines(path)
    if not texts:
        raise DataError(
            "a file of hypotheses is empty",
            where=str(path),
            got="no lines",
            expected="one hypothesis on each line",
            hint="look whether the decoding wrote anything",
        )
    for number, text in enumerate(texts, 1):
        if not text and not allow_empty:
            raise DataError(
                "a hypothesis is empty",
                where=f"{path}, line {number}",
                got="an empty line",
                expected="a text on every line",
                hint="if the model really wrote nothing there, score it as such: --empty-hypotheses counted",
            )
    return texts


def _groups(path: str | Path, hypotheses: str | Path, count: int) -> list[list[str]]:
    """Read groups between empty lines; where no line is empty every line is a group."""
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" not in lines and len(lines) != 1 and count != 1:
        groups = [[line] for line in lines]
    else:
        groups = [[]]
        for number, line in enumerate(lines, 1):
            if line:
                groups[-1].append(line)
                continue
            if not groups[-1]:
                raise _no_reference(str(path), number)
            groups.append([])
    if groups == [[]]:
        groups = []
    _same_count(hypotheses, count, path, len(groups), "groups of references")
    return groups


def _same_count(hypotheses: str | Path, count: int, references: str | Path, found: int, things: str) -> None:
    if count != found:
        short, long = (references, hypotheses) if found < count else (hypotheses, references)
        raise DataError(
            "there are not as many hypotheses as references",
            where=f"{hypotheses} and {references}",
            got=f"{count} hypotheses and {found} {things}; {short} ends after {min(count, found)}",
            expected="one line or group for every hypothesis, in the same order",
            hint=f"look in {Path(long).name} from number {min(count, found) + 1} on, or choose another --layout",
        )


def _no_reference(path: str, line: int) -> DataError:
    return DataError(
        "a group of references is empty",
        where=f"{path}, line {line}",
        got="no text",
        expected="at least one reference for every hypothesis",
        hint="leave the segment out of both files, or add what it is compared with",
    )
