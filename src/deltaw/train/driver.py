"""``run``: a configuration in, a verified adapter out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from deltaw.train.board import TensorboardCallback
from deltaw.train.callbacks import Callback, Callbacks, ValidRecord
from deltaw.train.config import TrainConfig
from deltaw.train.evaluate import evaluate
from deltaw.train.files import write_text
from deltaw.train.finish import finish, interrupted
from deltaw.train.job import Job
from deltaw.train.loop import Loop, parameters_copy
from deltaw.train.metrics import MetricsLog
from deltaw.train.outlook import outlook
from deltaw.train.output import BOARD, METRICS, SETTINGS, check_output, clear_output
from deltaw.train.prepare import Ready, prepare
from deltaw.train.report import RunReport
from deltaw.train.resume import check_identity, environment_notes, find_resumption
from deltaw.train.rng import seed_everything
from deltaw.train.sample import sample
from deltaw.train.schedule import make_optimizer
from deltaw.train.settings import to_toml
from deltaw.train.snapshot import Memory, environment, restore
from deltaw.train.state import State, drop_later, read_state

__all__ = ["run"]


def run(config: TrainConfig, callbacks: tuple[Callback, ...] = (), *, dry_run: bool = False) -> RunReport:
    """Train: load, look, plan, try, measure, step, measure, save, verify.

    Everything is checked before the output directory is touched. An interrupted run (a callback wants to stop) saves
    its state and returns a report that says how to continue.

    Args:
        config: the user's settings; see ``TrainConfig``.
        callbacks: told of everything, in order; see ``Callback``.
        dry_run: stop before step 1 and write nothing.

    Returns:
        The numbers, files and next commands.

    Raises:
        DeltawError: if a setting, the data, the model or the state cannot be used, or a loss is not finite.

    Example:
        >>> from deltaw.train import DataConfig, ModelConfig, TrainConfig, run
        >>> config = TrainConfig(model=ModelConfig(path="base"), data=DataConfig(path="rows.jsonl"))
        >>> report = run(config)  # doctest: +SKIP
    """
    resumption = find_resumption(config)
    config, path = resumption.config, resumption.state
    check_output(config.run, resuming=path is not None)
    board = (TensorboardCallback(Path(config.run.output).expanduser() / BOARD),) if config.run.tensorboard else ()
    callback = Callbacks((*callbacks, *board))
    # of a run that is done, only its end is told
    ready = prepare(config, Callback() if resumption.finished else callback)
    job, state, notes = ready.job, None, list(ready.notes)
    if path is not None:
        state = read_state(path)
        check_identity(job.identity, state.values["identity"], path)
        changes = environment_notes(environment(job), state.values["environment"])
        notes += changes
        step = state.values["memory"]["step"]
        how = "finished already" if resumption.finished else "continuing"
        callback.on_section("resume", "\n".join([f"{how} after step {step} of {job.total}: {path}", *changes]))
    optimizer = _optimizer(job)
    plan = outlook(ready, trial=not resumption.finished)
    if not resumption.finished:
        callback.on_section("plan", plan)
    if dry_run:
        return _dry_report(ready)
    return _train(ready, optimizer, callback, state, path, tuple(notes))


def _dry_report(ready: Ready) -> RunReport:
    job = ready.job
    return RunReport(
        output=job.output, method=job.config.adapter.method, steps=0, total=job.total, dry=True,
        choices=ready.choices.values(),
    )  # fmt: skip


def _train(
    ready: Ready, optimizer: torch.optim.Optimizer, callback: Callback, state: State | None, path: Path | None,
    notes: tuple[str, ...],
) -> RunReport:  # fmt: skip
    """The part that writes."""
    job = ready.job
    clear_output(job.output, resuming=path is not None)
    if state is None:
        write_text(job.output / SETTINGS, to_toml(job.config))
        # The steps' random streams do not depend on what loading, probing and sampling drew.
        seed_everything(job.config.run.seed)
        memory, keep = Memory(), 0
    else:
        drop_later(job.output, state.values["memory"]["step"])
        memory, keep = restore(job, optimizer, state), state.values["metrics_bytes"]
    log = MetricsLog(job.output / METRICS, keep)
    try:
        if state is None:
            _measure_before(job, memory, log, callback)
        callback.on_start(job.total, memory.step)
        loop = Loop(job, optimizer, memory, log, callback, path)
        outcome = loop.run()
        log.sync()
    finally:
        log.close()
    end = interrupted if outcome.interrupted else finish
    report = end(ready, memory, outcome, notes)
    callback.on_end(report)
    return report


def _optimizer(job: Job) -> torch.optim.Optimizer:
    if not job.parameters:
        # A control at rank 0 takes no step; torch refuses an optimizer over nothing.
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(0))])
    return make_optimizer(job.model, job.config.optim, job.lr)


def _measure_before(job: Job, memory: Memory, log: MetricsLog, callback: Callback) -> None:
    """Validation and sample of the untrained state; part of every state from here on."""
    examples = job.train if job.valid is None else job.valid
    first = sample(job, examples)
    memory.before = {"metrics": {}, "sample": None if first is None else dataclasses.asdict(first)}
    if job.valid is None:
        return
    metrics = evaluate(job, job.valid, job.valid_batches)
    memory.before["metrics"] = metrics
    memory.best_step, memory.best_value = 0, metrics[job.config.run.best_by]
    memory.best = parameters_copy(job) if job.config.run.best else {}
    log.write({"kind": "valid", "step": 0, **metrics})
    callback.on_valid(ValidRecord(step=0, metrics=metrics, best=True, seconds=0.0))
