"""The account of one training step under every method of the paper, from shapes alone.

Weights are held in their own format. Values that a method adds are float32; where it trains weights of the base in half
precision, a float32 copy of them is kept beside. Gradients have the format of what they belong to, and Adam keeps two
float32 moments, 8 bytes for each trained value. Activations are those of ``deltaw.train.memory`` and
``deltaw.paper.activations``; where neither has a formula for a shape or a setting, there is no estimate, and a note
says why.

Special tokens are put before and behind a row's tokens as far as the model's context allows, else in the place of its
last ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.errors import ConfigError
from deltaw.paper import counts
from deltaw.paper.analyses.memory import GB, MB, ClaimLine, MemoryAccount, MethodMemory
from deltaw.paper.models import PAPER_MODELS, bias_values, block_values, targets_of
from deltaw.paper.tables import find_cell

if TYPE_CHECKING:
    from deltaw.sites import Plan
    from deltaw.train.memory import MemoryPlan, Workload

__all__ = ["StepShape", "memory_account"]

ADAM_BYTES = 8
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DROPPED = 5
"""Blocks without adapters in Adapter D, as ``deltaw.baselines.AdapterD`` has it; the last block keeps its own."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The step and the sizes of the methods.

    Args:
        source: one of the paper's models, another preset, a directory or a hub name.
        matrices: letters of q, k, v and o that LoRA adapts.
        rank: LoRA's r; None takes the paper's for this model, else 8.
        bottleneck: r of the adapters.
        drop_layers: blocks at the input that have none in Adapter D; None takes 5, or all but the last.
        prefix: special tokens before the prompt.
        infix: special tokens after it.
        dtype: of weights and activations.
        batch: rows of a micro-batch.
        length: tokens of a row; None takes the model's context, at most 2048.
        labels: labels of a classifier's head.
        gradient_checkpointing: recompute activations in the backward pass.
    """

    source: str = "gpt3-175b"
    matrices: str = "qv"
    rank: int | None = None
    bottleneck: int = 8
    drop_layers: int | None = None
    prefix: int = 8
    infix: int = 8
    dtype: str = "float16"
    batch: int = 1
    length: int | None = None
    labels: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        sizes = {"rank": self.rank, "bottleneck": self.bottleneck, "batch": self.batch, "length": self.length}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise _out_of_range(name, value, "a whole number from 1 up")
        least = {"prefix": self.prefix, "infix": self.infix, "drop-layers": self.drop_layers}
        for name, value in least.items():
            if value is not None and value < 0:
                raise _out_of_range(name, value, "a whole number from 0 up")
        if not self.special:
            raise _out_of_range("prefix", 0, "at least one special token before or after the prompt")
        if self.dtype not in DTYPE_BYTES:
            raise _out_of_range("dtype", self.dtype, f"one of {', '.join(DTYPE_BYTES)}")

    @property
    def special(self) -> int:
        """Special tokens in a row, lp + li."""
        return self.prefix + self.infix


def _out_of_range(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"{name} cannot be {value}", where=name, got=str(value), expected=expected, hint=f"set --{name} accordingly"
    )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One account under way.

    Args:
        model: the shape, on the meta device.
        step: as asked for.
        rank: LoRA's r.
        positions: the model's context; None where it has no end.
        load: a step without special tokens.
        special: one with them, positions of a row counted; None where they leave no room for a token.
    """

    model: Any
    step: StepShape
    rank: int
    positions: int | None
    load: Workload
    special: Workload | None

    @property
    def base(self) -> int:
        """Values of the base, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def memory_account(step: StepShape, *, name: str = "") -> MemoryAccount:
    """Account for one training step under every method of the paper.

    Args:
        step: the model, the step and the sizes of the methods.
        name: of the model, for the titles; empty takes the step's source.

    Returns:
        The account.

    Raises:
        ConfigError: if the rows are longer than the model's context, the letters are no matrices, or no block keeps an
            adapter.
        ModelError: if the shape cannot be read, or its family's matrices are not known.

    Source:
        Section 4.2 of arXiv:2106.09685; Adam's two moments: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    import deltaw as dw
    from deltaw.train.kept import kept_by
    from deltaw.train.memory import memory_plan

    case = _case(step)
    config = dw.LoRAConfig(targets=targets_of(case.model.config.model_type, step.matrices), rank=case.rank)
    plan = dw.plan(case.model, config)
    report = memory_plan(case.model, sites=kept_by(plan), trained=plan.parameters, workload=case.load)
    full = _planned("full fine-tuning", case.base, report.full)
    lora = _planned(f"LoRA {step.matrices} r={case.rank}", plan.parameters, report.lora)
    logits = report.lora.logits
    methods = (full, *_subsets(case, logits), *_prefixes(case), *_adapters(case, logits), lora, *_combined(case, plan))
    return MemoryAccount(
        model=name or step.source, base=case.base, batch=step.batch, length=case.load.length, dtype=step.dtype,
        checkpointing=step.gradient_checkpointing, matrices=step.matrices, rank=case.rank, methods=methods,
        claims=_claims(step, full, lora), notes=tuple(_notes(case)),
    )  # fmt: skip


