"""The steps: windows of batches, one optimizer step each, validation, states, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deltaw.errors import DataError, StateError
from deltaw.train.batches import Batch, Window, walk
from deltaw.train.best import beats
from deltaw.train.callbacks import Callback, StepRecord, ValidRecord
from deltaw.train.evaluate import evaluate
from deltaw.train.job import Job
from deltaw.train.metrics import MetricsLog
from deltaw.train.schedule import learning_rate, set_rate, warmup_of
from deltaw.train.snapshot import Memory, Moment, moment, rewind, take
from deltaw.train.state import PREFIX, write_state
from deltaw.train.wear import check_gradients, fill_state

__all__ = ["Loop", "Outcome"]


class _Stop(Exception):
    """A callback wants the run to stop; the step in hand is given up."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the steps ended.

    Args:
        interrupted: whether a callback stopped them.
        early: whether validation stopped improving.
        state: the state saved last, or None.
        seconds: wall time of the steps of this process, with the validations and states between them.
        tokens: tokens that went through the model in them, padding left out.
    """

    interrupted: bool
    early: bool
    state: Path | None
    seconds: float
    tokens: int


class Loop:
    """Runs the steps of a job.

    Args:
        job: what to train.
        optimizer: over exactly the job's parameters.
        memory: where to start.
        log: the open metrics file.
        callback: told of everything.
        saved: the state this run was resumed from, or None.
    """

    def __init__(
        self, job: Job, optimizer: torch.optim.Optimizer, memory: Memory, log: MetricsLog, callback: Callback,
        saved: Path | None = None,
    ) -> None:  # fmt: skip
        self.job, self.optimizer, self.memory, self.log, self.callback = job, optimizer, memory, log, callback
        self.saved, self.tokens, self.checked = saved, 0, False
        self.warmup = warmup_of(job.config.optim, job.plan, job.total)

    def run(self) -> Outcome:
        """Do the steps that are left.

        Returns:
            How they ended.

        Raises:
            StateError: if a loss or gradient is not finite; nothing broken is saved.
        """
        job, memory = self.job, self.memory
        start, early, interrupted = time.perf_counter(), self._exhausted(), False
        job.model.train()
        left = 0 if early else job.total - memory.step
        for window in walk(job.plan, epoch=memory.epoch, index=memory.index, steps=left):
            then = moment(job)
            try:
                self._step(window)
            except _Stop:
                self.optimizer.zero_grad(set_to_none=True)
                rewind(job, then)
                self._save(then)
                interrupted = True
                break
            self._after_step()
            if early := self._exhausted():
                break
        return Outcome(
            interrupted=interrupted, early=early, state=self.saved, seconds=time.perf_counter() - start,
            tokens=self.tokens,
        )  # fmt: skip

    def _step(self, window: Window) -> None:
        """One window: gradients of its whole, then one update; only a finished step changes anything."""
        job, memory, begin = self.job, self.memory, time.perf_counter()
        batches = [job.batch(rows) for rows in window.batches]
        loss, norm = self._gradients(batches)
        lr = self._update(memory.step)
        memory.step, memory.epoch, memory.index = memory.step + 1, window.epoch, window.index + 1
        memory.trained += sum(batch.trained for batch in batches)
        tokens = sum(batch.tokens for batch in batches)
        self.tokens += tokens
        passed = window.epoch + (window.index + 1) / window.count
        record = StepRecord(
            step=memory.step, total=job.total, epoch=passed, loss=loss, lr=lr, grad_norm=norm,
            trained=sum(batch.trained for batch in batches), tokens=tokens, seconds=time.perf_counter() - begin,
        )  # fmt: skip
        self.log.write(
            {"kind": "step", "step": record.step, "epoch": round(record.epoch, 6), "loss": loss, "lr": lr,
             "grad_norm": norm, "trained": memory.trained}
        )  # fmt: skip
        self.callback.on_step(record)

    def _gradients(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Gradients of the window's mean loss; (loss, gradient norm before clipping)."""
        job, weight = self.job, sum(batch.weight for batch in batches)
        if weight <= 0:
            raise no_weight(self.memory.step + 1, batches)
        total: Tensor = torch.zeros((), device=job.device)
        for batch in batches:
            if self.callback.wants_stop():
                raise _Stop
            loss = job.losses(batch.to(job.device)).total / weight
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if not self.checked:
            check_gradients(job.model, job.config.adapter.method)
            self.checked = True
        norm = clip_gradients([parameter for _, parameter in job.parameters], job.config.optim.clip)
        values = float(total), float(norm)
        if not all(map(math.isfinite, values)):
            raise not_finite(self.memory.step + 1, batches, values, self.optimizer.param_groups)
        return values

    def _update(self, step: int) -> float:
        """Set the rate, step, clear; the rate used."""
        job = self.job
        lr = learning_rate(step, total=job.total, peak=job.lr, schedule=job.config.optim.schedule, warmup=self.warmup)
        set_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return lr

    def _after_step(self) -> None:
        """Validate and save where it is due; a state is always saved after the validation of its step."""
        job, step = self.job, self.memory.step
        last = step == job.total
        if job.valid is not None and (last or (job.eval_every and step % job.eval_every == 0)):
            self._validate()
        if job.save_every and (last or step % job.save_every == 0):
            self._save(moment(job))

    def _validate(self) -> None:
        job, memory, begin = self.job, self.memory, time.perf_counter()
        assert job.valid is not None
        metrics = memory.latest = evaluate(job, job.valid, job.valid_batches)
        by = job.config.run.best_by
        best = beats(metrics[by], memory.best_value, by)
        if best:
            memory.best_step, memory.best_value, memory.stale = memory.step, metrics[by], 0
            memory.best = parameters_copy(job) if job.config.run.best else {}
        else:
            memory.stale += 1
        self.log.write({"kind": "valid", "step": memory.step, **metrics})
        seconds = time.perf_counter() - begin
        self.callback.on_valid(ValidRecord(step=memory.step, metrics=metrics, best=best, seconds=seconds))

    def _exhausted(self) -> bool:
        patience = self.job.config.run.patience
        return bool(patience) and self.memory.stale >= patience

    def _save(self, then: Moment) -> None:
        """Save a state of the steps done; ``then`` are the random streams at the start of the next."""
        job, step = self.job, self.memory.step
        if self.saved is not None and self.saved.name == f"{PREFIX}{step}":
            return
        state = take(job, self.optimizer, self.memory, then, self.log.sync())
        self.saved = write_state(job.output, step, state, lambda place: fill_state(job, place), job.config.run.keep)
        self.callback.on_save(self.saved)


