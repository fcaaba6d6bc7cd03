"""Accuracy: the share of labels that are right."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, packages, single

__all__ = ["accuracy", "labels"]


def labels(hypotheses: Sequence[str], references: References) -> tuple[list[str], list[str]]:
    """Strip the blanks around labels.

    Args:
        hypotheses: the labels that are judged.
        references: the right one for each.

    Returns:
        Both.
    """
    return [text.strip() for text in hypotheses], [text.strip() for text in single(references)]


def accuracy(hypotheses: Sequence[str], references: References) -> Result:
    """Accuracy, between 0 and 1.

    Args:
        hypotheses: the labels that are judged, compared as text.
        references: the right one for each.

    Returns:
        The value, and 1 or 0 for every segment.

    Source:
        arXiv:2106.09685, table 2.

    Example:
        >>> accuracy(["1", "0"], [["1"], ["1"]]).value
        0.5
    """
    from sklearn.metrics import accuracy_score

    ours, right = labels(hypotheses, references)
    return Result(
        value=float(accuracy_score(right, ours)),
        segments=tuple(float(one == other) for one, other in zip(ours, right, strict=True)),
        variant=f"accuracy, 0 to 1, labels as text; {packages('scikit-learn')}",
    )