def _case(step: StepShape) -> _Case:
    import torch

    from deltaw.baselines.anatomy import Anatomy
    from deltaw.train.loss import find_split
    from deltaw.train.memory import Workload
    from deltaw.train.shape import meta_model

    model = meta_model(step.source, labels=step.labels, dtype=getattr(torch, step.dtype))
    positions = Anatomy(model).positions
    length = _length(step, positions)
    load = Workload(
        batch=step.batch, length=length, dtype=getattr(torch, step.dtype), checkpointing=step.gradient_checkpointing,
        chunked=find_split(model)[0] is not None,
    )  # fmt: skip
    whole = min(length + step.special, positions or length + step.special)
    tokens = step.batch * (whole - step.special)
    special = dataclasses.replace(load, length=whole, loss_tokens=tokens) if tokens > 0 else None
    return _Case(
        model=model, step=step, positions=positions, load=load, special=special,
        rank=step.rank or (PAPER_MODELS[step.source].rank if step.source in PAPER_MODELS else 8),
    )  # fmt: skip


def _length(step: StepShape, positions: int | None) -> int:
    if step.length is not None and positions is not None and step.length > positions:
        raise _out_of_range("length", step.length, f"at most the model's context, {positions}")
    return step.length or min(positions or 2048, 2048)


def _planned(method: str, trained: int, plan: MemoryPlan) -> MethodMemory:
    return MethodMemory(
        method=method, trained=trained, weights=plan.weights, added=plan.adapter, gradients=plan.gradients,
        optimizer=plan.optimizer, activations=plan.activations + plan.logits,
    )  # fmt: skip


def _beside(case: _Case, method: str, trained: int, activations: int | None) -> MethodMemory:
    """A method whose float32 values stand beside the frozen base."""
    return MethodMemory(
        method=method, trained=trained, weights=DTYPE_BYTES[case.step.dtype] * case.base, added=4 * trained,
        gradients=4 * trained, optimizer=ADAM_BYTES * trained, activations=activations,
    )  # fmt: skip


def _subsets(case: _Case, logits: int) -> Iterator[MethodMemory]:
    """Methods that train some of the base's own weights."""
    from deltaw.paper.activations import bias_bytes, top_bytes

    e = DTYPE_BYTES[case.step.dtype]
    kinds = {
        "FT-Top2": (block_values(case.model, 2), top_bytes(case.model, 2, case.load)),
        "BitFit": (bias_values(case.model), bias_bytes(case.model, case.load)),
    }
    for method, (number, kept) in kinds.items():
        if number:
            yield MethodMemory(
                method=method, trained=number, weights=e * case.base, added=4 * number if e < 4 else 0,
                gradients=e * number, optimizer=ADAM_BYTES * number,
                activations=kept + logits,
            )  # fmt: skip


def _adapters(case: _Case, logits: int) -> Iterator[MethodMemory]:
    """Adapters H, L, P and D."""
    from deltaw.paper.activations import Bottlenecks, bottleneck_bytes

    d, layers, r = case.model.config.hidden_size, case.model.config.num_hidden_layers, case.step.bottleneck
    dropped = min(DROPPED, layers - 1) if case.step.drop_layers is None else case.step.drop_layers
    if dropped >= layers:
        raise _out_of_range("drop-layers", dropped, f"at most {layers - 1}: a block of {layers} keeps its adapter")
    kinds = {
        f"Adapter H r={r}": (Bottlenecks(size=r, both=True), counts.adapter_count(2 * layers, d, r)),
        f"Adapter L r={r}": (Bottlenecks(size=r, norm=True), counts.adapter_count(layers, d, r, norms=layers)),
        f"Adapter P r={r}": (Bottlenecks(size=r), counts.adapter_count(layers, d, r)),
        f"Adapter D r={r}, {dropped} dropped": (
            Bottlenecks(size=r, first=dropped), counts.adapter_count(layers - dropped, d, r),
        ),
    }  # fmt: skip
    for method, (adapters, trained) in kinds.items():
        kept = bottleneck_bytes(case.model, adapters, case.load) + logits
        yield _beside(case, method, trained, kept)


def _tokens(case: _Case) -> str:
    return f"lp={case.step.prefix}, li={case.step.infix}"


