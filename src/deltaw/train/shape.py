"""A model's shape without its weights: a transformers model on torch's meta device, from a config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw.errors import ConfigError, ModelError, nearest
from deltaw.presets import PRESETS
from deltaw.train.model import base_config

__all__ = ["TASKS", "meta_model", "shape_config"]

TASKS = ("causal", "classification")


def shape_config(source: str, *, labels: int | None = None) -> Any:
    """Find the transformers config of a preset, a local directory or a model already in the hub's cache.

    Args:
        source: name of a preset, directory with a ``config.json``, or hub name.
        labels: number of labels of a classifier's head; None keeps the config's.

    Returns:
        A transformers ``PretrainedConfig``.

    Raises:
        ModelError: if there is no such config, or transformers cannot read it.
    """
    from transformers import AutoConfig

    if source in PRESETS and not Path(source).is_dir():
        values = dict(PRESETS[source].config)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    else:
        try:
            config = base_config(source)
        except ModelError as error:
            close = nearest(source, PRESETS, 2)
            hint = f"{error.hint}; presets that need no files: {close}, ..."
            raise ModelError(
                error.what, where=error.where, got=error.got, expected=f"{error.expected}, or a preset", hint=hint
            ) from None
    if labels is not None:
        config.num_labels = labels
    return config


def meta_model(source: str, *, task: str = "auto", labels: int | None = None, dtype: torch.dtype | None = None) -> Any:
    """Build a model whose parameters have shapes but no storage.

    GPT-3 175B takes well under a second, and no memory to speak of.

    Args:
        source: as for ``shape_config``.
        task: "causal", "classification", or "auto": what the preset or the config's ``architectures`` says.
        labels: number of labels of a classifier's head; None keeps the config's.
        dtype: dtype of the parameters; None takes the config's, else float32.

    Returns:
        A transformers model, every parameter on the meta device, in train mode.

    Raises:
        ConfigError: if ``task`` is unknown, or "auto" and the config does not say.
        ModelError: if the shape cannot be read or built.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = shape_config(source, labels=labels)
    chosen = _task(source, config, task)
    family = AutoModelForCausalLM if chosen == "causal" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model: nn.Module = family.from_config(config, dtype=dtype or config.dtype or torch.float32)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"this shape cannot be built as a {chosen} model",
            where=source,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            expected=f"a config that transformers knows for the task {chosen!r}",
            hint="choose the other --task, or check config.json",
        ) from None
    return model.train()


def _task(source: str, config: Any, task: str) -> str:
    if task in TASKS:
        return task
    if task != "auto":
        raise ConfigError(
            f"there is no task {task!r}",
            where="task",
            got=repr(task),
            expected=f"auto, {' or '.join(TASKS)}",
            hint=f"closest: {nearest(task, (*TASKS, 'auto'), 1)}",
        )
    if source in PRESETS and not Path(source).is_dir():
        return PRESETS[source].task
    names = list(config.architectures or [])
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "classification"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return "causal"
    raise ConfigError(
        "the config does not say what the model is for",
        where=f"{source}: architectures",
        got=", ".join(names) or "nothing",
        expected="a ...ForCausalLM or a ...ForSequenceClassification",
        hint="add --task causal or --task classification",
    )
