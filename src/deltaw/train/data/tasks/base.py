"""What a task is: its splits, the layouts of its files, its classes, its size and its licenses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deltaw.train.data.formats.base import Kind
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import TaskSource

__all__ = ["Generation", "Layout", "License", "Open", "Split", "Task"]

Open = Callable[[list[File], str], TaskSource]
"""(files of a split, name of the split) to rows."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One example of a task that is answered in words.

    Args:
        split: the split it belongs to.
        id: names it within the split.
        context: the input, encoded as the paper's code does.
        completion: one reference.
        group: such as ``seen`` or ``unseen``; empty where the task has none.
        entry: names the record that it came from; examples of one record share their context.
    """

    split: str
    id: str
    context: str
    completion: str
    group: str = ""
    entry: str = ""


@dataclass(frozen=True, kw_only=True)
class License:
    """Terms of use, as somebody states them.

    Args:
        terms: the license, or what stands in for one.
        by: who says so.
    """

    terms: str
    by: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a split lies on disk.

    Args:
        name: for reports, such as ``text``.
        files: file names or globs, relative to the task's folder; each must be there. ``.gz``, ``.bz2`` and ``.xz``
            behind them are understood.
        open: makes the rows.
    """

    name: str
    files: tuple[str, ...]
    open: Open


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split.

    Args:
        layouts: how it may lie on disk, best first; empty for a split made of others.
        parts: splits that it joins, in order.
        of: split of which it keeps one group.
        group: that group.
        rows: examples it has when complete; None where nobody is known to say.
        entries: records it has when complete; None where that means nothing or nobody says.
        inputs: different contexts among them; likewise.
    """

    layouts: tuple[Layout, ...] = ()
    parts: tuple[str, ...] = ()
    of: str = ""
    group: str = ""
    rows: int | None = None
    entries: int | None = None
    inputs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the paper.

    Args:
        name: as in ``--task``.
        title: what it is called in print.
        format: the format whose rows it yields.
        columns: the format's roles and their columns.
        task: ``causal``, ``classification`` or ``regression``.
        example: a record as it stands in the task's files, for errors.
        splits: its splits by name.
        folders: names under which its folder stands in a larger directory.
        archives: globs of archives that hold its files.
        labels: class names in the benchmark's order.
        licenses: terms of use; more than one where sources disagree.
        counted: who says how large the complete splits are.
        subset: what it is a subset of; empty for whole tasks.
        draw: how many training rows are drawn; 0 for all.
        whole: name of the task that the rows are drawn from.
        notes: what a reader of its figures should know.
    """

    name: str
    title: str
    format: Kind
    columns: Mapping[str, str]
    task: str
    example: str
    splits: Mapping[str, Split]
    folders: tuple[str, ...]
    archives: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    licenses: tuple[License, ...] = ()
    counted: str = ""
    subset: str = ""
    draw: int = 0
    whole: str = ""
    notes: tuple[str, ...] = ()
