"""Putting on what is trained: a fresh adapter, an earlier one, a baseline, or every weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import Parameter

from deltaw.errors import StateError
from deltaw.reports import plural
from deltaw.train import baseline
from deltaw.train.config import TrainConfig, spec_of
from deltaw.train.kept import Kept, frozen_values, kept_by, kept_in
from deltaw.train.method_config import is_baseline, uses_lora

if TYPE_CHECKING:
    from deltaw.adapter import Adapter
    from deltaw.config import LoRAConfig
    from deltaw.train.job import Job
    from deltaw.train.looking import Looking

__all__ = [
    "Wearing", "adapter_buffers", "check_gradients", "fill_state", "lora_config", "parameters_per_rank", "wear",
]  # fmt: skip

NAME = "default"
# Even, so that an initialization that halves the rank takes them.
_TWO_RANKS = (2, 4)


@dataclass(frozen=True, kw_only=True)
class Wearing:
    """What a model was given to train.

    Args:
        parameters: exactly the trainable ones, by name.
        sites: path of each adapted module -> what it keeps for the backward pass; empty in full fine-tuning.
        summary: one line.
        notes: lines the user should see.
        frozen: number of values that the adapter holds beside the trained ones.
        told: lines that the report repeats at the end.
    """

    parameters: tuple[tuple[str, Parameter], ...]
    sites: dict[str, Kept]
    summary: str
    notes: tuple[str, ...] = ()
    frozen: int = 0
    told: tuple[str, ...] = ()


def lora_config(
    config: TrainConfig, rank: int, heads: Sequence[str] = (), rows: Mapping[str, Sequence[int]] | None = None
) -> LoRAConfig:
    """Translate the adapter group for the core.

    Args:
        config: the user's settings.
        rank: the settled rank.
        heads: freshly initialized modules, trained in full.
        rows: rows of new tokens, beside those the settings name.

    Returns:
        The core's configuration.
    """
    from deltaw.config import LoRAConfig
    from deltaw.variants import variant_of

    adapter = config.adapter
    # the default is no wish where nothing is scaled; a wish is refused by the core
    plain = not variant_of(adapter.variant).scaled and adapter.alpha == spec_of("adapter.alpha").default
    return LoRAConfig(
        targets=adapter.targets,
        rank=rank,
        alpha=rank if plain else adapter.alpha,
        dropout=adapter.dropout,
        rank_stabilized=adapter.rank_stabilized,
        init=adapter.init,
        exclude=adapter.exclude,
        layers=adapter.layers,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
        bias=adapter.bias,
        train_also=tuple(dict.fromkeys((*heads, *adapter.train_also))),
        train_rows={**adapter.train_rows, **(rows or {})},
        variant=adapter.variant,
        # the rows of a new token are one thing to an embedding and the head that is tied to it
        ties="share" if rows and adapter.ties == "refuse" else adapter.ties,
        seed=config.run.seed,
    )


def parameters_per_rank(model: nn.Module, config: TrainConfig) -> int:
    """Count adapter parameters per unit of rank, from shapes alone.

    Args:
        model: the base.
        config: the user's settings.

    Returns:
        Number of parameters that one more rank brings, patterns left out.
    """
    import dataclasses

    import deltaw as dw

    one, two = (
        dataclasses.replace(lora_config(config, rank), rank_pattern={}, alpha_pattern={}) for rank in _TWO_RANKS
    )
    per_rank = (dw.plan(model, two).parameters - dw.plan(model, one).parameters) // (_TWO_RANKS[1] - _TWO_RANKS[0])
    return int(per_rank)


def wear(
    model: nn.Module,
    config: TrainConfig,
    rank: int,
    heads: Sequence[str] = (),
    *,
    rows: Mapping[str, Sequence[int]] | None = None,
    looking: Looking | None = None,
) -> Wearing:
    """Make a model trainable as configured.

    Args:
        model: the base, changed in place.
        config: the user's settings.
        rank: the settled rank; not read when continuing from an adapter.
        heads: freshly initialized modules, trained in full.
        rows: rows of new tokens.
        looking: the first batches, for an initialization that starts from data.

    Returns:
        What is trained.
    """
    import deltaw as dw

    if config.adapter.method == "full":
        model.requires_grad_(True)
        trained = tuple(model.named_parameters())
        return Wearing(parameters=trained, sites={}, summary=f"full fine-tuning: {_count(trained)} parameters")
    if is_baseline(config.adapter.method):
        low_rank = lora_config(config, rank, heads, rows) if uses_lora(config.adapter.method) else None
        put, summary = baseline.put_on(model, baseline.method_of(config, low_rank, tuple(heads)))
        trained = tuple(dw.trainable(model))
        return Wearing(parameters=trained, sites={}, summary=summary, notes=put.notes)
    if config.adapter.start is not None:
        earlier, told = _earlier(config, model, heads)
        loaded: Any = dw.load(model, earlier, name=NAME, trainable=True)
        trained = tuple(dw.trainable(model))
        summary = f"continuing from {config.adapter.start}: applied to {loaded.applied}/{loaded.total} modules"
        return Wearing(
            parameters=trained, sites=kept_in(model, NAME), summary=f"{summary}, {_count(trained)} parameters",
            notes=(*told, *loaded.notes), frozen=_frozen(model), told=told,
        )  # fmt: skip
    arguments = {} if looking is None else looking.arguments(config.adapter.init)
    report: Any = dw.attach(model, lora_config(config, rank, heads, rows), name=NAME, **arguments)
    trained = tuple(dw.trainable(model))
    if not trained:
        summary = "nothing is trained (rank 0): the base itself, as a control"
    else:
        summary = f"{_kind(config)} on {plural(len(report.sites), 'module')}: {_count(trained)} parameters"
    return Wearing(
        parameters=trained, sites=kept_by(report.plan), summary=summary, notes=tuple(report.notes),
        frozen=frozen_values(report.plan),
    )  # fmt: skip


def _earlier(config: TrainConfig, model: nn.Module, heads: Sequence[str]) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter to continue, with a head for these labels."""
    from deltaw.adapter import Adapter
    from deltaw.train.newhead import require_head, with_new_head

    adapter = Adapter.open(Path(str(config.adapter.start)).expanduser())
    if config.adapter.new_head:
        renewed, line = with_new_head(adapter, model, heads)
        return renewed, (line,)
    if heads:
        require_head(adapter, model, heads)
    return adapter, ()


