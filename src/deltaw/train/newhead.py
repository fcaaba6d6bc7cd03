"""A head for new labels: what stays of an earlier adapter, and what the head reads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError, ConfigError
from deltaw.keys import PREFIX
from deltaw.train.imprint import LABELS
from deltaw.tree import base_state

__all__ = ["HINT", "frozen_pooler", "require_head", "with_new_head"]

HINT = "add --new-head to keep the adapter's update and train a new head"


def _place(key: str) -> str:
    """The parameter that a key of the file means."""
    return re.sub(r"\.(modules_to_save|original_module|base_layer)\.", ".", key.removeprefix(PREFIX))


def _head_tensors(adapter: Adapter, model: Any) -> dict[str, str]:
    """Key -> parameter, of the tensors that lie outside the body of a classifier."""
    body, whole = f"{model.base_model_prefix}.", {**adapter.contents.rest, **adapter.contents.base}
    places = {key: _place(key) for key in adapter.tensors}
    return {key: place for key, place in places.items() if place in whole and not place.startswith(body)}


def require_head(adapter: Adapter, model: Any, heads: Sequence[str]) -> None:
    """Refuse to continue with a head of another size, or with a new head that nothing would train.

    Args:
        adapter: what is continued.
        model: a sequence classifier.
        heads: modules that the base's files do not hold.

    Raises:
        CheckpointError: with the hint ``--new-head``.
    """
    own = dict(model.named_parameters())
    held = _head_tensors(adapter, model)
    wrong = [
        f"{place} {tuple(adapter.tensors[key].shape)} for {tuple(own[place].shape)}"
        for key, place in held.items()
        if place in own and own[place].shape != adapter.tensors[key].shape
    ]
    lacking = [head for head in heads if not any(place.startswith(f"{head}.") for place in held.values())]
    if wrong or lacking:
        raise CheckpointError(
            "the adapter's head is not for these labels" if wrong else "the adapter holds no head for these labels",
            where=f"{adapter.where} on {type(model).__name__}",
            got="; ".join([*wrong, *(f"nothing for {head}" for head in lacking)]),
            expected="a head of the size of the data's labels",
            hint=HINT,
        )


def with_new_head(adapter: Adapter, model: Any, heads: Sequence[str]) -> tuple[Adapter, str]:
    """Put the model's own, newly initialized head in the place of the adapter's.

    Args:
        adapter: what is continued.
        model: the base with its fresh head.
        heads: modules that the base's files do not hold.

    Returns:
        The adapter as it is to be loaded, and one line.

    Raises:
        ConfigError: if neither the adapter nor the base has a head outside its body.
    """
    old = _head_tensors(adapter, model)
    new = tuple(heads) or tuple(dict.fromkeys(place.rpartition(".")[0] for place in sorted(old.values())))
    if not new:
        raise ConfigError(
            "there is no head to start anew",
            where="adapter.new_head",
            got=f"{type(model).__name__}, whose adapter and base hold no module outside the body",
            expected="a sequence classifier",
            hint="drop --new-head",
        )
    tensors = {key: tensor for key, tensor in adapter.tensors.items() if key not in old}
    for head in new:
        state = base_state(model.get_submodule(head))
        tensors |= {f"{PREFIX}{head}.{leaf}": tensor.detach().float().cpu().clone() for leaf, tensor in state.items()}
    body = f"{model.base_model_prefix}."
    inside = [path for path, _ in model.named_modules() if path.startswith(body)]
    kept = [name for name in adapter.raw.get("modules_to_save") or () if any(path.endswith(name) for path in inside)]
    raw = {**adapter.raw, "modules_to_save": sorted({*kept, *new})}
    metadata = {key: value for key, value in adapter.metadata.items() if key != LABELS}
    left = ", ".join(sorted({place.rpartition(".")[0] for place in old.values()})) or "it had none"
    whose = "newly initialized" if heads else "the base's own"
    line = f"head of {adapter.where} left behind ({left}); {whose} and trained: {', '.join(new)}"
    return dataclasses.replace(adapter, tensors=tensors, raw=raw, metadata=metadata), line


def frozen_pooler(model: nn.Module, trained: Sequence[tuple[str, Parameter]], heads: Sequence[str]) -> tuple[str, ...]:
    """Tell of a dense layer between the base and a new head that stays as the base has it.

    RoBERTa's new head brings its dense layer along; BERT's is the pooler, which belongs to the base.

    Args:
        model: with its adapter.
        trained: the trainable parameters.
        heads: modules that the base's files do not hold.

    Returns:
        A line for each such layer, none where its weight is trained.
    """
    poolers = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == "pooler"] if heads else []
    weights = [name for name, parameter in trained if parameter.dim() > 1]
    return tuple(
        f"the new head reads {path}, which stays as the base has it; --train-also {path} trains it too"
        for path in poolers
        if not any(name.startswith(f"{path}.") for name in weights)
    )
