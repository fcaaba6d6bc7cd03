"""Which of a run's validations is the best: what is measured, what decides, and in which direction."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.errors import ConfigError, nearest

__all__ = ["DECIDERS", "LOWER", "beats", "check_decider", "lower_is_better", "measured", "task_metric"]

LOWER = ("loss", "perplexity", "ter")
"""Metrics of which less is better, by the last part of their name."""

DECIDERS = ("loss", "perplexity", "accuracy", "f1", "matthews", "pearson", "spearman")
"""What validations of ``deltaw train`` can measure."""

_LABELED = {
    "cola": "matthews", "stsb": "pearson",
    **dict.fromkeys(("sst2", "mrpc", "qqp", "mnli", "qnli", "rte"), "accuracy"),
}  # fmt: skip


def task_metric(task: str) -> str | None:
    """Name the metric that the paper reports for a task, where a validation measures it.

    Args:
        task: as in ``--task``; a subset (``mnli_9k``, ``mnli_1k``) has its whole's.

    Returns:
        The metric; None for tasks that are judged by decoding, and for what is no task.

    Source:
        Hu et al. 2021, arXiv:2106.09685, Table 2.

    Example:
        >>> task_metric("cola"), task_metric("mnli_9k"), task_metric("e2e")
        ('matthews', 'accuracy', None)
    """
    return _LABELED.get(task.partition("_")[0])


def lower_is_better(metric: str) -> bool:
    """Say in which direction a metric is better.

    Args:
        metric: its name, maybe with dots.

    Returns:
        Whether less of it is better.

    Example:
        >>> lower_is_better("e2e.ter"), lower_is_better("accuracy")
        (True, False)
    """
    return metric.rpartition(".")[2].lower() in LOWER


def beats(value: float, best: float | None, metric: str) -> bool:
    """Say whether a measurement is better than the best so far.

    Args:
        value: what was measured.
        best: the best before, or None.
        metric: of which.

    Returns:
        Whether it is; of equal ones the first stays the best.

    Example:
        >>> beats(0.5, 0.6, "loss"), beats(0.5, 0.6, "accuracy"), beats(0.5, 0.5, "accuracy")
        (True, False, False)
    """
    if best is None:
        return True
    return value < best if lower_is_better(metric) else value > best


def measured(task: str, classes: int) -> tuple[str, ...]:
    """List what a validation measures.

    Args:
        task: ``causal``, ``classification`` or ``regression``.
        classes: number of labels.

    Returns:
        Names, in the order of ``evaluate``.
    """
    if task == "causal":
        return ("loss", "perplexity")
    if task == "regression":
        return ("loss", "pearson", "spearman")
    return ("loss", "accuracy", *(("f1",) if classes == 2 else ()), "matthews")


def check_decider(metric: str, task: str, labels: Sequence[str], validated: bool) -> None:
    """Refuse a metric that no validation of the run measures.

    Args:
        metric: as in ``--best-by``.
        task: ``causal``, ``classification`` or ``regression``.
        labels: class names.
        validated: whether there are validation rows.

    Raises:
        ConfigError: naming what is measured.
    """
    if metric == "loss":
        return
    known = measured(task, len(labels)) if validated else ()
    if metric in known:
        return
    kind = f"{task} with {len(labels)} labels" if labels else task
    raise ConfigError(
        f"no validation of this run measures {metric}",
        where="--best-by or [run] best_by",
        got=repr(metric),
        expected=f"one of {', '.join(known)} ({kind})" if known else "validation rows to measure it on",
        hint=f"closest: {nearest(metric, known, 1)}" if known else "add --valid FILE, or drop --best-by",
    )
