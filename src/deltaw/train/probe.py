"""A trial of the heaviest batch before step 1: what it costs, and whether it fits; then everything is put back."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from deltaw.errors import ModelError
from deltaw.reports import plural
from deltaw.train.batches import Batch, longest_batch
from deltaw.train.job import Job
from deltaw.train.snapshot import moment, rewind
from deltaw.train.wear import check_gradients

__all__ = ["Probe", "peak_memory", "probe"]

# A first pass pays for allocation and compilation; where it was quick enough, a second one is timed instead.
QUICK_SECONDS = 3.0
# A validation is a forward pass; with frozen weights the backward costs about as much again, with trained ones twice.
FORWARD_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the heaviest batch cost.

    Args:
        rows: its rows.
        width: its padded length in tokens.
        seconds: forward and backward.
        peak_bytes: highest memory use so far: of the device, or of this process on the CPU.
        estimate: expected seconds of all steps and validations.
    """

    rows: int
    width: int
    seconds: float
    peak_bytes: int
    estimate: float

    def __str__(self) -> str:
        rate = self.rows * self.width / self.seconds if self.seconds else 0.0
        peak = f"peak memory {self.peak_bytes / 2**20:,.0f} MiB"
        return (
            f"{self.rows} x {self.width} tokens forward and backward in {self.seconds:.2f} s ({rate:,.0f} tokens/s), "
            f"{peak}; steps and validations take about {duration(self.estimate)}"
        )


def duration(seconds: float) -> str:
    """Write a time for people.

    Args:
        seconds: any number >= 0.

    Returns:
        Text.

    Example:
        >>> duration(5.25), duration(75), duration(7322)
        ('5.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def peak_memory(device: torch.device) -> int:
    """Highest memory use so far.

    Args:
        device: a GPU, whose allocator is asked; otherwise the process is.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def probe(job: Job) -> Probe:
    """Run the heaviest batch forward and backward, leaving no trace.

    Args:
        job: the run.

    Returns:
        What it cost.

    Raises:
        ModelError: if it does not fit into memory.
    """
    rows = longest_batch(job.plan)
    batch = job.batch(rows).to(job.device)
    then = moment(job)
    job.model.train()
    try:
        seconds = _pass(job, batch)
        if job.parameters:
            check_gradients(job.model, job.config.adapter.method)
        if seconds < QUICK_SECONDS:
            seconds = _pass(job, batch)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise _too_big(job, batch) from None
    finally:
        for _, parameter in job.parameters:
            parameter.grad = None
        rewind(job, then)
    count, width = batch.input_ids.shape
    per_token = seconds / (count * width)
    return Probe(
        rows=count, width=width, seconds=seconds, peak_bytes=peak_memory(job.device),
        estimate=per_token * (padded_tokens(job) + FORWARD_SHARE * validation_tokens(job)),
    )  # fmt: skip


def _pass(job: Job, batch: Batch) -> float:
    start = time.perf_counter()
    total = job.losses(batch).total
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    total.item()
    if job.device.type == "cuda":
        torch.cuda.synchronize(job.device)
    return time.perf_counter() - start


def padded_tokens(job: Job) -> float:
    """Estimate the tokens of all steps, padding included.

    Args:
        job: the run.

    Returns:
        The first epoch's, scaled to the steps of the run.
    """
    windows = job.plan.windows(0)
    tokens = sum(job.plan.size(rows) for window in windows for rows in window)
    return tokens * job.total / len(windows)


def validation_tokens(job: Job) -> int:
    """Count the tokens of all validations: before, during and after.

    Args:
        job: the run.

    Returns:
        Tokens, padding left out.
    """
    if job.valid is None:
        return 0
    once = sum(int(job.valid.lengths[row]) for rows in job.valid_batches for row in rows)
    return once * (2 + (job.total // job.eval_every if job.eval_every else 0))


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text or "out of memory" in text
    )


def _too_big(job: Job, batch: Batch) -> ModelError:
    """Word that the heaviest batch does not fit, with a setting for the same steps that takes half the memory."""
    count, width = batch.input_ids.shape
    what, flag, half = f"{count} sequences of up to {width} tokens", "--batch-size", count // 2
    if job.plan.batch_tokens is not None:
        flag, half = "--batch-tokens", job.plan.batch_tokens // 2
    if job.plan.packing:
        what = f"a row of {width} tokens in {plural(len(batch.rows), 'example')}"
    return ModelError(
        "the longest batch does not fit into memory",
        where=f"{what} on {job.device}",
        got="out of memory in the trial before step 1",
        expected="room for its activations",
        hint=(
            f"use {flag} {max(1, half)} --accumulate {job.config.optim.accumulate * 2} for the same "
            "steps with half the memory, or --gradient-checkpointing, or a smaller --max-length"
        ),
    )
