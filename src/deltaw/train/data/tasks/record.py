"""The record of the tasks' data files: licenses, sizes and checksums, against what lies in a directory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltaw.errors import DataError
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.tasks.base import Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.reading import TaskRows, read_task
from deltaw.train.data.tasks.registry import TASKS
from deltaw.train.data.tasks.sources import EmptyText

__all__ = ["CHECKSUMS", "SplitRecord", "checksum", "recorded"]

CHECKSUMS = {
    ("e2e", "train", "text"): "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    ("e2e", "valid", "text"): "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    ("e2e", "test", "text"): "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    ("webnlg", "train", "xml"): "d435bba829b77d1825fe32e0aee780bddb54eca8944a929cd1e5be500cc0c518",
    ("webnlg", "valid", "json"): "50f5a2c24d760bc84ba3e852707cd3b43b0cf2da035b425f87945a2440880488",
    ("webnlg", "valid", "xml"): "dd19390043ab3a42d1501e09cd9133ded0fd8d70ef093c393f940dd3a33b6c8d",
    ("webnlg", "test", "xml"): "43287905cbfe47697232d569ea6ff072d598282da2ea022bc435ca26b943cd93",
    ("dart", "valid", "json"): "56606eac12baa7f0ddb81c61890f9f1a95bace4df8f8989852786358fe5d2b88",
    ("dart", "test", "xml"): "4f6994d633030278798c114555549a13202780fe0d78ee2e7ac7dcce45a8e233",
    ("sst2", "train", "tsv"): "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
    ("sst2", "valid", "tsv"): "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    ("cola", "train", "tsv"): "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
    ("cola", "valid", "tsv"): "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
    ("mrpc", "valid", "tsv"): "9e8f284788040f7c9ecde2e1b3c07237c756f926bd9ef8548ef5d34b56f69f17",
    ("stsb", "train", "tsv"): "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2",
    ("stsb", "valid", "tsv"): "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59",
    ("rte", "train", "tsv"): "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
    ("rte", "valid", "tsv"): "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
    ("mnli_9k", "train", "json"): "dae8f1133d8d48b3d6dc747b244eb75273ab398893eb2c459456bd46748c8e0b",
    ("mnli_9k", "valid", "json"): "1229f3294d9fb83a61642fb7bf1fb7a98a0954218dca43e69a3840fabf37671a",
    ("qnli_9k", "train", "json"): "ec4595783885f0363844d89c5685c2cebb25b415769f29445153d807d7aaed00",
    ("qnli_9k", "valid", "json"): "b5b9c30765555407d7522d4c3a24ac6b0bd3d87c851cd5630ba1e1dc2f87b4ca",
    ("wikisql", "train", "text2sql"): "997a34546c09f90e189db1f020351757617391c309ee28dc8e58121f9b9169e9",
    ("wikisql", "valid", "text2sql"): "997a34546c09f90e189db1f020351757617391c309ee28dc8e58121f9b9169e9",
    ("wikisql", "test", "text2sql"): "997a34546c09f90e189db1f020351757617391c309ee28dc8e58121f9b9169e9",
}
"""(task, split, layout) -> sha256 of the uncompressed content of the released files, as :func:`checksum` takes it."""


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """What is known of one split, and what was found of it.

    Args:
        task: name of the task.
        split: name of the split.
        status: ``ok``, ``subset`` (complete, but a part of its task), ``synthetic``, ``different`` or ``absent``.
        why: what is different; empty otherwise.
        files: what was read, as the user would name it.
        layout: the layout of the files.
        rows: examples found.
        rows_expected: examples of the complete split; None where nobody is known to say.
        entries: records found; None where that means nothing.
        entries_expected: records of the complete split, likewise.
        inputs: different inputs found; None where the task has labels.
        inputs_expected: inputs of the complete split, likewise.
        sha256: of the uncompressed content.
        sha256_expected: of the released files; empty where none is on record.
    """

    task: str
    split: str
    status: str
    why: str = ""
    files: tuple[str, ...] = ()
    layout: str = ""
    rows: int | None = None
    rows_expected: int | None = None
    entries: int | None = None
    entries_expected: int | None = None
    inputs: int | None = None
    inputs_expected: int | None = None
    sha256: str = ""
    sha256_expected: str = ""


def checksum(files: list[File]) -> str:
    """Hash the content of files as if they were one, whatever they are compressed with.

    Args:
        files: in reading order.

    Returns:
        The sha256 of their uncompressed bytes, one file after another; 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def recorded(
    directory: str | Path | None = None, *, names: Collection[str] = (), cache_dir: str | Path | None = None
) -> Iterator[SplitRecord]:
    """Compare what lies in a directory with the record.

    Args:
        directory: one that holds the tasks' folders; None to list the record alone.
        names: the tasks to look at; all those with files of their own where empty.
        cache_dir: where compressed files are unpacked.

    Yields:
        SplitRecord: one for each split of each task; tasks whose rows are drawn from others only where named.
    """
    for task in TASKS.values():
        if task.name not in names if names else task.draw:
            continue
        for name, split in task.splits.items():
            yield _compare(task, name, split, directory, cache_dir)


