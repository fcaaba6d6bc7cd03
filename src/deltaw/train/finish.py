"""After the last step: the best parameters back, saved, verified, drawn and described."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from deltaw.disk import TEMPORARY, sync
from deltaw.errors import CheckpointError, StateError
from deltaw.train.applied import applied
from deltaw.train.baseline import fold_line, save_into
from deltaw.train.card import CardFacts, model_card
from deltaw.train.evaluate import evaluate
from deltaw.train.files import write_text
from deltaw.train.job import Job
from deltaw.train.loop import Outcome
from deltaw.train.method_config import is_baseline
from deltaw.train.metrics import read_metrics
from deltaw.train.model import hushed
from deltaw.train.output import CARD, METRICS, PLOT, REPORT
from deltaw.train.plot import plot_loss
from deltaw.train.prepare import Ready
from deltaw.train.probe import peak_memory
from deltaw.train.report import RunReport, payload, shell
from deltaw.train.sample import Sample, sample
from deltaw.train.snapshot import Memory
from deltaw.train.tasked import is_task
from deltaw.train.wear import NAME

__all__ = ["finish", "interrupted"]

PROBES = 4


def interrupted(ready: Ready, memory: Memory, outcome: Outcome, notes: tuple[str, ...]) -> RunReport:
    """Report a run that was stopped from outside.

    Args:
        ready: the run.
        memory: where it is.
        outcome: how the steps ended.
        notes: lines the user should see.

    Returns:
        The report; its next command continues the run.
    """
    job = ready.job
    return RunReport(
        output=job.output, method=job.config.adapter.method, steps=memory.step, total=job.total, interrupted=True,
        state=outcome.state, before=memory.before.get("metrics", {}), seconds=outcome.seconds, tokens=outcome.tokens,
        choices=ready.choices.values(), notes=notes,
        next_commands=(f"deltaw train --resume {shell(outcome.state)}",),
    )  # fmt: skip


def finish(ready: Ready, memory: Memory, outcome: Outcome, notes: tuple[str, ...]) -> RunReport:
    """Save what the run made and check it.

    Args:
        ready: the run.
        memory: where it ended.
        outcome: how the steps ended.
        notes: lines the user should see.

    Returns:
        The report, which is also written as report.json.
    """
    job = ready.job
    last: dict[str, float] = {}
    # Every run ends with a validation: what it measured need not be measured again, unless an earlier step is saved.
    after = memory.latest or _measure(job)
    if memory.best and memory.best_step != memory.step:
        last = after
        with torch.no_grad():
            for name, parameter in job.parameters:
                parameter.copy_(memory.best[name])
        after = _measure(job)
    report = RunReport(
        output=job.output,
        method=job.config.adapter.method,
        steps=memory.step,
        total=job.total,
        early=outcome.early,
        state=outcome.state,
        before=memory.before.get("metrics", {}),
        after=after,
        last=last,
        best_step=memory.best_step,
        best_by=job.config.run.best_by,
        sample_before=Sample(**memory.before["sample"]) if memory.before.get("sample") else None,
        sample_after=sample(job, job.train if job.valid is None else job.valid),
        seconds=outcome.seconds,
        parameters=sum(parameter.numel() for _, parameter in job.parameters),
        tokens=outcome.tokens,
        peak_bytes=peak_memory(job.device),
        choices=ready.choices.values(),
        notes=(*notes, *_nothing_learned(job, memory)),
    )
    report = _save(ready, report)
    return _write_records(ready, memory, report)


def _nothing_learned(job: Job, memory: Memory) -> tuple[str, ...]:
    """A run whose best moment was its start must not read like a success."""
    if not job.parameters or not memory.step or memory.best_step != 0:
        return ()
    by = job.config.run.best_by
    how = "" if by == "loss" else f" by {by}"
    return (f"NOTHING WAS LEARNED: no validation was better{how} than before step 1; try more --steps or another --lr",)


def _measure(job: Job) -> dict[str, float]:
    return {} if job.valid is None else evaluate(job, job.valid, job.valid_batches)


def _save(ready: Ready, report: RunReport) -> RunReport:
    """Write the adapter or the model; verify what can be verified."""
    job = ready.job
    if job.config.adapter.method == "full":
        files = save_model(job)
        command = f"deltaw eval --model {shell(job.output)} {data_words(job)}"
        return dataclasses.replace(report, files=files, applied="every weight was trained", next_commands=(command,))
    if not job.parameters:
        return dataclasses.replace(report, applied="nothing was trained: there is no adapter to save (control run)")
    if is_baseline(job.config.adapter.method):
        files = save_into(job.model, job.output) + (save_tokenizer(job) if job.new_tokens else ())
        return dataclasses.replace(
            report, files=files, applied=ready.wearing.summary, fidelity=fold_line(job.config.adapter.method),
            next_commands=_next(job, learned=False),
        )  # fmt: skip
    import deltaw as dw

    saved: Any = dw.save(job.model, job.output, name=NAME)
    files = tuple(sorted(entry.name for entry in Path(saved.path).iterdir() if entry.name.startswith("adapter_")))
    if job.new_tokens:
        files += save_tokenizer(job)
    return dataclasses.replace(
        report, files=files, applied=applied(job.model, NAME), fidelity=_fidelity(job),
        next_commands=_next(job, learned=report.best_step != 0),
    )  # fmt: skip


def _fidelity(job: Job) -> str:
    """One line on merging the adapter: does the merged model say what the adapted one says."""
    from deltaw.ship.fidelity import fidelity

    examples: Any = job.train if job.valid is None else job.valid
    probes = [torch.tensor([examples[index].ids], device=job.device) for index in range(min(PROBES, len(examples)))]
    try:
        found = fidelity(job.model, probes)
    except StateError as error:
        return f"merge: not possible: {error.what} ({error.got}); {error.hint}"
    verdict = "faithful" if found.faithful else "NOT FAITHFUL (" + "; ".join(found.failures) + ")"
    return (
        f"merge: {verdict}: logits differ by {found.logit_error:.1e} of their size (bound {found.logit_bound:.1e}) on "
        f"{found.tokens} tokens, where the adapter changes them by {found.effect:.1e}"
    )


def data_words(job: Job) -> str:
    """Name the rows to score on, as flags.

    Args:
        job: the run.

    Returns:
        ``--data FILE``, or the task's flags.
    """
    data, task = job.config.data, job.config.model.task
    if is_task(task):
        return f"--task {task} --data {shell(data.path)} --split {data.valid or 'valid'}"
    return f"--data {shell(data.valid or data.path)}"


def _next(job: Job, *, learned: bool) -> tuple[str, ...]:
    model, adapter = shell(job.config.model.path), shell(job.output)
    lines = [f"deltaw eval --model {model} --adapter {adapter} {data_words(job)}"]
    if learned:
        lines.append(f"deltaw merge --model {model} --adapter {adapter} --output {adapter}-merged")
    if job.task == "causal":
        lines.insert(0, f"deltaw generate --model {model} --adapter {adapter} --prompt TEXT")
    return tuple(lines)


def save_model(job: Job) -> tuple[str, ...]:
    """Write a complete model directory into the output, file by file, each whole or not at all.

    Args:
        job: whose model was trained.

    Returns:
        Names of the files.

    Raises:
        CheckpointError: if the disk is full.
    """
    model: Any = job.model

    def fill(place: Path) -> None:
        model.save_pretrained(place)
        job.tokenizer.save_pretrained(place)

    return _moved_in(job, fill, "the model")


def save_tokenizer(job: Job) -> tuple[str, ...]:
    """Write the tokenizer with its new tokens beside the adapter, each file whole or not at all.

    Args:
        job: the run.

    Returns:
        Names of the files.

    Raises:
        CheckpointError: if the disk is full.
    """
    return _moved_in(job, job.tokenizer.save_pretrained, "the tokenizer")


def _moved_in(job: Job, fill: Callable[[Path], object], what: str) -> tuple[str, ...]:
    """Write files aside, then move each into the output."""
    place = job.output / f"{TEMPORARY}files"
    try:
        with hushed():
            fill(place)
        files = sorted(place.iterdir())
        for file in files:
            sync(file)
        for file in files:
            file.replace(job.output / file.name)
        sync(job.output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{what} cannot be saved",
            where=str(job.output),
            got=str(error),
            expected="a writable place with enough free space",
            hint=f"free some space, then run `deltaw train --resume {job.output}`",
        ) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return tuple(file.name for file in files)


def _write_records(ready: Ready, memory: Memory, report: RunReport) -> RunReport:
    """The plot, the card and report.json."""
    job, config = ready.job, ready.job.config
    written = [METRICS]
    if config.run.plot:
        plot_loss(read_metrics(job.output / METRICS), job.output / PLOT, f"{config.model.path}: {job.task}")
        written.append(PLOT)
    saved_step = memory.best_step if memory.best and memory.best_step is not None else memory.step
    facts = CardFacts(
        config=config, task=job.task, summary=ready.wearing.summary, choices=report.choices, steps=saved_step,
        before=report.before, after=report.after,
        rows=(len(job.train), 0 if job.valid is None else len(job.valid)), labels=job.labels,
        versions={name: importlib.metadata.version(name) for name in ("deltaw", "torch", "transformers")},
    )  # fmt: skip
    write_text(job.output / CARD, model_card(facts))
    report = dataclasses.replace(report, files=(*report.files, *written, CARD, REPORT))
    write_text(job.output / REPORT, json.dumps(payload(report), indent=2) + "\n")
    return report
