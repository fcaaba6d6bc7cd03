"""Read a task from a directory, and group its references by input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.train.data.formats.base import Format, Labelled
from deltaw.train.data.rows import Picks, Rows
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.tasks.base import Generation, Layout, Split, Task
from deltaw.train.data.tasks.draw import draw
from deltaw.train.data.tasks.files import File, find, inside
from deltaw.train.data.tasks.registry import TASKS
from deltaw.train.data.tasks.sources import EmptyText, Joined, TaskSource

__all__ = ["TaskRows", "locate", "read_task", "references", "task_named"]


class TaskRows(Rows):
    """Rows of one split of a task; like any rows, and knowing what they are.

    Args:
        task: the task.
        split: name of the split.
        source: where the rows come from.
        found: the files they were read from.
        layouts: names of the layouts of those files.
        directory: what the user named.
        options: what else decides which rows they are, for the identity.
        picks: positions in the source, in order; None for all.
    """

    def __init__(
        self, task: Task, split: str, source: TaskSource, found: list[File], *, layouts: tuple[str, ...],
        directory: Path, options: str = "", picks: Picks | None = None,
    ) -> None:  # fmt: skip
        origins = list(dict.fromkeys(file.origin for file in found))
        path = origins[0] if len(origins) == 1 and found[0].shown == str(origins[0]) else directory
        decides = f"{task.name} {split} {'+'.join(layouts)} {options}"
        super().__init__(source, path, origins, decides, picks)
        self.task, self.split, self.found, self.layouts, self.directory = task, split, found, layouts, directory
        self._named, self._given = source, options

    def number(self, index: int) -> str:
        """Name a row by its line, and by its file where there are several.

        Args:
            index: position from 0.

        Returns:
            Such as ``line 12``, counted from 1.
        """
        return self._named.named(int(self.picks[index]))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TaskRows:
        """Take some of the rows, without reading them.

        Args:
            indices: positions in these rows, in the wanted order.

        Returns:
            A view on the same files.
        """
        return TaskRows(
            self.task, self.split, self._named, self.found, layouts=self.layouts, directory=self.directory,
            options=self._given, picks=super().select(indices).picks,
        )  # fmt: skip

    @property
    def synthetic(self) -> bool:
        """Whether the directory says that its files are made up."""
        return any(file.synthetic for file in self.found)

    @property
    def notes(self) -> list[str]:
        """What the user should see: stand-ins and subsets first."""
        notes = [f"SYNTHETIC stand-in data in the format of {self.task.title}, not its data"] if self.synthetic else []
        if self.task.subset and (self.split == "train" or not self.task.draw):
            notes.append(f"SUBSET: {self.task.subset}")
        return notes + self.source.notes

    @property
    def format(self) -> Format:
        """What the rows mean."""
        kind = dataclasses.replace(self.task.format, example=self.task.example)
        return Format(kind=kind, columns=dict(self.task.columns), task=self.task.task, reason=self.described())

    def described(self) -> str:
        """Say which task, split and files these are.

        Returns:
            One line.
        """
        names = [file.shown for file in self.found]
        shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more files"
        drawn = f" drawn with {self._given}" if self._given else ""
        return f"task {self.task.name} ({self.task.title}), split {self.split}, {len(self):,} rows{drawn} of {shown}"

    def examples(self) -> Iterator[Generation | Labelled]:
        """Read the rows as values.

        Yields:
            Generation | Labelled: one example after another.

        Raises:
            DataError: if a row is broken; the message has its line.
        """
        parse = self.format.parse
        for index in range(len(self)):
            row = self[index]
            if self.task.task == "causal":
                known = {name: row[name] for name in ("id", "context", "completion", "group", "entry")}
                yield Generation(split=self.split, **known)
                continue
            record = parse(row)
            assert isinstance(record, Labelled), "rows of this task have labels"
            yield record


def task_named(name: str) -> Task:
    """Find a task.

    Args:
        name: as in ``--task``.

    Returns:
        The task.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name in TASKS:
        return TASKS[name]
    raise ConfigError(
        "the task is not known",
        where="--task",
        got=repr(name),
        expected=f"one of {', '.join(TASKS)}",
        hint=f"closest: {nearest(name, TASKS, 1)}; deltaw paper tasks lists them.",
    )


def split_named(task: Task, name: str) -> Split:
    """Find a split of a task.

    Args:
        task: the task.
        name: of the split.

    Returns:
        The split.

    Raises:
        ConfigError: if the task has none of this name.
    """
    if name in task.splits:
        return task.splits[name]
    glue = " GLUE's test labels are not public." if task.title.startswith("GLUE") and name == "test" else ""
    raise ConfigError(
        "the task has no such split",
        where=f"task {task.name}",
        got=f"split {name!r}",
        expected=f"one of {', '.join(task.splits)}",
        hint=f"closest: {nearest(name, task.splits, 1)}.{glue}",
    )


def locate(
    task: Task, directory: str | Path, split: str, cache_dir: str | Path | None = None
) -> tuple[Layout, list[File]] | None:
    """Look for the files of one split.

    Args:
        task: the task.
        directory: the task's folder, or one above it, or an archive.
        split: a split that has files of its own.
        cache_dir: where compressed files are unpacked.

    Returns:
        The layout and its files; None where there are none.
    """
    for layout in task.splits[split].layouts:
        files = find(Path(directory).expanduser(), layout.files, task.folders, task.archives, cache_dir)
        if files:
            return layout, files
    return None


