"""``deltaw paper``: what *LoRA: Low-Rank Adaptation of Large Language Models* builds and reports, as commands."""

from __future__ import annotations

import click

from deltaw.cli._group import LazyGroup, Verb

__all__ = ["VERBS", "command"]

VERBS: dict[str, Verb] = {
    "tasks": Verb(
        section="Data",
        module="deltaw.cli.paper.tasks",
        line="The paper's tasks: files, sizes, checksums and licenses, against what is in a directory.",
    ),
    "decode": Verb(
        section="Training",
        module="deltaw.cli.paper.decode",
        line="Answer the distinct inputs of a task by beam search.",
    ),
    "runs": Verb(
        section="Training",
        module="deltaw.cli.paper.runs",
        line="Gather runs of several seeds: the best validation of each, median, mean and spread.",
    ),
    "recipe": Verb(
        section="Training",
        module="deltaw.cli.paper.recipe",
        line="Print the settings of a table of the paper as a configuration file.",
    ),
    "models": Verb(
        section="Facts",
        module="deltaw.cli.paper.models",
        line="List the paper's models with their counts, or open one with its weights.",
    ),
    "counts": Verb(
        section="Facts",
        module="deltaw.cli.paper.counts",
        line="Count what the paper counts, exactly, beside what it prints.",
    ),
    "memory": Verb(
        section="Facts",
        module="deltaw.cli.paper.memory",
        line="Account for the memory of one training step, method by method.",
    ),
    "tables": Verb(
        section="Facts",
        module="deltaw.cli.paper.tables",
        line="Print a table of the paper as it stands there.",
    ),
    "score": Verb(
        section="Metrics",
        module="deltaw.cli.paper.score",
        line="Score texts, labels, numbers or queries against references.",
    ),
}


@click.command("paper", cls=LazyGroup, verbs=VERBS)
def command() -> None:
    """The paper's models, counts, tasks, metrics, analyses and tables."""
