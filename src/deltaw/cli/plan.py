"""``deltaw plan``: parameters, bytes and memory for a model shape, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options, next_commands
from deltaw.cli._fields import field_options, field_words, take_fields
from deltaw.errors import ConfigError
from deltaw.train.config import AdapterConfig, DataConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from deltaw.sites import Plan
    from deltaw.train.memory import MemoryReport

__all__ = ["PlanResult", "Shape", "command", "make_plan", "new_rows"]

SKIPPED = ("method", "start", "init_batches")
CHECKPOINT_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is planned for.

    Args:
        source: preset, directory or hub name.
        task: "auto", "causal" or "classification".
        labels: number of labels of a classifier's head, or None.
        dtype: "auto" (the config's own, else float32) or a dtype's name.
        batch: rows of a micro-batch.
        length: tokens of a row; None takes the model's context, at most 2048.
        gradient_checkpointing: recompute activations in the backward pass.
        attention_matrix: count the (length, length) matrices of attention without a fused kernel.
    """

    source: str
    task: str = "auto"
    labels: int | None = None
    dtype: str = "auto"
    batch: int = 4
    length: int | None = None
    gradient_checkpointing: bool = False
    attention_matrix: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What ``deltaw plan`` found; ``str`` is what it prints.

    Args:
        source: preset, directory or hub name.
        plan: the sites, from ``deltaw.plan``.
        memory: bytes by part.
        notes: choices made where nothing was given, and what a start from data costs.
        frozen: values the adapter holds beside the trained ones.
        stored: values in the adapter's file.
    """

    source: str
    plan: Plan
    memory: MemoryReport
    notes: tuple[str, ...]
    frozen: int = 0
    stored: int = 0

    def __str__(self) -> str:
        """The plan, its checkpoint and its memory."""
        from deltaw.reports import size

        saved = ", ".join(f"{count:,} bytes in {name} ({size(count)})" for name, count in self.checkpoint.items())
        beside = [f"not trained: {self.frozen:,} values of the adapter"] if self.frozen else []
        lines = [f"model: {self.source}", str(self.plan), *beside, f"checkpoint: {saved} of tensors"]
        return "\n".join([*lines, str(self.memory), *(f"note: {note}" for note in self.notes)])

    @property
    def checkpoint(self) -> dict[str, int]:
        """Bytes of the adapter's tensors on disk, by dtype."""
        return {name: bytes_each * self.stored for name, bytes_each in CHECKPOINT_BYTES.items()}

    def payload(self) -> dict[str, Any]:
        """The numbers, for ``--json``.

        Returns:
            Plain values.
        """
        memory = {
            side: {**_parts(getattr(self.memory, side)), "total": getattr(self.memory, side).total}
            for side in ("lora", "full")
        }
        sites = [
            {"path": site.path, "kind": site.kind.name, "rank": site.rank, "parameters": site.parameters}
            for site in self.plan.sites
        ]
        return {
            "model": self.source,
            "base_parameters": self.plan.total,
            "parameters": self.plan.parameters,
            "frozen_parameters": self.frozen,
            "stored_values": self.stored,
            "trained_rows": {rows.path: len(rows.index) for rows in self.plan.tokens},
            "sites": sites,
            "trained_in_full": [path for path, _ in self.plan.copies],
            "checkpoint_bytes": self.checkpoint,
            "memory_bytes": memory,
            "notes": [*self.plan.notes, *self.notes],
        }


def _parts(plan: Any) -> dict[str, int]:
    return {field.name: getattr(plan, field.name) for field in fields(plan)}


@click.command("plan")
@click.argument("source", metavar="MODEL")
@field_options(AdapterConfig, "adapter", skip=SKIPPED)
@click.option("--task", type=click.Choice(["auto", "causal", "classification"]), default="auto", show_default=True,
              help="What the model is for; auto: what the preset or config.json says.")  # fmt: skip
