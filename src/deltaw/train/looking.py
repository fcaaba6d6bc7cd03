"""The first training batches, as an initialization that starts from data wants to see them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from deltaw.chunked import Rules, token_losses
from deltaw.initialize import INITIALIZATIONS
from deltaw.train.batches import Batch, BatchPlan, TokenExample, collate
from deltaw.train.isolation import Isolation
from deltaw.train.loss import before, label_loss
from deltaw.train.packed import pack

__all__ = ["Looking"]


class Looking:
    """Feeds the first training batches to ``deltaw.attach``.

    Args:
        examples: the training examples.
        plan: how they are put into batches.
        batches: how many to show.
        pad_id: the tokenizer's pad token.
        task: what the model is trained for.
        model: the model, for the place of its inputs.
        isolation: how packed examples are kept apart; None where the plan packs none.
        label_smoothing: as in training.
    """

    def __init__(
        self, examples: Any, plan: BatchPlan, batches: int, pad_id: int, task: str, model: nn.Module,
        isolation: Isolation | None = None, label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        self.examples, self.plan, self.count, self.pad_id, self.task = examples, plan, batches, pad_id, task
        self.isolation, self.label_smoothing = isolation, label_smoothing
        self.device = next(model.parameters()).device
        self._batch: Batch | None = None

    def arguments(self, init: str) -> dict[str, Any]:
        """What ``deltaw.attach`` takes for an initialization.

        Args:
            init: its name.

        Returns:
            ``batches`` and ``loss``, where it needs them.
        """
        needs = INITIALIZATIONS[init].needs
        if needs == "inputs":
            # one row at a time: no padding is mistaken for data
            return {"batches": self._inputs([row] for rows in self._chosen() for row in rows)}
        if needs == "gradient":
            loss: Callable[[Any], Tensor] = self.loss
            return {"batches": self._inputs(self._chosen()), "loss": loss}
        return {}

    def _chosen(self) -> Iterator[list[int]]:
        """Rows of the first batches, in the order of training."""
        batches = (list(rows) for window in self.plan.windows(0) for rows in window)
        return itertools.islice(batches, self.count)

    def _inputs(self, batches: Iterator[list[int]]) -> Iterator[dict[str, Any]]:
        for rows in batches:
            examples: list[TokenExample] = [self.examples[row] for row in rows]
            if self.plan.packing:
                self._batch = pack(examples, rows=rows, isolation=self.isolation).to(self.device)
            else:
                self._batch = collate(examples, rows, self.pad_id).to(self.device)
            yield self._arguments(self._batch)

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        return batch.inputs() | {"return_dict": True} | ({"use_cache": False} if self.task == "causal" else {})

    def loss(self, output: Any) -> Tensor:
        """The training loss of the batch shown last: a sum, whose direction is that of its mean.

        Args:
            output: of the model.

        Returns:
            A scalar.
        """
        batch = self._batch
        assert batch is not None
        if self.task != "causal":
            return label_loss(output.logits.float(), batch.labels, self.task, self.label_smoothing)
        rows, columns = batch.where
        targets, rules = batch.input_ids[rows, columns], Rules(label_smoothing=self.label_smoothing)
        each = token_losses(output.logits[before(batch)], targets, rules)
        return (each * batch.weights[rows, columns]).sum()
