"""Pearson and Spearman correlation of numbers (STS-B)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltaw.errors import DataError
from deltaw.paper.metrics.base import References, Result, packages, single

__all__ = ["pearson", "spearman"]


def pearson(hypotheses: Sequence[str], references: References) -> Result:
    """Pearson correlation, -1 to 1.

    Args:
        hypotheses: the numbers that are judged, as text.
        references: the right one for each.

    Returns:
        The value.

    Raises:
        DataError: if something is no number, or one side is constant, which has no correlation.

    Source:
        arXiv:2106.09685, table 2 (STS-B).

    Example:
        >>> round(pearson(["1", "2", "3"], [["2"], ["4"], ["6.0"]]).value, 6)
        1.0
    """
    from scipy.stats import pearsonr

    ours, right = _numbers(hypotheses, references, "pearson")
    return Result(
        value=float(pearsonr(ours, right).statistic), variant=f"Pearson correlation, -1 to 1; {packages('scipy')}"
    )


def spearman(hypotheses: Sequence[str], references: References) -> Result:
    """Spearman correlation of ranks, -1 to 1; equal numbers share their mean rank.

    Args:
        hypotheses: the numbers that are judged, as text.
        references: the right one for each.

    Returns:
        The value.

    Raises:
        DataError: if something is no number, or one side is constant, which has no correlation.

    Source:
        Wang et al. 2019 (GLUE), arXiv:1804.07461, table 1 (STS-B).

    Example:
        >>> round(spearman(["1", "2", "9"], [["2"], ["4"], ["6"]]).value, 6)
        1.0
    """
    from scipy.stats import spearmanr

    ours, right = _numbers(hypotheses, references, "spearman")
    return Result(
        value=float(spearmanr(ours, right).statistic), variant=f"Spearman correlation, -1 to 1; {packages('scipy')}"
    )


def _numbers(hypotheses: Sequence[str], references: References, metric: str) -> tuple[list[float], list[float]]:
    sides = []
    for name, texts in (("hypotheses", hypotheses), ("references", single(references))):
        numbers = [_number(text, f"metric {metric}, {name}, segment {i}") for i, text in enumerate(texts, 1)]
        if len(set(numbers)) == 1:
            raise DataError(
                "numbers that are all equal have no correlation",
                where=f"metric {metric}, {name}",
                got=f"{numbers[0]!r} for each of {len(numbers)}",
                expected="at least two different numbers",
                hint="a model that answers the same to everything has to be reported as such, not as a correlation",
            )
        sides.append(numbers)
    return sides[0], sides[1]


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            "a correlation is between numbers",
            where=where,
            got=repr(text[:60]),
            expected="a finite number",
            hint="labels that are words have accuracy, f1 or matthews",
        )
    return number
