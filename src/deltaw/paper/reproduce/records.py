"""What a row's run left: numbers, and everything that is needed to get them again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import CheckpointError
from deltaw.train.files import write_text

__all__ = ["RESULTS", "Record", "hash_of", "read_records", "write_record"]

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Where the results that come with the package are."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one row.

    Args:
        row: the row's name.
        title: what it is called in a table.
        table: the paper's table or figure that it stands beside.
        on: what it ran on.
        seed: of the run.
        quick: whether it was the quick form, which no table reports.
        values: name -> number.
        settings: what a reader should know.
        command: the one command that repeats it.
        steps: the commands that it ran.
        date: of the run, ISO.
        hardware: processor and number of cores.
        versions: package -> version.
        seconds: how long it took by the clock.
        inputs: input -> the first 16 hexadecimal digits of the SHA-256 of its content.
        sheet: the table of an analysis: title, rows, notes; empty where ``values`` say it all.
        figure: name of the SVG file beside the record, or empty.
    """

    row: str
    title: str
    table: str
    on: str
    seed: int
    quick: bool
    values: Mapping[str, float]
    settings: Mapping[str, Any]
    command: str
    steps: tuple[str, ...]
    date: str
    hardware: str
    versions: Mapping[str, str]
    seconds: float
    inputs: Mapping[str, str] = field(default_factory=dict)
    sheet: Mapping[str, Any] = field(default_factory=dict)
    figure: str = ""

    @property
    def family(self) -> str:
        """The first part of the row's name."""
        return self.row.partition("/")[0]

    @property
    def file_name(self) -> str:
        """Name of its file: the row and the seed."""
        return f"{self.row.replace('/', '_')}_seed{self.seed}.json"


def hash_of(path: Path) -> str:
    """Name the content of a file, or of a directory's files with their names.

    Args:
        path: an existing file or directory.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(b"" if file == path else file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def write_record(record: Record, directory: Path, figure: Path | None = None) -> Path:
    """Write a record under its own name; an older one of the same row and seed is replaced.

    Args:
        record: the record.
        directory: made if absent.
        figure: an SVG file that is copied beside it.

    Returns:
        The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / record.file_name
    if figure is not None:
        record = dataclasses.replace(record, figure=path.with_suffix(".svg").name)
        write_text(directory / record.figure, figure.read_text(encoding="utf-8"))
    write_text(path, json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False) + "\n")
    return path


def read_records(directory: Path = RESULTS) -> list[Record]:
    """Read all records of a directory.

    Args:
        directory: where they are.

    Returns:
        The records in the order of their files' names.

    Raises:
        CheckpointError: if a file is no record.
    """
    return [_read(path) for path in sorted(directory.glob("*.json"))]


def _read(path: Path) -> Record:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**raw, "steps": tuple(raw["steps"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "a result cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            expected="a file that `deltaw paper run` wrote",
            hint="run the row again, or take the file out of the directory",
        ) from error


def by_row(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by row.

    Args:
        records: of any rows; the quick ones are left out.

    Returns:
        Row -> its records, in order of seed.
    """
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        if not record.quick:
            found.setdefault(record.row, []).append(record)
    return found
