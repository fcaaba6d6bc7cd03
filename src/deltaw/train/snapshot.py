"""A run's memory: where it is, what was best, and how to take and put back all of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from deltaw.errors import ResumeError, nearest
from deltaw.train import rng
from deltaw.train.job import Job
from deltaw.train.method_config import uses_lora
from deltaw.train.state import State
from deltaw.train.wear import adapter_buffers

__all__ = ["Memory", "Moment", "environment", "moment", "restore", "rewind", "take"]


@dataclass(kw_only=True)
class Memory:
    """What the loop carries from step to step; everything here is part of a state.

    Args:
        step: optimizer steps done.
        epoch: epoch of the next step.
        index: the next step's place in that epoch.
        trained: tokens (or rows) trained so far.
        best_step: step of the best validation by ``run.best_by``, None before the first validation.
        best_value: what decided it: a loss or another metric.
        best: the trained parameters of that step, on the CPU; a state leaves them out where they are the current ones.
        stale: validations since then.
        before: what was measured before step 1.
        latest: what the last validation measured.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    trained: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """List what JSON can hold.

        Returns:
            Everything but the tensors.
        """
        return {
            "step": self.step, "epoch": self.epoch, "index": self.index, "trained": self.trained,
            "best_step": self.best_step, "best_value": self.best_value, "stale": self.stale,
            "before": self.before, "latest": self.latest,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moment:
    """All random streams at the start of a step: a step that is broken off leaves no trace.

    Args:
        random: the global streams.
        draws: counters of the adapters' own dropout streams.
    """

    random: rng.RandomState
    draws: dict[str, int]


def moment(job: Job) -> Moment:
    """Take the state of every random stream.

    Args:
        job: whose model's adapters are asked too.

    Returns:
        A copy.
    """
    import deltaw as dw

    draws = dict(dw.draws(job.model)) if uses_lora(job.config.adapter.method) else {}
    return Moment(random=rng.capture(), draws=draws)


def rewind(job: Job, then: Moment) -> None:
    """Put every random stream back.

    Args:
        job: whose model's adapters are told too.
        then: from ``moment``.
    """
    import deltaw as dw

    rng.restore(then.random)
    if uses_lora(job.config.adapter.method):
        dw.set_draws(job.model, then.draws)


def environment(job: Job) -> dict[str, Any]:
    """Name what bit-identical results depend on beside the state.

    Args:
        job: the run.

    Returns:
        Versions, device, dtype, threads and machine.
    """
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type
    return {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def take(job: Job, optimizer: torch.optim.Optimizer, memory: Memory, then: Moment, metrics_bytes: int) -> State:
    """Collect a state.

    Args:
        job: the run.
        optimizer: its optimizer.
        memory: where it is.
        then: the random streams at the start of the next step.
        metrics_bytes: how much of metrics.jsonl belongs to the steps done.

    Returns:
        The state; its tensors may share memory with the model until they are written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in job.parameters:
        tensors[f"param.{name}"] = _stored(parameter)
        for part, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"{part}.{name}"] = _stored(tensor)
    for name, tensor in adapter_buffers(job.model).items():
        tensors[f"buffer.{name}"] = _stored(tensor)
    if memory.best_step != memory.step:
        tensors |= {f"best.{name}": tensor for name, tensor in memory.best.items()}
    tensors |= {f"rng.{name}": tensor for name, tensor in then.random.tensors.items()}
    values = {
        "memory": memory.values(),
        "rng": then.random.values,
        "draws": then.draws,
        "metrics_bytes": metrics_bytes,
        "total": job.total,
        "identity": job.identity,
        "environment": environment(job),
        "config": job.config.values(),
        "given": sorted(job.config.given or ()),
    }
    return State(tensors=tensors, values=values)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def restore(job: Job, optimizer: torch.optim.Optimizer, state: State) -> Memory:
    """Copy a state into the live parameters, buffers, optimizer and random streams.

    Args:
        job: the run, its model with a fresh adapter of the same shape.
        optimizer: fresh.
        state: what was saved.

    Returns:
        Where the run is.

    Raises:
        ResumeError: if the state's parameters are not exactly the model's.
    """
    stored = state.group("param")
    _check_shapes(dict(job.parameters), stored)
    buffers = adapter_buffers(job.model)
    _check_shapes(buffers, state.group("buffer"))
    with torch.no_grad():
        # what a start was made of need not be the same bits twice: the state's are the run's
        for name, tensor in buffers.items():
            tensor.copy_(state.tensors[f"buffer.{name}"])
        for name, parameter in job.parameters:
            parameter.copy_(stored[name])
            slots = {part: state.tensors.get(f"{part}.{name}") for part in ("step", "exp_avg", "exp_avg_sq")}
            if slots["step"] is not None:
                optimizer.state[parameter] = _moments(slots, parameter, optimizer)
    then = Moment(
        random=rng.RandomState(tensors=state.group("rng"), values=state.values["rng"]), draws=state.values["draws"]
    )
    rewind(job, then)
    memory = Memory(**state.values["memory"], best=state.group("best"))
    if memory.best_step == memory.step and job.config.run.best:
        memory.best = stored
    return memory


def _moments(slots: dict[str, Tensor | None], parameter: Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """AdamW's entries, each where this torch keeps it: the step count is on the device only in the fused kernel."""
    fused = optimizer.param_groups[0].get("fused")
    moved = {}
    for part, tensor in slots.items():
        assert tensor is not None
        moved[part] = tensor.to(parameter.device) if part != "step" or fused else tensor
    return moved


def _check_shapes(live: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    absent = [name for name in live if name not in stored]
    problems = [f"{name} is not in the state (closest: {nearest(name, stored, 1)})" for name in absent]
    problems += [f"{name} is not in the model" for name in stored if name not in live]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, not {tuple(parameter.shape)}"
        for name, parameter in live.items()
        if name in stored and stored[name].shape != parameter.shape
    ]
    if problems:
        raise ResumeError(
            "the state does not fit the model",
            where="the tensors of the run",
            got="; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else ""),
            expected=f"its {len(live)} tensors, each in its shape",
            hint="resume with the model and the settings that the run was started with",
        )
