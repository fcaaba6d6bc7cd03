"""``--task``, ``--split`` and ``--seed`` of the verbs that read rows: a file, or a split of a task of the paper."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltaw.errors import ConfigError
from deltaw.train.config import TASK_NAMES, DataConfig

if TYPE_CHECKING:
    from deltaw.train.data import Format, Rows

__all__ = ["Asked", "Read", "other_split", "read_rows", "task_options"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the three flags say.

    Args:
        task: ``classification``, ``regression``, the name of a task, or None.
        split: name of a split, or None for the verb's own choice.
        seed: of the draw, or None.
        usual: the split that the verb reads where none is named.
    """

    task: str | None
    split: str | None
    seed: int | None
    usual: str

    def words(self) -> str:
        """Write the flags again, for the next command of the same split.

        Returns:
            Such as ``--task e2e --split test``; empty for a file of rows.
        """
        if self.task not in TASK_NAMES:
            return ""
        split = f" --split {shlex.quote(self.split)}" if self.split is not None else ""
        return f"--task {self.task}{split}" + (f" --seed {self.seed}" if self.seed is not None else "")


@dataclass(frozen=True, kw_only=True)
class Read:
    """Rows and what they mean.

    Args:
        rows: the rows.
        format: their format.
        labels: class names by position, where a task settles them.
    """

    rows: Rows
    format: Format
    labels: tuple[str, ...] = ()


def task_options(usual: str) -> Callable[[F], F]:
    """Give a command the three flags.

    Args:
        usual: the split that is read where none is named.

    Returns:
        A decorator; the command receives ``task``, ``split`` and ``seed``.
    """

    def decorate(function: F) -> F:
        for option in (
            click.option("--seed", type=click.IntRange(0), help="With a task whose rows are drawn: of the draw."),
            click.option("--split", help=f"With a task of the paper: which split.  [default: {usual}]"),
            click.option("--task", type=click.Choice(["classification", "regression", *TASK_NAMES]),
                         help="What the labels are, or a task of the paper, whose directory is --data."),
        ):  # fmt: skip
            function = option(function)
        return function

    return decorate


def read_rows(data: DataConfig, asked: Asked) -> Read:
    """Open the rows that the flags name.

    Args:
        data: the settings of the rows.
        asked: the three flags.

    Returns:
        The rows.

    Raises:
        ConfigError: if a flag would not be read.
    """
    from deltaw.train.data import detect, load_rows
    from deltaw.train.tasked import is_task, task_rows

    if not is_task(asked.task):
        _refuse(asked, "split", asked.split)
        _refuse(asked, "seed", asked.seed)
        rows: Rows = load_rows(data.path, limit=data.limit, separator=data.separator, cache_dir=data.cache_dir)
        return Read(rows=rows, format=detect(rows, format=data.format, columns=data.columns, task=asked.task))
    from deltaw.train.data.tasks import task_named

    task, split = task_named(str(asked.task)), asked.split or asked.usual
    if not (task.draw and split == "train"):
        _refuse(asked, "seed", asked.seed)
    found = task_rows(task.name, data, split, asked.seed or 0)
    return Read(rows=found, format=found.format, labels=task.labels)


def other_split(data: DataConfig, asked: Asked, split: str) -> Read:
    """Open another split of the same task, all of it.

    Args:
        data: the settings of the rows.
        asked: the three flags.
        split: its name.

    Returns:
        The rows.
    """
    return read_rows(dataclasses.replace(data, limit=None), dataclasses.replace(asked, split=split, seed=None))


def _refuse(asked: Asked, name: str, value: Any) -> None:
    if value is None:
        return
    of = f"--task {asked.task}" if asked.task else "a file of rows"
    raise ConfigError(
        f"--{name} means nothing here",
        where=f"--{name}",
        got=f"{value!r} with {of}",
        expected="a task of the paper" if name == "split" else "a task whose training rows are drawn, such as mnli_100",
        hint=f"drop --{name}, or name such a task with --task",
    )
