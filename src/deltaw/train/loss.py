"""The loss of a batch as a weighted *sum*; the caller divides by the weight of its whole window.

For language models, only positions whose prediction is trained go through the head: at a vocabulary of 100k the head
is a quarter of a small model's arithmetic and most of its memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.train.batches import Batch

__all__ = ["BatchLoss", "Losses"]


class BatchLoss:
    """Loss of one batch.

    Args:
        total: weighted sum over tokens or rows, a scalar with a graph.
        logits: what was predicted, for metrics: (rows, classes) in classification; None for language models.
    """

    def __init__(self, total: Tensor, logits: Tensor | None = None) -> None:
        self.total, self.logits = total, logits


class Losses:
    """Computes the loss of batches for one model.

    Args:
        model: a causal LM, or a sequence classifier.
        task: ``causal``, ``classification`` or ``regression``.
    """

    def __init__(self, model: nn.Module, task: str) -> None:
        self.model, self.task = model, task
        self.note = "every row has one label"
        self._split: tuple[nn.Module, nn.Module] | None = None
        if task == "causal":
            self._split, self.note = find_split(model)

    def verify(self, batch: Batch) -> None:
        """Compare the short way through the head with the model's own logits, and leave it if they differ.

        Args:
            batch: any batch, on the model's device.
        """
        if self._split is None:
            return
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                reason = self._difference(batch)
        finally:
            self.model.train(was_training)
        if reason:
            self._split, self.note = None, reason

    def _difference(self, batch: Batch) -> str:
        """Why the short way cannot be used, or ""."""
        assert self._split is not None
        full = self._forward(self.model, batch).logits[before(batch)].float()
        short = self._short_logits(self._split, batch).float()
        if full.shape != short.shape:
            return f"masked tokens go through the head too: its logits have shape {tuple(full.shape)}"
        scale = full.abs().max().clamp_min(1e-6)
        error = float((full - short).abs().max() / scale)
        bound = 1e-4 if next(self.model.parameters()).dtype == torch.float32 else 3e-2
        if error <= bound:
            return ""
        return f"masked tokens go through the head too: the model changes its logits after the head (by {error:.1e})"

    def __call__(self, batch: Batch) -> BatchLoss:
        """Run the model and sum the loss of the batch.

        Args:
            batch: on the model's device.

        Returns:
            The weighted sum, and logits where metrics need them.
        """
        if self.task != "causal":
            logits = self._forward(self.model, batch).logits.float()
            return BatchLoss(label_loss(logits, batch.labels, self.task), logits.detach())
        rows, columns = batch.where
        losses = F.cross_entropy(self.token_logits(batch), batch.input_ids[rows, columns], reduction="none")
        return BatchLoss((losses * batch.weights[rows, columns]).sum())

    def token_logits(self, batch: Batch) -> Tensor:
        """Run a language model and keep what predicts the trained tokens.

        Args:
            batch: on the model's device.

        Returns:
            Logits in float32, shape (K, V), in the order of ``batch.where``.
        """
        if self._split is None:
            logits: Tensor = self._forward(self.model, batch).logits[before(batch)]
        else:
            logits = self._short_logits(self._split, batch)
        return logits.float()

    def _forward(self, module: nn.Module, batch: Batch) -> Any:
        inputs = batch.inputs() | {"return_dict": True}
        if self.task == "causal":
            inputs["use_cache"] = False
        return module(**inputs)

    def _short_logits(self, split: tuple[nn.Module, nn.Module], batch: Batch) -> Tensor:
        body, head = split
        hidden = self._forward(body, batch).last_hidden_state
        logits: Tensor = head(hidden[before(batch)])
        return logits


def before(batch: Batch) -> tuple[Tensor, Tensor]:
    """Find the positions that predict the trained tokens: one to the left of each.

    Args:
        batch: a batch of language modelling.

    Returns:
        Rows and columns, each of shape (K,).
    """
    rows, columns = batch.where
    return rows, columns - 1


def find_split(model: nn.Module) -> tuple[tuple[nn.Module, nn.Module] | None, str]:
    """Find a body that gives hidden states and a plain head that turns them into logits.

    Args:
        model: a causal LM of transformers' shape.

    Returns:
        (body, head) or None, and one line that says which and why.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = getattr(model, "base_model", None)
    if not isinstance(head, nn.Linear):
        return None, f"masked tokens go through the head too: it is no plain linear layer ({type(head).__name__})"
    if not isinstance(body, nn.Module) or body is model or any(module is head for module in body.modules()):
        return None, "masked tokens go through the head too: the model has no separate body"
    return (body, head), "only trained tokens go through the head"


def label_loss(logits: Tensor, labels: Tensor | None, task: str) -> Tensor:
    """Sum of the loss over labeled rows.

    Args:
        logits: shape (N, classes), or (N, 1) for regression.
        labels: shape (N,).
        task: ``classification`` or ``regression``.

    Returns:
        Cross entropy in nats, or squared error; a scalar sum.
    """
    assert labels is not None
    if task == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")