@click.option("--labels", type=int, help="Number of labels of a classifier.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              show_default=True, help="Number format of the base; auto: the config's own, else float32.")  # fmt: skip
@click.option("--batch", type=int, default=4, show_default=True, help="Rows of a micro-batch.")
@click.option("--length", type=int, help="Tokens of a row; default: the model's context, at most 2048.")
@click.option("--gradient-checkpointing", is_flag=True, help="Recompute activations in the backward pass.")
@click.option("--attention-matrix", is_flag=True, help="Count the (length, length) matrices: eager attention, or "
              "attention dropout on a CPU.")  # fmt: skip
@common_options
def command(*, source: str, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Count parameters, bytes and memory for a model shape, without weights.

    MODEL is a preset (gpt2, gpt2-medium, gpt2-large, roberta-base, roberta-large, deberta-v2-xxlarge, gpt3-175b,
    llama-3.2-1b, llama-3.1-8b, qwen3-8b), a directory with a config.json, or a hub name. Nothing is downloaded but a
    hub model's config.json, and no weight is read.
    """
    from deltaw.presets import PRESETS

    out = Output(quiet=quiet, as_json=as_json)
    given = take_fields(AdapterConfig, "adapter", flags)
    adapter = AdapterConfig(**given)
    result = make_plan(Shape(source=source, **flags), adapter)
    out.say(result)
    known = PRESETS.get(source)
    if known is not None and known.paper and known.paper not in _typed(flags, adapter):
        out.say(f"the paper's setting: deltaw plan {source} {known.paper}")
    words = [*field_words(AdapterConfig, "adapter", given), *_step_words(flags)]
    out.say(next_commands(" ".join([f"deltaw train --model {'DIR' if known else quote(source)} --data FILE", *words])))
    out.finish(result.payload())


def _step_words(flags: dict[str, Any]) -> list[str]:
    """What was said of the step, in the words of ``deltaw train``."""
    said = {"--task": flags["task"], "--dtype": flags["dtype"], "--max-length": flags["length"]}
    words = [f"{flag} {value}" for flag, value in said.items() if value not in (None, "auto", "float16")]
    words += [f"--batch-size {flags['batch']}"] if flags["batch"] != Shape.batch else []
    return words + (["--gradient-checkpointing"] if flags["gradient_checkpointing"] else [])


def _typed(flags: dict[str, Any], adapter: AdapterConfig) -> str:
    words = [f"--target '{target}'" if "[" in target else f"--target {target}" for target in adapter.targets]
    words += [f"--rank {adapter.rank}", f"--alpha {adapter.alpha:g}"]
    words += [f"--labels {flags['labels']}"] if flags["labels"] is not None else []
    words += [f"--train-also {name}" for name in adapter.train_also]
    return " ".join(words)


def make_plan(shape: Shape, adapter: AdapterConfig) -> PlanResult:
    """Plan an adapter and account for its memory, from shapes alone.

    Args:
        shape: the model and the step.
        adapter: what would be trained; what it leaves open is chosen as ``deltaw train`` chooses it.

    Returns:
        The result.

    Raises:
        ConfigError: if a flag is out of range or the length exceeds the model's context.
        ModelError: if the shape cannot be read.
        TargetError: if a target matches nothing.
    """
    import torch

    import deltaw as dw
    from deltaw.train.defaults import Choices, Facts, choose_length, choose_rank
    from deltaw.train.kept import frozen_values, kept_by, stored_values
    from deltaw.train.loss import find_split
    from deltaw.train.memory import Workload, memory_plan
    from deltaw.train.shape import meta_model
    from deltaw.train.wear import lora_config

    dtype = None if shape.dtype == "auto" else getattr(torch, shape.dtype)
    model = meta_model(shape.source, task=shape.task, labels=shape.labels, dtype=dtype)
    data = DataConfig(path="(none)", max_length=shape.length)
    config = TrainConfig(model=ModelConfig(path=shape.source), data=data, adapter=adapter)
    positions = getattr(model.config, "max_position_embeddings", None)
    _check_length(shape.length, positions)
    choices = Choices()
    length = choose_length(choices, config, positions)
    rank = choose_rank(choices, config, Facts(family=model.config.model_type, hidden=model.config.hidden_size,
                                              positions=positions))  # fmt: skip
    rows = new_rows(model, adapter.new_tokens)
    plan = dw.plan(model, lora_config(config, rank, rows=rows))
    work = Workload(
        batch=shape.batch,
        length=length,
        dtype=next(model.parameters()).dtype,
        checkpointing=shape.gradient_checkpointing,
        fused_attention=not shape.attention_matrix,
        chunked=find_split(model)[0] is not None,
    )
    inside = [f"{path}.{name}" if name else path for path, module in plan.copies for name, _ in module.named_modules()]
    frozen = frozen_values(plan)
    memory = memory_plan(
        model, sites=kept_by(plan), trained=plan.parameters, frozen=frozen, extra=inside, workload=work
    )
    notes = [str(choice) for choice in choices.made if choice.reason != "given"]
    return PlanResult(
        source=shape.source,
        plan=plan,
        memory=memory,
        notes=(*notes, *_start_note(plan)),
        frozen=frozen,
        stored=stored_values(plan),
    )


def _start_note(plan: Plan) -> list[str]:
    """What an initialization from gradients holds before step 1, when nothing of the step is there yet."""
    from deltaw.initialize import INITIALIZATIONS
    from deltaw.reports import size

    if INITIALIZATIONS[plan.config.init].needs != "gradient":
        return []
    held = 4 * sum(site.in_features * site.out_features for site in plan.sites)
    return [f"before step 1 init {plan.config.init} holds one float32 gradient of every adapted weight: {size(held)}"]


def new_rows(model: Any, tokens: Sequence[str]) -> dict[str, list[int]] | None:
    """Rows that stand for new tokens: as many, the last ones; a table without room grows by them in training.

    Args:
        model: the shape.
        tokens: the tokens.

    Returns:
        Path of the token table -> ids, or None where there are no new tokens.
    """
    from deltaw.train.vocabulary import table_path

    if not tokens:
        return None
    size = model.get_input_embeddings().num_embeddings
    return {table_path(model): list(range(size - len(tokens), size))}


def _check_length(length: int | None, positions: int | None) -> None:
    if length is not None and positions is not None and length > positions:
        raise ConfigError(
            "the rows are longer than the model's context",
            where="--length",
            got=str(length),
            expected=f"at most {positions}",
            hint=f"use --length {positions}",
        )
