"""The base's own dropout: kept, dropped, or set before a classifier's head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from deltaw.errors import ModelError
from deltaw.train.config import ModelConfig

__all__ = ["deterministic", "drop_base_dropout", "set_head_dropout", "settle_dropout"]

# Long enough that dropout anywhere shows, short enough to cost nothing.
TRIED_TOKENS = 8
# Kernels may add in another order from call to call; a mask of even 1% changes logits by far more.
SAME = 1e-3


def settle_dropout(model: nn.Module, config: ModelConfig, task: str) -> tuple[str, ...]:
    """Carry out what the settings say of the base's dropout, before an adapter is put on.

    Args:
        model: the base, changed in place.
        config: ``base_dropout`` and ``head_dropout``.
        task: ``causal``, ``classification`` or ``regression``.

    Returns:
        A line for each change.
    """
    lines = [] if config.base_dropout else [drop_base_dropout(model)]
    if config.head_dropout is not None:
        lines.append(set_head_dropout(model, config.head_dropout, task))
    return tuple(lines)


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Every dropout rate that the modules hold: of dropout layers, and numbers that attentions pass to a function."""
    for module in model.modules():
        for name, value in vars(module).items():
            known = name == "p" and isinstance(module, _DropoutNd)
            if isinstance(value, float) and (known or "drop" in name.lower()):
                yield module, name, value


def drop_base_dropout(model: nn.Module) -> str:
    """Switch off every dropout of a model, and see that its forward in training is deterministic then.

    Args:
        model: a transformers model without adapters, changed in place.

    Returns:
        One line.

    Raises:
        ModelError: if two forwards in training mode still differ.
    """
    found = [(module, name, value) for module, name, value in _rates(model) if value]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    if not deterministic(model):
        raise ModelError(
            "the base still drops something after its dropout was switched off",
            where=f"{type(model).__name__}, --no-base-dropout",
            got=f"two forwards in training mode that differ, with {len(found)} rates set to 0",
            expected="equal outputs",
            hint="drop --no-base-dropout, or set the dropout rates in the base's config.json to 0",
        )
    if not found:
        return "dropout of the base: it has none to switch off"
    highest = max(value for _, _, value in found)
    return f"dropout of the base: off in {len(found)} places (it was up to {highest:g})"


@torch.no_grad()
def deterministic(model: Any) -> bool:
    """Run a few tokens twice in training mode, the random state left as it was.

    Args:
        model: a transformers model without adapters.

    Returns:
        Whether the two agree: whether nothing drops out.
    """
    device = next(model.parameters()).device
    ids = torch.arange(2, 2 + TRIED_TOKENS, device=device)[None] % model.get_input_embeddings().num_embeddings
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            first, second = (model(input_ids=ids).logits.float() for _ in range(2))
    finally:
        model.train(was_training)
    return bool((first - second).abs().max() <= SAME * first.abs().max().clamp_min(1e-6))


def set_head_dropout(model: Any, rate: float, task: str) -> str:
    """Set the dropout between a classifier's body and its last matrix; a pooler's stays.

    Args:
        model: a sequence classifier of transformers, changed in place.
        rate: the share dropped.
        task: ``causal``, ``classification`` or ``regression``.

    Returns:
        One line.

    Raises:
        ModelError: if the model has no such dropout.
    """
    body = getattr(model, "base_model_prefix", "")
    places = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, _DropoutNd) and path.partition(".")[0] not in (body, "pooler")
    ]
    if task == "causal" or not places:
        raise ModelError(
            "there is no dropout before a head",
            where=f"{type(model).__name__}, --head-dropout",
            got="a language model" if task == "causal" else "a head without dropout",
            expected="a sequence classifier such as RoBERTa's or DeBERTa's",
            hint="drop --head-dropout",
        )
    before = ", ".join(f"{path} (was {module.p:g})" for path, module in places)
    for _, module in places:
        module.p = rate
    return f"dropout before the head: {rate:g} at {before}"
