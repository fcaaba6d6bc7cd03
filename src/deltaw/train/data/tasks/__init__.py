"""The tasks of *LoRA: Low-Rank Adaptation of Large Language Models*, read from the files their authors released.

``read_task`` opens one split as rows of an ordinary format, which training then treats like any others; ``references``
groups the texts of a split by input, for scoring. Nothing is downloaded.
"""

from __future__ import annotations

from deltaw.train.data.tasks.base import Generation, Layout, License, Split, Task
from deltaw.train.data.tasks.draw import draw
from deltaw.train.data.tasks.reading import TaskRows, locate, read_task, references, task_named
from deltaw.train.data.tasks.registry import TASKS
from deltaw.train.data.tasks.sql import AGGREGATES, OPERATORS, Query, column_names, parse_sql, to_sql
from deltaw.train.data.tasks.wikisql import Table

__all__ = [
    "AGGREGATES",
    "OPERATORS",
    "TASKS",
    "Generation",
    "Layout",
    "License",
    "Query",
    "Split",
    "Table",
    "Task",
    "TaskRows",
    "column_names",
    "draw",
    "locate",
    "parse_sql",
    "read_task",
    "references",
    "task_named",
    "to_sql",
]
