"""Putting on what is trained: a fresh adapter, an earlier one, or every weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter

from deltaw.errors import StateError
from deltaw.train.config import TrainConfig

if TYPE_CHECKING:
    from deltaw.config import LoRAConfig
    from deltaw.train.job import Job

__all__ = ["Wearing", "check_gradients", "fill_state", "lora_config", "parameters_per_rank", "wear"]

NAME = "default"


@dataclass(frozen=True, kw_only=True)
class Wearing:
    """What a model was given to train.

    Args:
        parameters: exactly the trainable ones, by name.
        sites: path of each adapted module -> its rank; empty in full fine-tuning.
        summary: one line.
        notes: lines the user should see.
    """

    parameters: tuple[tuple[str, Parameter], ...]
    sites: dict[str, int]
    summary: str
    notes: tuple[str, ...] = ()


def lora_config(config: TrainConfig, rank: int, heads: Sequence[str] = ()) -> LoRAConfig:
    """Translate the adapter group for the core.

    Args:
        config: the user's settings.
        rank: the settled rank.
        heads: freshly initialized modules, trained in full.

    Returns:
        The core's configuration.
    """
    from deltaw.config import LoRAConfig

    adapter = config.adapter
    return LoRAConfig(
        targets=adapter.targets,
        rank=rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        rank_stabilized=adapter.rank_stabilized,
        init=adapter.init,
        exclude=adapter.exclude,
        layers=adapter.layers,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
        bias=adapter.bias,
        train_also=tuple(dict.fromkeys((*heads, *adapter.train_also))),
        ties=adapter.ties,
        seed=config.run.seed,
    )


def parameters_per_rank(model: nn.Module, config: TrainConfig) -> int:
    """Count adapter parameters per unit of rank, from shapes alone.

    Args:
        model: the base.
        config: the user's settings.

    Returns:
        Number of parameters at rank 1, patterns left out.
    """
    import dataclasses

    import deltaw as dw

    plain = dataclasses.replace(lora_config(config, 1), rank_pattern={}, alpha_pattern={}, train_also=())
    return int(dw.plan(model, plain).parameters)


def wear(model: nn.Module, config: TrainConfig, rank: int, heads: Sequence[str] = ()) -> Wearing:
    """Make a model trainable as configured.

    Args:
        model: the base, changed in place.
        config: the user's settings.
        rank: the settled rank; not read when continuing from an adapter.
        heads: freshly initialized modules, trained in full.

    Returns:
        What is trained.
    """
    import deltaw as dw

    if config.adapter.method == "full":
        model.requires_grad_(True)
        trained = tuple(model.named_parameters())
        return Wearing(parameters=trained, sites={}, summary=f"full fine-tuning: {_count(trained)} parameters")
    if config.adapter.start is not None:
        loaded: Any = dw.load(model, Path(config.adapter.start).expanduser(), name=NAME, trainable=True)
        trained = tuple(dw.trainable(model))
        summary = f"continuing from {config.adapter.start}: applied to {loaded.applied}/{loaded.total} modules"
        return Wearing(
            parameters=trained, sites=_sites(model), summary=f"{summary}, {_count(trained)} parameters",
            notes=tuple(loaded.notes),
        )  # fmt: skip
    report: Any = dw.attach(model, lora_config(config, rank, heads), name=NAME)
    trained = tuple(dw.trainable(model))
    if not trained:
        summary = "nothing is trained (rank 0): the base itself, as a control"
    else:
        summary = f"LoRA on {len(report.sites)} modules: {_count(trained)} parameters"
    return Wearing(parameters=trained, sites=_sites(model), summary=summary, notes=tuple(report.notes))


def _count(parameters: Sequence[tuple[str, Parameter]]) -> str:
    return f"{sum(parameter.numel() for _, parameter in parameters):,}"


def _sites(model: nn.Module) -> dict[str, int]:
    """Modules that wear a low-rank update, and the sum of their ranks."""
    ranks: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name.endswith(".lora_A"):
            path = name.partition(".lora.")[0]
            ranks[path] = ranks.get(path, 0) + parameter.shape[0]
    return ranks


def check_gradients(model: nn.Module, method: str) -> None:
    """After the first backward: every adapter must have got a gradient.

    Args:
        model: with its adapter.
        method: ``lora`` or ``full``.

    Raises:
        StateError: naming what is bypassed, untrained or misplaced.
    """
    import deltaw as dw

    if method == "full":
        return
    report: Any = dw.check(model)
    if report.ok:
        return
    problems = list(report.problems)
    shown = "; ".join(f"{problem.where} ({problem.kind})" for problem in problems[:4])
    raise StateError(
        "the adapter is not trained as it should be",
        where=shown + (f"; and {len(problems) - 4} more" if len(problems) > 4 else ""),
        got=f"{len(problems)} problem(s) after the first backward pass",
        expected="a gradient for every adapter parameter",
        hint=str(problems[0].hint),
    )


def fill_state(job: Job, place: Path) -> None:
    """Write the adapter into a state's directory, so that the state is usable by itself.

    Args:
        job: the run.
        place: an existing directory.
    """
    import deltaw as dw

    if job.config.adapter.method == "lora" and job.parameters:
        dw.save(job.model, place, name=NAME)