def parameters_copy(job: Job) -> dict[str, Tensor]:
    """Copy the trained parameters to the CPU.

    Args:
        job: the run.

    Returns:
        Name -> tensor.
    """
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in job.parameters}


def clip_gradients(parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """Scale gradients down to a norm.

    Args:
        parameters: those without a gradient count as zero.
        clip: the largest norm left as it is; 0 scales nothing.

    Returns:
        The norm of all gradients together before, a scalar.
    """
    if clip:
        return nn.utils.clip_grad_norm_(parameters, clip)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients)


def not_finite(step: int, batches: Sequence[Batch], values: tuple[float, float], groups: list[dict]) -> StateError:  # type: ignore[type-arg]
    """Word a loss or gradient that is not finite.

    Args:
        step: the step it happened in, counted from 1.
        batches: its window.
        values: (loss, gradient norm).
        groups: the optimizer's groups, for the rate.

    Returns:
        The error to raise.
    """
    what = "loss" if not math.isfinite(values[0]) else "gradient"
    rows = [row for batch in batches for row in batch.rows]
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return StateError(
        f"the {what} is not finite",
        where=f"step {step}, training examples {shown}",
        got=f"loss {values[0]}, gradient norm {values[1]}",
        expected="finite numbers",
        hint=f"lower --lr (it was {groups[0]['lr']:.3g}), or use --dtype float32; nothing of this step was saved",
    )


def no_weight(step: int, batches: Sequence[Batch]) -> DataError:
    """Word a window without a trained token.

    Args:
        step: the step, counted from 1.
        batches: its window.

    Returns:
        The error to raise.
    """
    rows = [row for batch in batches for row in batch.rows]
    return DataError(
        "a step has nothing to train on",
        where=f"step {step}, training examples {', '.join(map(str, rows[:8]))}",
        got="token weights that sum to zero",
        expected="at least one trained token",
        hint="look at the rows with `deltaw data show`",
    )