def _count(parameters: Sequence[tuple[str, Parameter]]) -> str:
    return f"{sum(parameter.numel() for _, parameter in parameters):,}"


def _kind(config: TrainConfig) -> str:
    """What is trained, in a word or two."""
    names = [name for name in config.adapter.variant if name != "lora"]
    return f"LoRA ({', '.join(names)})" if names else "LoRA"


def adapter_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Find what an adapter holds beside its parameters: where it started, matrices that are not trained.

    Args:
        model: with its adapter.

    Returns:
        Name -> the live tensor.
    """
    found = {name: tensor for name, tensor in model.named_buffers() if ".lora." in f".{name}"}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _frozen(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in adapter_buffers(model).values())


def check_gradients(model: nn.Module, method: str) -> None:
    """After the first backward: every adapter must have got a gradient.

    Args:
        model: with its adapter.
        method: as in ``--method``.

    Raises:
        StateError: naming what is bypassed, untrained or misplaced.
    """
    import deltaw as dw

    if is_baseline(method):
        baseline.check(model)
    if not uses_lora(method):
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

    method = job.config.adapter.method
    if is_baseline(method):
        baseline.save_into(job.model, place)
    elif method == "lora" and job.parameters:
        dw.save(job.model, place, name=NAME)
    if job.new_tokens and job.parameters:
        job.tokenizer.save_pretrained(place)
