"""The model that is timed: one from a directory with its weights, or a named shape with random ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import ConfigError
from deltaw.presets import PRESETS
from deltaw.train.model import hushed
from deltaw.train.shape import meta_model, shape_config

__all__ = ["random_inputs", "subject", "twin"]


def subject(source: str, *, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Bring a model up for timing.

    Args:
        source: directory or cached hub name, for its weights; or a preset, whose weights are drawn at random: how long
            a pass takes does not depend on them.
        device: where to.
        dtype: of its weights.
        seed: of random weights.

    Returns:
        A transformers model in eval mode, frozen.

    Raises:
        ModelError: if there is no such model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = type(meta_model(source)).__name__
    family = AutoModelForSequenceClassification if "Classification" in kind else AutoModelForCausalLM
    with hushed():
        if source in PRESETS and not Path(source).is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = family.from_config(shape_config(source), dtype=dtype)
        else:
            model = family.from_pretrained(
                str(Path(source).expanduser()) if Path(source).is_dir() else source, dtype=dtype
            )
    return model.to(device).eval().requires_grad_(False)


def twin(model: nn.Module, *, own: bool = False) -> Any:
    """A copy of a model to attach something to.

    Args:
        model: the base, frozen.
        own: copy the weights too, for what writes to them; else both share them.

    Returns:
        The copy.
    """
    memo: dict[int, Any] = {} if own else {id(tensor): tensor for tensor in model.parameters()}
    return copy.deepcopy(model, memo)


def random_inputs(model: Any, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids drawn at random.

    Args:
        model: the model they are for.
        batch: rows.
        length: tokens of a row.
        seed: of the draw.

    Returns:
        Shape (batch, length), on the model's device.

    Raises:
        ConfigError: if a row is longer than the model's context.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise ConfigError(
            "the rows are longer than the model's context",
            where="--length",
            got=str(length),
            expected=f"at most {most}",
            hint=f"use --length {most} or less.",
        )
    generator = torch.Generator().manual_seed(seed)
    # the first ids are often padding, which some models take for the end of a row
    low = min(4, model.config.vocab_size - 1)
    ids = torch.randint(low, model.config.vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.parameters()).device)
