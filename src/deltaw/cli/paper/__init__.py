"""``deltaw paper``: what *LoRA: Low-Rank Adaptation of Large Language Models* builds and reports, as commands."""

from __future__ import annotations

import click

from deltaw.cli._group import LazyGroup, Verb

__all__ = ["VERBS", "command"]

VERBS: dict[str, Verb] = {
    "run": Verb(
        section="Experiments",
        module="deltaw.cli.paper.run",
        line="Repeat an experiment of the paper at a scale that runs anywhere.",
    ),
    "report": Verb(
        section="Experiments",
        module="deltaw.cli.paper.report",
        line="Write one page: every table and figure of the paper beside what was run here.",
    ),
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
    "subspace": Verb(
        section="Analyses",
        module="deltaw.cli.paper.subspace",
        line="Overlap of two adapters' subspaces, phi of figures 3, 4, 6 and 7; or of one adapter's own.",
    ),
    "subspace-base": Verb(
        section="Analyses",
        module="deltaw.cli.paper.subspace_base",
        line="An update against the weight it is added to: figure 8, Table 7, the amplification factor.",
    ),
    "latency": Verb(
        section="Analyses",
        module="deltaw.cli.paper.latency",
        line="Time a forward pass with LoRA, merged and not, adapters and prefixes: Table 1, figure 5.",
    ),
    "throughput": Verb(
        section="Analyses",
        module="deltaw.cli.paper.throughput",
        line="Training speed and peak memory: full fine-tuning against LoRA (section 4.2).",
    ),
    "switch": Verb(
        section="Analyses",
        module="deltaw.cli.paper.switch",
        line="Time the switch between adapters of one base: active, merged, from disk (section 4.1).",
    ),
    "deployment": Verb(
        section="Analyses",
        module="deltaw.cli.paper.deployment",
        line="Storage of many tasks: one base and its adapters against a whole model each (footnote 4).",
    ),
    "quality": Verb(
        section="Analyses",
        module="deltaw.cli.paper.quality",
        line="Draw quality over trained parameters, a line for each method: figure 2.",
    ),
    "which": Verb(
        section="Analyses",
        module="deltaw.cli.paper.which",
        line="Seven choices of attention weights with equally many values: the runs of Table 5.",
    ),
    "rank-sweep": Verb(
        section="Analyses",
        module="deltaw.cli.paper.rank_sweep",
        line="The runs of a rank sweep over sets of attention weights: Tables 6 and 18.",
    ),
    "low-data": Verb(
        section="Analyses",
        module="deltaw.cli.paper.low_data",
        line="Few training examples: the protocol of Table 17, or the results as Table 16.",
    ),
}


@click.command("paper", cls=LazyGroup, verbs=VERBS)
def command() -> None:
    """The paper's models, counts, tasks, metrics, analyses and tables."""
