"""``deltaw paper``: what *LoRA: Low-Rank Adaptation of Large Language Models* builds and reports, as commands."""

from __future__ import annotations

import click

from deltaw.cli._group import LazyGroup, Verb

__all__ = ["VERBS", "command"]

VERBS: dict[str, Verb] = {
    "score": Verb(
        section="Metrics",
        module="deltaw.cli.paper.score",
        line="Score texts, labels, numbers or queries against references.",
    ),
}


@click.command("paper", cls=LazyGroup, verbs=VERBS)
def command() -> None:
    """The paper's models, counts, tasks, metrics, analyses and tables."""