def _compare(
    task: Task, name: str, split: Split, directory: str | Path | None, cache_dir: str | Path | None
) -> SplitRecord:
    known = SplitRecord(
        task=task.name, split=name, status="absent", rows_expected=split.rows, entries_expected=split.entries,
        inputs_expected=split.inputs, sha256_expected=_released(task, name, split),
    )  # fmt: skip
    if directory is None:
        return known
    try:
        rows = read_task(task.name, directory, name, cache_dir=cache_dir)
    except DataError as error:
        # Only the search itself ends with these words; every other fault is one of files that are there.
        if error.what.endswith("are not there"):
            return known
        why = f"{error.what}: {error.where}: {error.got}"
        return dataclasses.replace(known, status="different", why=why)
    layout = "+".join(dict.fromkeys(rows.layouts))
    count, entries, inputs = _counts(rows)
    found = dataclasses.replace(
        known, layout=layout, files=tuple(file.shown for file in rows.found), sha256=checksum(rows.found),
        sha256_expected=CHECKSUMS.get((task.name, split.of or name, layout), ""), rows=count, entries=entries,
        inputs=inputs,
    )  # fmt: skip
    return _judged(found, rows)


def _released(task: Task, name: str, split: Split) -> str:
    """The checksum on record for the layout that is looked for first and has one."""
    layouts = task.splits[split.of or name].layouts
    known = (CHECKSUMS.get((task.name, split.of or name, layout.name), "") for layout in layouts)
    return next((digest for digest in known if digest), "")


def _counts(rows: TaskRows) -> tuple[int, int | None, int | None]:
    """Count rows that can be read, with DART's empty text, which the published count includes; records; inputs."""
    count, entries, inputs = 0, set[str](), set[str]()
    causal = rows.task.task == "causal"
    for _, row in rows.each():
        count += isinstance(row, EmptyText) or not isinstance(row, RowProblem)
        if causal and not isinstance(row, RowProblem):
            entries.add(row["entry"])
            inputs.add(row["context"])
    return count, len(entries) if causal and entries != {""} else None, len(inputs) if causal else None


def _judged(found: SplitRecord, rows: TaskRows) -> SplitRecord:
    if rows.synthetic:
        return dataclasses.replace(found, status="synthetic", why="made-up stand-in, not the data set")
    pairs = (
        ("rows", found.rows, found.rows_expected),
        ("entries", found.entries, found.entries_expected),
        ("inputs", found.inputs, found.inputs_expected),
    )
    wrong = [
        f"{have:,} {what} of {want:,}"
        for what, have, want in pairs
        if want is not None and have is not None and have != want
    ]
    broken = len(rows) - (found.rows or 0)
    wrong += [f"{broken:,} rows cannot be read"] if broken else []
    if not wrong and found.sha256_expected and found.sha256 != found.sha256_expected:
        wrong.append("as many rows, other content")
    if wrong:
        return dataclasses.replace(found, status="different", why="; ".join(wrong))
    return dataclasses.replace(found, status="subset" if rows.task.subset else "ok")
