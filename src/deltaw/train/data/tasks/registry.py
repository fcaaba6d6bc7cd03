"""The tasks by name: a new one is one file and one line here."""

from __future__ import annotations

from deltaw.train.data.tasks import dart, e2e, glue, samsum, webnlg, wikisql
from deltaw.train.data.tasks.base import Task

__all__ = ["TASKS"]

TASKS: dict[str, Task] = {
    task.name: task for task in (e2e.TASK, webnlg.TASK, dart.TASK, *glue.TASKS, wikisql.TASK, samsum.TASK)
}
