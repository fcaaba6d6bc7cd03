"""Validation: the token-weighted loss, and what a task has beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaw.train.job import Examples, Job

__all__ = ["evaluate", "label_metrics"]


def evaluate(job: Job, examples: Examples, batches: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """Measure a model on examples, in eval mode, drawing from no random stream.

    Args:
        job: the model and its loss.
        examples: what to measure on.
        batches: example indices, batch by batch.

    Returns:
        ``loss`` (per token in nats, per row for labels) and ``perplexity``, or the label metrics.
    """
    total, weight = 0.0, 0.0
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    was_training = job.model.training
    job.model.eval()
    try:
        with torch.no_grad():
            for rows in batches:
                batch = job.batch(rows, examples)
                loss = job.losses(batch.to(job.device))
                total += float(loss.total)
                weight += batch.weight
                if loss.logits is not None and batch.labels is not None:
                    logits.append(loss.logits.float().cpu())
                    labels.append(batch.labels)
    finally:
        job.model.train(was_training)
    mean = total / weight if weight else math.nan
    if not logits:
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}
    return {"loss": mean, **label_metrics(torch.cat(logits), torch.cat(labels), job.task)}


def label_metrics(logits: Tensor, labels: Tensor, task: str) -> dict[str, float]:
    """Score predictions the way GLUE does.

    Args:
        logits: shape (N, classes), or (N, 1) for regression.
        labels: shape (N,).
        task: ``classification`` or ``regression``.

    Returns:
        ``accuracy``, ``matthews`` and, for two classes, ``f1`` of class 1; or ``pearson`` and ``spearman``.

    Example:
        >>> label_metrics(torch.eye(2), torch.tensor([0, 1]), "classification")["accuracy"]
        1.0
    """
    if task == "regression":
        predicted = logits.squeeze(-1).double()
        truth = labels.double()
        return {
            "pearson": _correlation(predicted, truth),
            "spearman": _correlation(_ranks(predicted), _ranks(truth)),
        }
    predicted = logits.argmax(dim=-1)
    metrics = {"accuracy": float((predicted == labels).double().mean())}
    if logits.shape[-1] == 2:
        hits = float(((predicted == 1) & (labels == 1)).sum())
        said, true = float((predicted == 1).sum()), float((labels == 1).sum())
        metrics["f1"] = 2 * hits / (said + true) if said + true else 0.0
    metrics["matthews"] = _matthews(predicted, labels, logits.shape[-1])
    return metrics


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r; 0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks with ties sharing their mean, as Spearman's rho wants them."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[group]
    return ranks


def _matthews(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Matthews' coefficient in its form for any number of classes (Gorodkin 2004, R_K)."""
    table = torch.bincount(labels * classes + predicted, minlength=classes * classes).double().view(classes, classes)
    count, hits = float(table.sum()), float(table.diagonal().sum())
    true, said = table.sum(1), table.sum(0)
    cover = math.sqrt((count**2 - float(said @ said)) * (count**2 - float(true @ true)))
    return (hits * count - float(true @ said)) / cover if cover else 0.0
