"""Scoring a model on examples: loss, perplexity and accuracy, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.train.batches import Batch, collate, eval_batches
from deltaw.train.evaluate import label_metrics
from deltaw.train.loss import Losses

if TYPE_CHECKING:
    from deltaw.ship.opening import Opened

__all__ = ["RowScore", "Score", "score"]


@dataclass(frozen=True, kw_only=True)
class RowScore:
    """One example.

    Args:
        row: index of its source row.
        loss: weighted mean over its trained tokens in nats; cross entropy or squared error of its label.
        weight: sum of its token weights; 1 for labels.
        tokens: trained tokens; 1 for labels.
        correct: trained tokens that are the model's likeliest; for classes 1 or 0; 0 in regression.
        predicted: class name or value; None for language models.
        label: class name or value of the row; None for language models.
    """

    row: int
    loss: float
    weight: float
    tokens: int
    correct: int
    predicted: str | float | None = None
    label: str | float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's score.

    Args:
        metrics: name -> value; loss first.
        rows: one entry per example, in the order of the source.
    """

    metrics: dict[str, float]
    rows: tuple[RowScore, ...]


@torch.no_grad()
def score(opened: Opened, examples: Any, *, batch_tokens: int = 4096) -> Score:
    """Score a model on every example.

    Args:
        opened: the model; what is active is what is scored.
        examples: from ``deltaw.train.data.build``.
        batch_tokens: tokens in a batch at most, padding included.

    Returns:
        Loss, perplexity, token accuracy and the share of examples answered exactly; or the metrics of labels.
    """
    model = opened.model
    device = next(model.parameters()).device
    losses = Losses(model, opened.task)
    rows: list[RowScore] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for indices in eval_batches([int(length) for length in examples.lengths], None, batch_tokens, None):
        chosen = [examples[index] for index in indices]
        batch = collate(chosen, [example.row for example in chosen], opened.tokenizer.pad_token_id).to(device)
        if opened.task == "causal":
            losses.verify(batch)
            rows += _text_rows(losses, batch)
        else:
            found = losses(batch).logits
            assert found is not None and batch.labels is not None
            rows += _label_rows(found, batch, opened)
            logits.append(found.cpu())
            labels.append(batch.labels.cpu())
    weight = sum(row.weight for row in rows)
    loss = math.fsum(row.loss * row.weight for row in rows) / weight if weight else math.nan
    metrics = {"loss": loss}
    if logits:
        metrics |= label_metrics(torch.cat(logits), torch.cat(labels), opened.task)
    else:
        metrics["perplexity"] = math.exp(min(loss, 700.0))
        metrics["token_accuracy"] = sum(row.correct for row in rows) / max(sum(row.tokens for row in rows), 1)
        metrics["exact_answers"] = sum(row.correct == row.tokens for row in rows) / max(len(rows), 1)
    return Score(metrics=metrics, rows=tuple(sorted(rows, key=lambda row: row.row)))


def _text_rows(losses: Losses, batch: Batch) -> list[RowScore]:
    rows, columns = batch.where
    targets, weights = batch.input_ids[rows, columns], batch.weights[rows, columns].double()
    logits = losses.token_logits(batch)
    each = F.cross_entropy(logits, targets, reduction="none").double()
    right = (logits.argmax(-1) == targets).long()
    size = len(batch.rows)

    def sums(values: Tensor) -> list[Any]:
        return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, rows, values).tolist()

    total, weight, correct, count = sums(each * weights), sums(weights), sums(right), sums(torch.ones_like(right))
    return [
        RowScore(
            row=batch.rows[i],
            loss=total[i] / weight[i] if weight[i] else 0.0,
            weight=weight[i],
            tokens=count[i],
            correct=correct[i],
        )
        for i in range(size)
    ]


def _label_rows(logits: Tensor, batch: Batch, opened: Opened) -> list[RowScore]:
    assert batch.labels is not None
    if opened.task == "regression":
        values, truth = logits.squeeze(-1).double(), batch.labels.double()
        each = (values - truth).square()
        pairs: Sequence[tuple[float, float]] = list(zip(values.tolist(), truth.tolist(), strict=True))
        return [
            RowScore(row=row, loss=loss, weight=1.0, tokens=1, correct=0, predicted=said, label=true)
            for row, loss, (said, true) in zip(batch.rows, each.tolist(), pairs, strict=True)
        ]
    each = F.cross_entropy(logits, batch.labels, reduction="none")
    classes = zip(logits.argmax(-1).tolist(), batch.labels.tolist(), strict=True)
    names = opened.labels
    return [
        RowScore(
            row=row,
            loss=loss,
            weight=1.0,
            tokens=1,
            correct=int(said == true),
            predicted=names[said],
            label=names[true],
        )
        for row, loss, (said, true) in zip(batch.rows, each.tolist(), classes, strict=True)
    ]
