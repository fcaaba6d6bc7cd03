"""What training does with a batch beside one plain pass, from settings: R-drop and cut-off, or the refusal of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from deltaw.errors import ConfigError
from deltaw.train.config import TrainConfig
from deltaw.train.cutoff import Cutoff
from deltaw.train.dropping import deterministic
from deltaw.train.method_config import uses_lora
from deltaw.train.rdrop import RDrop

__all__ = ["check_passes", "cutoff_of", "rdrop_of", "told"]


def rdrop_of(config: TrainConfig) -> RDrop | None:
    """Read the settings of R-drop.

    Args:
        config: the user's settings.

    Returns:
        What the second pass costs, or None for one pass.
    """
    optim = config.optim
    return RDrop(weight=optim.rdrop, form=optim.rdrop_form) if optim.rdrop else None


def cutoff_of(config: TrainConfig, tokenizer: Any) -> Cutoff | None:
    """Read the settings of cut-off.

    Args:
        config: the user's settings.
        tokenizer: whose special tokens stay, and whose unknown token may stand in.

    Returns:
        What is cut off, or None.

    Raises:
        ConfigError: if the tokenizer has no unknown token and one is asked for.
    """
    optim = config.optim
    if not optim.cutoff:
        return None
    if optim.cutoff_kind == "unknown" and tokenizer.unk_token_id is None:
        raise ConfigError(
            "there is no unknown token to read in place of others",
            where="--cutoff-kind or [optim] cutoff_kind",
            got=f"a tokenizer without one: {type(tokenizer).__name__} of {config.model.path}",
            expected="a tokenizer with unk_token, such as BERT's or DeBERTa's",
            hint="use --cutoff-kind token, which zeroes embeddings instead",
        )
    return Cutoff(
        share=optim.cutoff, kind=optim.cutoff_kind, special=tuple(sorted(set(tokenizer.all_special_ids))),
        unknown=tokenizer.unk_token_id,
    )  # fmt: skip


def check_passes(config: TrainConfig, model: nn.Module, task: str) -> None:
    """Refuse two passes that could not differ, and predictions that have no divergence, before an adapter is put on.

    Args:
        config: the user's settings.
        model: the base with its own dropout settled.
        task: ``causal``, ``classification`` or ``regression``.

    Raises:
        ConfigError: for R-drop of values, or without anything that drops out or is cut off.
    """
    optim = config.optim
    if not optim.rdrop:
        return
    if task == "regression":
        raise ConfigError(
            "values have no probabilities that two passes could differ in",
            where="--rdrop or [optim] rdrop",
            got=f"{optim.rdrop:g} with rows that carry values",
            expected="tokens or classes",
            hint="drop --rdrop; --cutoff alone works with values",
        )
    if not optim.cutoff and not _adapter_drops(config) and deterministic(model):
        raise ConfigError(
            "nothing drops out: both passes would be the same",
            where="--rdrop or [optim] rdrop",
            got="a base without dropout in training, no dropout of an adapter, and no --cutoff",
            expected="something that makes two passes of one batch differ",
            hint="add --dropout 0.1 (LoRA) or --cutoff 0.1, or drop --rdrop",
        )


def _adapter_drops(config: TrainConfig) -> bool:
    """Whether the adapter has dropout of its own: as set, or as stored with the one that is continued."""
    if not uses_lora(config.adapter.method):
        return False
    if config.adapter.start is None:
        return config.adapter.dropout > 0
    from deltaw.adapter import Adapter

    return Adapter.open(Path(config.adapter.start).expanduser()).config.dropout > 0


def told(config: TrainConfig) -> list[str]:
    """Say what a step does beside one plain pass.

    Args:
        config: the user's settings.

    Returns:
        A line for each of the two, none where neither is on.
    """
    optim, lines = config.optim, []
    if optim.rdrop:
        how = "to each other" if optim.rdrop_form == "pair" else "to their mean, per class"
        lines.append(
            f"R-drop: two passes of every batch, drawn {how} with weight {optim.rdrop:g}; the training loss is both "
            "passes' and the divergence, validation tells the plain loss"
        )
    if optim.cutoff:
        where = "of the second pass's input" if optim.rdrop else "of the input"
        lines.append(f"cut-off: {optim.cutoff:g} {where} in training ({optim.cutoff_kind})")
    return lines
