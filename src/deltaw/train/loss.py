"""The loss of a batch as a weighted *sum*; the caller divides by the weight of its whole window.

For language models, only positions whose prediction is trained go through the head: at a vocabulary of 100k the head
is a quarter of a small model's arithmetic and most of its memory. They go in chunks (``deltaw.linear_cross_entropy``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.baselines import completion_starts
from deltaw.chunked import Rules, token_losses
from deltaw.errors import ConfigError
from deltaw.head import linear_cross_entropy
from deltaw.head_module import graph_leaves, trained_by
from deltaw.train.baseline import starts_of
from deltaw.train.batches import Batch
from deltaw.train.cutoff import Cutoff
from deltaw.train.rdrop import RDrop
from deltaw.train.readout import readouts

__all__ = ["BatchLoss", "Losses"]

# As large as logits of trained models get; Gemma's cap of 30 changes these by a quarter.
LARGE_LOGITS = 50.0


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
        label_smoothing: share of each target that is spread over the vocabulary or the classes, while the model is in
            training mode; in eval mode the loss is the plain one.
        rdrop: what a second pass with other dropout costs in training mode; None makes one pass.
        cutoff: what is taken away from the input in training mode: of the second pass, where there is one.

    Raises:
        ConfigError: for label smoothing of values, which have no classes.
    """

    def __init__(
        self, model: nn.Module, task: str, label_smoothing: float = 0.0, *, rdrop: RDrop | None = None,
        cutoff: Cutoff | None = None,
    ) -> None:  # fmt: skip
        self.model, self.task, self.label_smoothing = model, task, label_smoothing
        self.rdrop, self.cutoff = rdrop, cutoff
        self.note = "every row has one label"
        self._split: tuple[nn.Module, nn.Module] | None = None
        self._forms, self._verified = readouts(model), False
        if task == "causal":
            self._split, self.note = find_split(model)
        elif task == "regression" and label_smoothing:
            raise ConfigError(
                "values cannot be smoothed",
                where="--label-smoothing or [optim] label_smoothing",
                got=f"{label_smoothing:g} with rows that carry values",
                expected="tokens or classes to spread a target over",
                hint="drop --label-smoothing",
            )

    @property
    def chunked(self) -> bool:
        """Whether the head runs on trained tokens only, a chunk at a time; else all logits are in memory at once."""
        return self._split is not None and self.rdrop is None

    def verify(self, batch: Batch) -> None:
        """Compare the short way through the head with the model's own logits, once, and leave it if they differ.

        Args:
            batch: any batch, on the model's device.
        """
        if self._split is None or self._verified:
            return
        self._verified = True
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                hidden = self._hidden(self._split[0], batch)
                reason = self._settle(self._split[1], hidden, batch) or _stranger(self._split[1], hidden[:1])
        finally:
            self.model.train(was_training)
        if reason:
            self._split, self.note = None, f"masked tokens go through the head too: {reason}"

    def _settle(self, head: nn.Module, hidden: Tensor, batch: Batch) -> str:
        """Keep the first readout that gives the model's own logits; why none does, or ""."""
        raw = head(hidden).float()
        full = self._forward(self.model, batch).logits[before(batch)].float()
        if full.shape != raw.shape:
            return f"its logits have shape {tuple(full.shape)}"
        # a cap hardly shows on the logits of a small model, so they are compared once more at the size of a large one's
        factor, calls = LARGE_LOGITS / float(raw.abs().max().clamp_min(1e-6)), []

        def enlarge(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            calls.append(module)
            return out * factor

        hook = head.register_forward_hook(enlarge)
        try:
            large = self._forward(self.model, batch).logits[before(batch)].float()
        finally:
            hook.remove()
        bound = 1e-4 if next(self.model.parameters()).dtype == torch.float32 else 3e-2
        errors = []
        for form in self._forms:
            pairs = [(full, form.logits(raw)), *([(large, form.logits(raw * factor))] if calls else [])]
            errors.append(max(float((own - ours).abs().max() / own.abs().max().clamp_min(1e-6)) for own, ours in pairs))
            if errors[-1] <= bound:
                self._forms = [form]
                return ""
        return f"the model changes its logits after the head (by {min(errors):.1e})"

    def __call__(self, batch: Batch) -> BatchLoss:
        """Run the model and sum the loss of the batch.

        Args:
            batch: on the model's device.

        Returns:
            The weighted sum, and logits where metrics need them.
        """
        if not self.model.training:
            return self._once(batch, 0.0)
        if self.rdrop is not None:
            return self._twice(batch, self.rdrop)
        with self._cut(batch):
            return self._once(batch, self.label_smoothing)

    def _cut(self, batch: Batch, first: int = 0) -> AbstractContextManager[None]:
        return nullcontext() if self.cutoff is None else self.cutoff.applied(self.model, batch, first)

    def _twice(self, batch: Batch, rdrop: RDrop) -> BatchLoss:
        """The losses of two passes and their divergence; the passes are the halves of one batch."""
        both = batch.doubled()
        with self._cut(both, first=len(batch.input_ids)):
            logits = (
                self.token_logits(both) if self.task == "causal" else self._forward(self.model, both).logits.float()
            )
        first, second = logits.chunk(2)
        apart = rdrop(first, second)
        if self.task != "causal":
            own = label_loss(logits, both.labels, self.task, self.label_smoothing)
            return BatchLoss(own + apart.sum(), first.detach())
        (rows, columns), weights = both.where, both.weights[tuple(batch.where)]
        losses = token_losses(logits, both.input_ids[rows, columns], Rules(label_smoothing=self.label_smoothing))
        return BatchLoss(((losses.view(2, -1).sum(0) + apart) * weights).sum())

    def _once(self, batch: Batch, smoothing: float) -> BatchLoss:
        """One plain pass."""
        if self.task != "causal":
            logits = self._forward(self.model, batch).logits.float()
            return BatchLoss(label_loss(logits, batch.labels, self.task, smoothing), logits.detach())
        rows, columns = batch.where
        targets, weights = batch.input_ids[rows, columns], batch.weights[rows, columns]
        if self._split is None:
            losses = token_losses(self.token_logits(batch), targets, Rules(label_smoothing=smoothing))
            return BatchLoss((losses * weights).sum())
        body, head = self._split
        hidden = self._hidden(body, batch)
        form = self._forms[0]
        # every token of ``where`` has a weight: none is looked for
        total = linear_cross_entropy(
            hidden, head, targets, weights=weights, label_smoothing=smoothing, logit_scale=form.logit_scale,
            soft_cap=form.soft_cap, ignore_index=None,
        )  # fmt: skip
        return BatchLoss(total)

    def token_logits(self, batch: Batch) -> Tensor:
        """Run a language model and keep what predicts the trained tokens.

        Args:
            batch: on the model's device.

        Returns:
            Logits in float32, shape (K, V), in the order of ``batch.where``.
        """
        if self._split is None:
            logits: Tensor = self._forward(self.model, batch).logits[before(batch)]
            return logits.float()
        body, head = self._split
        return self._forms[0].logits(head(self._hidden(body, batch)).float())

    def _forward(self, module: nn.Module, batch: Batch) -> Any:
        inputs = batch.inputs() | {"return_dict": True}
        if self.task != "causal":
            return module(**inputs)
        inputs["use_cache"] = False
        with completion_starts(starts_of(self.model, batch)):
            return module(**inputs)

    def _hidden(self, body: nn.Module, batch: Batch) -> Tensor:
        hidden: Tensor = self._forward(body, batch).last_hidden_state[before(batch)]
        return hidden


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
    return (body, head), "only trained tokens go through the head, a chunk at a time"


def _stranger(head: nn.Module, hidden: Tensor) -> str:
    """Why a head cannot be walked in chunks: it trains what is not its own; or ""."""
    own = trained_by(head)
    with torch.enable_grad():
        leaves = graph_leaves(head(hidden))
    if all(any(leaf is parameter for parameter in own) for leaf in leaves):
        return ""
    return "its head trains tensors that are not among its parameters"


def label_loss(logits: Tensor, labels: Tensor | None, task: str, label_smoothing: float = 0.0) -> Tensor:
    """Sum of the loss over labeled rows.

    Args:
        logits: shape (N, classes), or (N, 1) for regression.
        labels: shape (N,).
        task: ``classification`` or ``regression``.
        label_smoothing: share of each class label that is spread over the classes.

    Returns:
        Cross entropy in nats, or squared error; a scalar sum.
    """
    assert labels is not None
    if task == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
