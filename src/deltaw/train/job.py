"""A run made ready: model, data, batches and settings, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import Parameter

from deltaw.train.batches import Batch, BatchPlan, TokenExample, collate
from deltaw.train.config import TrainConfig
from deltaw.train.isolation import Isolation
from deltaw.train.loss import Losses
from deltaw.train.packed import pack

__all__ = ["Examples", "Job"]


class Examples(Protocol):
    """What the loop needs of a dataset; see ``deltaw.train.data``."""

    @property
    def lengths(self) -> Any:
        """Tokens of each example: a list or an array."""

    def __len__(self) -> int:
        """Count the examples."""

    def __getitem__(self, index: int) -> TokenExample:
        """Read one example."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything the steps need.

    Args:
        config: the user's settings.
        model: with its adapter.
        tokenizer: of the model.
        task: ``causal``, ``classification`` or ``regression``.
        losses: the model's loss.
        device: where the model is.
        parameters: exactly the trainable ones, by name.
        train: training examples.
        valid: validation examples, or None.
        plan: training batches.
        valid_batches: validation batches.
        total: optimizer steps of the run.
        lr: peak learning rate.
        eval_every: steps between validations, 0 for none.
        save_every: steps between states, 0 for none.
        output: the output directory.
        labels: class names.
        identity: what must be equal for a resumed run to be the same run, by name.
        new_tokens: tokens that the tokenizer has beyond the base's.
        isolation: how packed examples are kept apart; None where the plan packs none.
    """

    config: TrainConfig
    model: nn.Module
    tokenizer: Any
    task: str
    losses: Losses
    device: torch.device
    parameters: tuple[tuple[str, Parameter], ...]
    train: Examples
    valid: Examples | None
    plan: BatchPlan
    valid_batches: tuple[tuple[int, ...], ...]
    total: int
    lr: float
    eval_every: int
    save_every: int
    output: Path
    labels: tuple[str, ...]
    identity: dict[str, Any]
    new_tokens: tuple[str, ...] = ()
    isolation: Isolation | None = None

    def batch(self, rows: Sequence[int], examples: Examples | None = None) -> Batch:
        """Collate examples, or pack them where the plan does.

        Args:
            rows: their indices.
            examples: where from; the training examples by default. Others are never packed.

        Returns:
            The batch, on the CPU.
        """
        source = self.train if examples is None else examples
        chosen = [source[row] for row in rows]
        if examples is None and self.plan.packing:
            return pack(chosen, rows=rows, isolation=self.isolation)
        return collate(chosen, rows, self.tokenizer.pad_token_id)