def read_task(
    name: str, directory: str | Path, split: str = "train", *, seed: int = 0, cache_dir: str | Path | None = None
) -> TaskRows:
    """Open one split of a task.

    Args:
        name: the task, such as ``e2e``.
        directory: the folder with its files, one above it, or an archive.
        split: ``train``, ``valid``, ``test``, or another that the task has.
        seed: of the draw, for tasks whose training rows are drawn.
        cache_dir: where compressed files are unpacked.

    Returns:
        The rows. Broken ones are found when they are read, and named with file and line.

    Raises:
        ConfigError: if there is no such task or split.
        DataError: if the files are not there, damaged, or of another form.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "test.txt").write_text("name : Cotto | area : riverside||Cotto is by the river .\\n")
        >>> read_task("e2e", folder, "test")[0]["completion"]
        'Cotto is by the river .'
    """
    task, place = task_named(name), Path(directory).expanduser()
    part = split_named(task, split)
    if part.of:
        whole = read_task(name, place, part.of, cache_dir=cache_dir)
        return _of_group(whole, split, part.group)
    names = part.parts or (split,)
    opened = [_open(task, place, one, cache_dir) for one in names]
    files = [file for _, _, found in opened for file in found]
    source = opened[0][1] if len(opened) == 1 else Joined([(n, s) for n, (_, s, _) in zip(names, opened, strict=True)])
    drawn = f"seed {seed}" if task.draw and split == "train" else ""
    rows = TaskRows(
        task, split, source, files, layouts=tuple(layout.name for layout, _, _ in opened), directory=place,
        options=drawn,
    )  # fmt: skip
    return rows.select(_drawn(rows, seed)) if drawn else rows


def _open(task: Task, place: Path, split: str, cache_dir: str | Path | None) -> tuple[Layout, TaskSource, list[File]]:
    located = locate(task, place, split, cache_dir)
    if located is None:
        raise _absent(task, place, split, cache_dir)
    layout, files = located
    return layout, layout.open(files, split), files


def _absent(task: Task, place: Path, split: str, cache_dir: str | Path | None) -> DataError:
    wanted = " or ".join(" with ".join(layout.files) for layout in task.splits[split].layouts)
    of_it = [other for other in TASKS.values() if other.subset.endswith(f" {task.title}") and not other.draw]
    others = [other.name for other in of_it if split in other.splits and locate(other, place, split, cache_dir)]
    hint = f"pass the folder that holds them, or one above it that has {task.folders[0]}/."
    if others:
        hint = f"this directory holds a subset; name it as one: --task {others[0]}."
    return DataError(
        f"the files of task {task.name}, split {split}, are not there",
        where=str(place),
        got=inside(place),
        expected=f"{wanted}, plain or with .gz, .bz2 or .xz",
        hint=hint,
    )


def _of_group(whole: TaskRows, split: str, group: str) -> TaskRows:
    """Keep the rows of one group; broken rows stay, so that they are still named."""
    kept = [index for index, row in whole.each() if isinstance(row, RowProblem) or row["group"] == group]
    rows = whole.select(np.asarray(kept, dtype=np.int64))
    rows.split = split
    return rows


def _drawn(rows: TaskRows, seed: int) -> NDArray[np.int64]:
    task = rows.task
    if len(rows) < task.draw:
        raise DataError(
            "there are fewer rows than are to be drawn",
            where=str(rows.path),
            got=f"{len(rows):,} rows",
            expected=f"at least {task.draw:,}, for task {task.name}",
            hint=f"pass the complete {task.whole} data, or choose a task with fewer rows.",
        )
    return draw(len(rows), task.draw, seed)


def references(
    name: str, directory: str | Path, split: str = "test", *, by: str = "input", cache_dir: str | Path | None = None
) -> list[tuple[str, list[str]]]:
    """Group the references of a split by input: what generation is scored against.

    Args:
        name: a task that is answered in words.
        directory: the folder with its files.
        split: the split.
        by: ``input``, as the paper's code does, or ``entry``, which keeps records with equal inputs apart, as the
            leaderboard of DART does.
        cache_dir: where compressed files are unpacked.

    Returns:
        (input, its references), inputs in the order of their first appearance. An empty text beside others of the same
        record says nothing and is left out; DART's test split has one.

    Raises:
        ConfigError: if the task has labels and no references, or there is no such way to group.
        DataError: if a record is broken or has no reference that says something.

    Source:
        microsoft/LoRA, examples/NLG/src/gpt2_decode.py, groups by input in the same way.
    """
    rows = read_task(name, directory, split, cache_dir=cache_dir)
    if rows.task.task != "causal":
        raise ConfigError(
            "the task has no references",
            where=f"task {name}",
            got=f"a task of {rows.task.task}",
            expected="a task that is answered in words",
            hint="read its labels with read_task.",
        )
    if by not in ("input", "entry"):
        raise ConfigError(
            "references are not grouped that way",
            where="by",
            got=repr(by),
            expected="input or entry",
            hint="use input, as the paper's code does.",
        )
    return grouped(rows, by)


def grouped(rows: TaskRows, by: str = "input") -> list[tuple[str, list[str]]]:
    """Group rows by input.

    Args:
        rows: of a task that is answered in words.
        by: ``input`` or ``entry``.

    Returns:
        (input, its references), in the order of the inputs' first appearance.

    Raises:
        DataError: if a row is broken, unless it is an empty text beside others of its record.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    empty: list[tuple[int, str]] = []
    for index, row in rows.each():
        if isinstance(row, EmptyText):
            empty.append((index, row.context))
        elif isinstance(row, RowProblem):
            rows[index]
        else:
            key = row["entry"] if by == "entry" and row["entry"] else row["context"]
            found.setdefault(key, (row["context"], []))[1].append(row["completion"])
    inputs = {context for context, _ in found.values()}
    for index, context in empty:
        if context not in inputs:
            rows[index]
    return list(found.values())
