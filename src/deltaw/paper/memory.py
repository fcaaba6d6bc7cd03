"""What one training step holds, method by method: the paper's account of memory beside ours.

Weights are held in their own format. Values that a method adds are float32; where it trains weights of the base in half
precision, a float32 copy of them is kept beside. Gradients have the format of what they belong to, and Adam keeps two
float32 moments, 8 bytes for each trained value. Activations are estimated where ``deltaw.train.memory`` has a formula
that was checked against measured peaks: LoRA and full fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.errors import ConfigError
from deltaw.paper import counts
from deltaw.paper.models import PAPER_MODELS, bias_values, block_values, targets_of
from deltaw.paper.tables import find_cell
from deltaw.reports import table

if TYPE_CHECKING:
    from deltaw.train.memory import MemoryPlan

__all__ = ["ClaimLine", "MemoryAccount", "MethodMemory", "StepShape", "memory_account"]

ADAM_BYTES = 8
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GB, MB = 10**9, 10**6


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The step and the sizes of the methods.

    Args:
        source: one of the paper's models, another preset, a directory or a hub name.
        matrices: letters of q, k, v and o that LoRA adapts.
        rank: LoRA's r; None takes the paper's for this model, else 8.
        bottleneck: r of the adapters.
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
        for name, value in {"prefix": self.prefix, "infix": self.infix}.items():
            if value < 0:
                raise _out_of_range(name, value, "a whole number from 0 up")
        if self.dtype not in DTYPE_BYTES:
            raise _out_of_range("dtype", self.dtype, f"one of {', '.join(DTYPE_BYTES)}")


def _out_of_range(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"{name} cannot be {value}", where=name, got=str(value), expected=expected, hint=f"set --{name} accordingly"
    )


@dataclass(frozen=True, kw_only=True)
class MethodMemory:
    """Bytes of one method by part.

    Args:
        method: its name.
        trained: trained values.
        weights: bytes of the base.
        added: bytes of what the method adds, or of the float32 copy of what it trains.
        gradients: bytes.
        optimizer: bytes of Adam's moments.
        activations: bytes kept for the backward pass, logits among them; None where there is no estimate.
    """

    method: str
    trained: int
    weights: int
    added: int
    gradients: int
    optimizer: int
    activations: int | None = None

    @property
    def states(self) -> int:
        """Bytes of everything but activations."""
        return self.weights + self.added + self.gradients + self.optimizer

    @property
    def total(self) -> int | None:
        """Bytes of the step; None without an estimate of activations."""
        return None if self.activations is None else self.states + self.activations

    def payload(self) -> dict[str, Any]:
        """The numbers for programs.

        Returns:
            Bytes by part.
        """
        parts = ("method", "trained", "weights", "added", "gradients", "optimizer", "states", "activations", "total")
        return {part: getattr(self, part) for part in parts}


@dataclass(frozen=True, kw_only=True)
class ClaimLine:
    """A figure of the paper's section 4.2 beside ours.

    Args:
        name: what is claimed.
        paper: as printed; empty where the paper prints none.
        ours: ours, in words and digits.
    """

    name: str
    paper: str
    ours: str


@dataclass(frozen=True, kw_only=True)
class MemoryAccount:
    """Every method on one model; ``str`` is what ``deltaw paper memory`` prints.

    Args:
        source: the model.
        step: the step.
        length: tokens of a row.
        rank: LoRA's r.
        base: values of the base.
        methods: full fine-tuning first.
        claims: what the paper says, beside ours.
    """

    source: str
    step: StepShape
    length: int
    rank: int
    base: int
    methods: tuple[MethodMemory, ...]
    claims: tuple[ClaimLine, ...]

    def __str__(self) -> str:
        """A table of methods, then the claims."""
        name, unit = ("GB", GB) if self.methods[0].states >= GB else ("MB", MB)
        step = self.step
        title = (
            f"memory of one step of {self.source} ({self.base:,} values), {step.batch} x {self.length} tokens, "
            f"{step.dtype} weights, Adam; {name} = 10^{9 if unit == GB else 6} bytes"
        )
        header = ("method", "trained", "weights", "added", "gradients", "optimizer", "states", "activations", "total",
                  "states of full")  # fmt: skip
        body = [self._row(method, unit) for method in self.methods]
        widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
        rows = [[cell.rjust(width) if i else cell for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
                for row in [header, *body]]  # fmt: skip
        lines = [title, table(rows[0], rows[1:])]
        if self.claims:
            rows = [[claim.name, claim.paper or "-", claim.ours] for claim in self.claims]
            lines += ["", table(("section 4.2", "paper", "ours"), rows)]
        return "\n".join(lines)

    def _row(self, method: MethodMemory, unit: int) -> list[str]:
        def shown(value: int | None) -> str:
            return "-" if value is None else f"{value / unit:,.3f}"

        parts = (method.weights, method.added, method.gradients, method.optimizer, method.states, method.activations)
        share = f"{method.states / self.methods[0].states:.2%}"
        return [method.method, f"{method.trained:,}", *map(shown, parts), shown(method.total), share]

    def payload(self) -> dict[str, Any]:
        """The account for programs.

        Returns:
            Bytes by method and part, and the claims.
        """
        return {
            "model": self.source, "base_parameters": self.base, "batch": self.step.batch, "length": self.length,
            "dtype": self.step.dtype, "matrices": self.step.matrices, "rank": self.rank,
            "methods": [method.payload() for method in self.methods], "claims": list(self.claims),
        }  # fmt: skip


def memory_account(step: StepShape) -> MemoryAccount:
    """Account for one training step under every method of the paper.

    Args:
        step: the model, the step and the sizes of the methods.

    Returns:
        The account.

    Raises:
        ConfigError: if the rows are longer than the model's context, or the letters are no matrices.
        ModelError: if the shape cannot be read, or its family's matrices are not known.

    Source:
        Section 4.2 of arXiv:2106.09685; Adam's two moments: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    import torch

    import deltaw as dw
    from deltaw.train.loss import find_split
    from deltaw.train.kept import kept_by
    from deltaw.train.memory import Workload, memory_plan
    from deltaw.train.shape import meta_model

    model = meta_model(step.source, labels=step.labels, dtype=getattr(torch, step.dtype))
    length = _length(step, getattr(model.config, "max_position_embeddings", None))
    rank = step.rank or (PAPER_MODELS[step.source].rank if step.source in PAPER_MODELS else 8)
    config = dw.LoRAConfig(targets=targets_of(model.config.model_type, step.matrices), rank=rank)
    plan = dw.plan(model, config)
    work = Workload(
        batch=step.batch, length=length, dtype=getattr(torch, step.dtype), checkpointing=step.gradient_checkpointing,
        chunked=find_split(model)[0] is not None,
    )  # fmt: skip
    report = memory_plan(model, sites=kept_by(plan), trained=plan.parameters, workload=work)
    base = sum(p.numel() for p in model.parameters())
    lora = _planned(f"LoRA {step.matrices} r={rank}", plan.parameters, report.lora)
    full = _planned("full fine-tuning", base, report.full)
    methods = (full, *_subsets(model, step), lora, *_additions(model.config, base, step))
    return MemoryAccount(
        source=step.source, step=step, length=length, rank=rank, base=base, methods=methods,
        claims=_claims(step, full, lora),
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


def _subsets(model: Any, step: StepShape) -> list[MethodMemory]:
    """Methods that train some of the base's own weights."""
    e = DTYPE_BYTES[step.dtype]
    weights = e * sum(p.numel() for p in model.parameters())
    trained = {"FT-Top2": block_values(model, 2), "BitFit": bias_values(model)}
    return [
        MethodMemory(
            method=method, trained=number, weights=weights, added=4 * number if e < 4 else 0, gradients=e * number,
            optimizer=ADAM_BYTES * number,
        )
        for method, number in trained.items()
    ]  # fmt: skip


def _additions(config: Any, base: int, step: StepShape) -> list[MethodMemory]:
    """Methods that add values beside the base."""
    d, layers, r = config.hidden_size, config.num_hidden_layers, step.bottleneck
    tokens = (step.prefix, step.infix)
    trained = {
        f"Adapter H r={r}": counts.adapter_count(2 * layers, d, r),
        f"Adapter L r={r}": counts.adapter_count(layers, d, r, norms=layers),
        f"Adapter P r={r}": counts.adapter_count(layers, d, r),
        f"PreEmbed lp={tokens[0]}, li={tokens[1]}": counts.prefix_embedding_count(d, *tokens),
        f"PreLayer lp={tokens[0]}, li={tokens[1]}": counts.prefix_layer_count(layers, d, *tokens),
    }
    return [
        MethodMemory(
            method=method, trained=number, weights=DTYPE_BYTES[step.dtype] * base, added=4 * number,
            gradients=4 * number, optimizer=ADAM_BYTES * number,
        )
        for method, number in trained.items()
    ]  # fmt: skip


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
