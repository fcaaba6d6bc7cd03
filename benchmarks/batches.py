"""Padded and packed batches: `python benchmarks/batches.py` prints tables and writes them to results/.

One table is what a pass over the same examples costs, losses and gradients compared before; the other is what planning
an epoch of many examples costs and wastes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltaw as dw
from deltaw.train import find_isolation, pack, trial_rows
from deltaw.train.batches import Batch, BatchPlan, collate
from deltaw.train.data import Example
from deltaw.train.loss import Losses
from deltaw.train.packing import fill_share

ROUNDS, WARM_UPS = 7, 2
EXAMPLES, LAYERS, MANY = 24, 2, 200_000
HERE = Path(__file__).parent
FORMS: dict[str, dict[str, Any]] = {
    "rows of similar length, 8 a batch": {"batch_size": 8, "batch_tokens": None},
    "rows of similar length, 1,024 tokens a batch": {"batch_size": None, "batch_tokens": 1024},
    "packed into 1,024 tokens": {"batch_size": None, "batch_tokens": 1024, "packing": True},
    "packed into 2,048 tokens": {"batch_size": None, "batch_tokens": 2048, "packing": True},
}


def lengths_of(count: int) -> list[int]:
    """Log-normal lengths, as texts have them: median 100, at most 512."""
    draw = random.Random(0)
    return [min(512, max(5, int(draw.lognormvariate(4.6, 0.8)))) for _ in range(count)]


def model_of(attention: str) -> Any:
    """A Llama of width 256 that wears an adapter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation=attention)


def passes(model: nn.Module, examples: list[Example]) -> dict[str, tuple[BatchPlan, list[Batch]]]:
    """Every form's batches, the packed ones as the model was found to heed them."""
    lengths = [len(example.ids) for example in examples]
    way, reason = find_isolation(model, [examples[row] for row in trial_rows(lengths)])
    assert way is not None, reason
    made = {}
    for name, form in FORMS.items():
        plan = BatchPlan(lengths=lengths, accumulate=1, seed=0, **form)
        chosen = [[examples[row] for row in rows] for rows in plan.epoch(0)]
        made[name] = (
            plan, [pack(part, isolation=way) if plan.packing else collate(part, range(len(part)), 0) for part in chosen]
        )  # fmt: skip
    return made


def work(losses: Losses, batches: list[Batch]) -> float:
    """Forward and backward over all batches; the loss."""
    total = 0.0
    for batch in batches:
        loss = losses(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def assert_equal(model: nn.Module, losses: Losses, made: dict[str, tuple[BatchPlan, list[Batch]]]) -> None:
    """All forms have the loss and the gradients of the first."""
    first: tuple[float, list[Tensor]] | None = None
    for name, (_, batches) in made.items():
        model.zero_grad(set_to_none=True)
        loss = work(losses, batches)
        gradients = [parameter.grad.clone() for _, parameter in dw.trainable(model) if parameter.grad is not None]
        if first is None:
            first = (loss, gradients)
        assert abs(loss - first[0]) < 1e-5 * first[0], name
        largest = max(float(gradient.abs().max()) for gradient in first[1])
        for one, other in zip(gradients, first[1], strict=True):
            assert float((one - other).abs().max()) < 1e-4 * largest, name


def alternating(measures: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds of every measure, the measures taking turns so that a busy machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(WARM_UPS + ROUNDS):
        for name, measure in measures.items():
            start = time.process_time()
            measure()
            if turn >= WARM_UPS:
                taken[name].append(time.process_time() - start)
    return taken


def cost_rows(attention: str) -> list[str]:
    """Lines of the first table, for one kind of attention."""
    model = model_of(attention)
    draw = random.Random(1)
    examples = [
        Example(ids=[draw.randrange(4096) for _ in range(length)], weights=[0.0] + [1.0] * (length - 1))
        for length in lengths_of(EXAMPLES)
    ]
    made = passes(model, examples)
    dw.attach(model, dw.LoRAConfig(rank=16, targets="all-linear"))
    losses = Losses(model, "causal")
    assert_equal(model, losses, made)
    taken = alternating({name: lambda b=batches: work(losses, b) for name, (_, batches) in made.items()})
    lines, base = [], next(iter(taken.values()))
    for name, (plan, batches) in made.items():
        ratios = [mine / first for mine, first in zip(taken[name], base, strict=True)]
        lines.append(
            f"| {attention} | {name} | {len(batches)} | {plan.padding():.1%} | {statistics.median(taken[name]):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return lines


def plan_rows() -> list[str]:
    """Lines of the second table: one epoch of many examples."""
    lengths, lines = lengths_of(MANY), []
    for name, form in FORMS.items():
        plan = BatchPlan(lengths=lengths, accumulate=1, seed=0, **form)
        start = time.process_time()
        rows = plan.epoch(0)
        seconds = time.process_time() - start
        full = f"{fill_share(rows, lengths, form['batch_tokens']):.2%}" if plan.packing else "-"
        lines.append(f"| {name} | {len(rows):,} | {plan.padding():.1%} | {full} | {seconds:.1f} |")
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    import transformers

    torch.set_num_threads(1)
    lines = [
        "# Padded and packed batches",
        "",
        f"{datetime.date.today()}. {os.cpu_count()} cores, {platform.system()} {platform.machine()}, one thread. "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"deltaw {dw.__version__}.",
        "Made by `python benchmarks/batches.py`; losses and gradients of all forms were compared before.",
        "",
        f"{EXAMPLES} examples of log-normal length (median 100, sigma 0.8, at most 512) through a Llama of width 256 "
        f"with {LAYERS} layers, LoRA r 16 on all linear layers, fp32: CPU seconds of forward and backward, and the "
        f"ratio to the first form, median of {ROUNDS} rounds and its spread, forms taking turns.",
        "",
        "| attention | form | batches | padding | CPU s | ratio |",
        "|---|---|---:|---:|---:|---:|",
        *(line for attention in ("sdpa", "eager") for line in cost_rows(attention)),
        "",
        f"Planning one epoch of {MANY:,} examples:",
        "",
        "| form | batches | padding | full | CPU s |",
        "|---|---:|---:|---:|---:|",
        *plan_rows(),
    ]
    text = (
        "\n".join(lines) + f"\n\nLoad average after the run: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.\n"
    )
    print(text)
    (HERE / "results" / f"batches_cpu_{datetime.date.today()}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