def _values(case: _Case) -> dict[str, int]:
    """Trained values of special tokens alone."""
    d, layers, step = case.model.config.hidden_size, case.model.config.num_hidden_layers, case.step
    return {
        "PE": counts.prefix_embedding_count(d, step.prefix, step.infix),
        "PL": counts.prefix_layer_count(layers, d, step.prefix, step.infix),
    }


def _counted(case: _Case, kind: str) -> Workload | None:
    """The step of a method with special tokens; None where there is no estimate."""
    recomputed = kind == "PL" and case.step.gradient_checkpointing
    return None if recomputed else case.special


def _prefixes(case: _Case) -> Iterator[MethodMemory]:
    """PreEmbed and PreLayer."""
    from deltaw.paper.activations import frozen_bytes
    from deltaw.train.memory import memory_plan

    for kind, trained in _values(case).items():
        kept, load = None, _counted(case, kind)
        if load is not None:
            kept = frozen_bytes(case.model, load)
            kept += memory_plan(case.model, sites={}, trained=trained, workload=load).lora.logits
        yield _beside(case, f"{'PreEmbed' if kind == 'PE' else 'PreLayer'} {_tokens(case)}", trained, kept)


def _combined(case: _Case, plan: Plan) -> Iterator[MethodMemory]:
    """LoRA+PE and LoRA+PL."""
    from deltaw.paper.activations import combined_bytes
    from deltaw.train.kept import kept_by
    from deltaw.train.memory import memory_plan

    sites = kept_by(plan)
    for kind, values in _values(case).items():
        kept, load, trained = None, _counted(case, kind), values + plan.parameters
        if load is not None:
            kept = combined_bytes(case.model, sites, load, replaced=kind == "PL")
            kept += memory_plan(case.model, sites=sites, trained=trained, workload=load).lora.logits
        yield _beside(case, f"LoRA+{kind} {case.step.matrices} r={case.rank}, {_tokens(case)}", trained, kept)


def _notes(case: _Case) -> Iterator[str]:
    """What the numbers are, and what has none."""
    step = case.step
    yield (
        "activations: what autograd keeps for the backward pass, attention in a fused kernel where there is one, and "
        "the logits of the loss; by formula, checked against counts on small models"
    )
    if case.special is None:
        yield (f"methods with special tokens are not estimated: {step.special} of them leave no room for a token in "
               f"{case.positions} positions")  # fmt: skip
    else:
        taken = case.load.length + step.special - case.special.length
        beside = f"beside a row's {case.load.length:,} tokens"
        displaced = f"of which {taken} take the place of tokens, because the context ends at {case.positions:,}"
        yield f"special tokens are {step.special} positions {f'{beside}, {displaced}' if taken else beside}"
    if step.gradient_checkpointing:
        yield "PreLayer and LoRA+PL are not estimated: prefix-layer tuning does not go with gradient checkpointing"
    if not bias_values(case.model):
        yield f"BitFit is left out: blocks of {case.model.config.model_type} have no bias"


def _claims(step: StepShape, full: MethodMemory, lora: MethodMemory) -> tuple[ClaimLine, ...]:
    """Ours beside the paper's; its figures are of GPT-3 and printed for it alone."""
    gpt3 = step.source == "gpt3-175b"

    def printed(row: str) -> str:
        return find_cell(f"claims/{row}/stated").text if gpt3 else ""

    unit, name = (GB, "GB") if full.states >= GB else (MB, "MB")
    counted = 3 * full.weights
    return (
        ClaimLine(
            name="optimizer states of LoRA",
            paper="",
            ours=f"{ADAM_BYTES} x {lora.trained:,} = {lora.optimizer:,} bytes, {full.optimizer:,} in full "
            f"fine-tuning: {full.optimizer / lora.optimizer:,.1f} times",
        ),
        ClaimLine(
            name="full fine-tuning",
            paper=printed("VRAM, full fine-tuning"),
            ours=f"{full.states / unit:,.1f} {name} of states; {counted / unit:,.1f} {name} as weights and two moments "
            f"in {step.dtype} alone",
        ),
        ClaimLine(
            name="LoRA", paper=printed("VRAM, LoRA"), ours=f"{lora.states / unit:,.1f} {name} of states"
        ),
        ClaimLine(
            name="less memory",
            paper=printed("less GPU memory"),
            ours=f"{full.states / lora.states:,.2f} times; {counted / lora.states:,.2f} times by the second account",
        ),
        ClaimLine(
            name="share saved, at most",
            paper=printed("share of memory saved, up to"),
            ours=f"{1 - lora.states / full.states:.2%}; {1 - lora.states / counted:.2%} by the second account",
        ),
    )  # fmt: skip
