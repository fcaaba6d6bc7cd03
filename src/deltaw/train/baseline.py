"""Training one of the paper's baselines: from settings to what is worn, checked, saved and told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.reports import plural
from deltaw.train.config import TrainConfig
from deltaw.train.method_config import READS

if TYPE_CHECKING:
    from deltaw.baselines import BaselineReport, Method
    from deltaw.config import LoRAConfig
    from deltaw.train.batches import Batch
    from deltaw.train.defaults import Choices

__all__ = ["RATES", "add_settings", "check", "fold_line", "method_of", "put_on", "save_into", "starts_of"]

_REASON = "LoRA's in Table 12 of arXiv:2106.09685"
RATES: dict[str, tuple[float, str]] = {
    "top-blocks": (0.1, "a tenth of LoRA's rate, as for full fine-tuning"),
    "bias": (8.0, f"BitFit's rate is 8x {_REASON}"),
    "prefix-embedding": (2.5, f"PreEmbed's rate is 2.5x {_REASON}"),
    "prefix-layer": (0.5, f"PreLayer's rate is half {_REASON}"),
    **{f"adapter-{kind}": (0.5, f"an adapter's rate is half {_REASON}") for kind in "hlpd"},
}
"""Method -> its learning rate over LoRA's, and why."""


def method_of(config: TrainConfig, lora: LoRAConfig | None, heads: tuple[str, ...]) -> Method:
    """Translate the settings for the core.

    Args:
        config: the user's settings; the method is a baseline.
        lora: the LoRA adapter beside a prefix, which also carries the modules trained in full.
        heads: freshly initialized modules, trained in full.

    Returns:
        The core's method.
    """
    from deltaw.baselines import BASELINES

    name = config.adapter.method
    options: dict[str, Any] = {field: getattr(config.baseline, field) for field in READS[name]}
    options["seed"] = config.run.seed
    if lora is not None:
        options["lora"] = lora
    else:
        options["train_also"] = tuple(dict.fromkeys((*heads, *config.adapter.train_also)))
    return BASELINES[name](**options)


def put_on(model: nn.Module, method: Method) -> tuple[BaselineReport, str]:
    """Attach a baseline.

    Args:
        model: the base, changed in place.
        method: from ``method_of``.

    Returns:
        The core's report, and one line on what is trained.
    """
    from deltaw import baselines

    report = baselines.attach(model, method)
    beside = f", and {report.head:,} of modules trained in full" if report.head else ""
    return report, f"{method.title}: {report.parameters:,} parameters{beside}"


def add_settings(choices: Choices, config: TrainConfig) -> None:
    """Record the settings that the method reads.

    Args:
        choices: receives them.
        config: the user's settings.
    """
    for field in READS[config.adapter.method]:
        value = getattr(config.baseline, field)
        given = f"baseline.{field}" in (config.given or ())
        choices.add(f"baseline.{field}", value if given else None, value, "the usual setting of this method")


def check(model: nn.Module) -> None:
    """After the first backward: everything that is trained must have got a gradient.

    Args:
        model: with its baseline.

    Raises:
        StateError: naming what got none.
    """
    from deltaw import baselines

    absent = [name for name, parameter in baselines.trainable(model) if parameter.grad is None]
    # tensors of whole modules and blocks may have no part in a task: a table of token types, for one
    whole = {name for name in absent if f".{_piece()}." not in f".{name}" and ".lora." not in name}
    if any(name not in whole for name in absent) or len(absent) == len(baselines.trainable(model)):
        raise StateError(
            "the baseline is not trained as it should be",
            where=", ".join(absent[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else ""),
            got=f"no gradient after the first backward pass for {plural(len(absent), 'tensor')}",
            expected="a gradient for everything that the baseline put on",
            hint="the model's forward goes around the modules that were found; use --method lora.",
        )


def _piece() -> str:
    from deltaw.baselines.method import NAME

    return NAME


def starts_of(model: nn.Module, batch: Batch) -> Tensor | None:
    """Find where the completions of a batch start, for an infix to stand before them.

    Args:
        model: with or without a baseline.
        batch: of language modelling, on the model's device.

    Returns:
        Shape (N,): the first token with a weight, behind all tokens where none has one; None where the model has no
        infix.
    """
    from deltaw.baselines.verbs import infix_length

    if not infix_length(model):
        return None
    rows, columns = batch.where
    count, width = batch.input_ids.shape
    starts = torch.full((count,), width, device=columns.device)
    return starts.scatter_reduce(0, rows, columns, "amin")


def save_into(model: nn.Module, place: Path) -> tuple[str, ...]:
    """Write a baseline's files into a directory.

    Args:
        model: with its baseline.
        place: an existing directory.

    Returns:
        Names of what was written there.
    """
    from deltaw import baselines

    baselines.save(model, place)
    return tuple(sorted(f.name for f in place.iterdir() if f.name.startswith("baseline_") or f.name == "lora"))


def fold_line(method: str) -> str:
    """Say whether a plain model can be made of a baseline.

    Args:
        method: a baseline's name.

    Returns:
        One line.
    """
    from deltaw.baselines import BASELINES

    reason = BASELINES[method].unmergeable
    return f"merge: not possible: {reason}" if reason else "merge: exact, its values are the base's own parameters"
