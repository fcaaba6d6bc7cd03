"""From ``--task NAME --data DIR`` to rows: the splits of a task of the paper in place of files of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltaw.errors import ConfigError
from deltaw.train.config import TASK_NAMES, DataConfig, TrainConfig, spec_of
from deltaw.train.material import Source

if TYPE_CHECKING:
    from deltaw.train.data.tasks import TaskRows

__all__ = ["is_task", "refuse_unread", "task_rows", "task_source"]

_UNREAD = ("format", "columns", "separator")


def is_task(name: str | None) -> bool:
    """Say whether a value of ``--task`` names a task of the paper rather than a kind of loss.

    Args:
        name: the value.

    Returns:
        Whether it does.

    Example:
        >>> is_task("e2e"), is_task("classification")
        (True, False)
    """
    return name in TASK_NAMES


def refuse_unread(name: str, data: DataConfig) -> None:
    """Refuse settings of files of rows, which a task settles itself.

    Args:
        name: the task.
        data: the user's settings.

    Raises:
        ConfigError: naming the first such setting.
    """
    plain = DataConfig()
    for field in _UNREAD:
        value = getattr(data, field)
        if value != getattr(plain, field):
            flag = spec_of(f"data.{field}").flag
            raise ConfigError(
                f"{flag} means nothing with --task {name}",
                where=f"data.{field}",
                got=repr(value),
                expected="no such setting: the task knows the layout of its files",
                hint=f"drop {flag}, or drop --task {name} and pass one file with --data",
            )


def task_rows(name: str, data: DataConfig, split: str, seed: int) -> TaskRows:
    """Open one split of the task that the settings name.

    Args:
        name: the task.
        data: the user's settings; ``path`` is the directory.
        split: the split.
        seed: of the draw, for tasks whose training rows are drawn.

    Returns:
        The rows, ``data.limit`` of them at most.
    """
    from deltaw.train.data.tasks import read_task

    refuse_unread(name, data)
    rows = read_task(name, data.path, split, seed=seed, cache_dir=data.cache_dir)
    return rows if data.limit is None else rows.select(range(min(data.limit, len(rows))))


def task_source(config: TrainConfig) -> Source:
    """Open the training split of a task, and its validation split.

    Args:
        config: the user's settings; ``--valid`` may name another split, ``--valid-fraction`` holds rows out instead.

    Returns:
        The rows.

    Raises:
        ConfigError: if ``--valid`` names no split of the task, or its training split.
    """
    from deltaw.train.data.tasks import task_named

    name, data = config.model.task, config.data
    task = task_named(name)
    rows = task_rows(name, data, "train", config.run.seed)
    split = data.valid
    if split is not None and (split not in task.splits or split == "train"):
        others = [other for other in task.splits if other != "train"]
        raise ConfigError(
            f"--valid names no split that --task {name} can be validated on",
            where="--valid or [data] valid",
            got=repr(split),
            expected=f"one of {', '.join(others)}",
            hint="with a task, --valid is the name of a split in the same directory; leave it out for valid",
        )
    if split is None and data.valid_fraction is None and "valid" in task.splits:
        split = "valid"
    if split is None:
        return Source(rows=rows, format=rows.format, task=task.task, valid=None, labels=task.labels)
    from deltaw.train.data.tasks import read_task

    held = read_task(name, data.path, split, cache_dir=data.cache_dir)
    named = held.described()
    return Source(
        rows=rows, format=rows.format, task=task.task, valid=(held, held.format), labels=task.labels, valid_name=named
    )
