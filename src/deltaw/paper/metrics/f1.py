"""F1 of labels."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.errors import ConfigError
from deltaw.paper.metrics.accuracy import labels
from deltaw.paper.metrics.base import References, Result, one_of, packages

__all__ = ["f1"]


def f1(hypotheses: Sequence[str], references: References, *, average: str = "binary", positive: str = "1") -> Result:
    """F1, between 0 and 1.

    Args:
        hypotheses: the labels that are judged, compared as text.
        references: the right one for each.
        average: ``binary``: F1 of the positive label (GLUE's MRPC and QQP); ``macro``: the mean over all labels;
            ``micro``: of all decisions together.
        positive: the positive label of ``binary``.

    Returns:
        The value; of ``binary`` with precision and recall, else with the F1 of every label.

    Raises:
        ConfigError: if ``binary`` is asked for and there are more than two labels, or none of them is positive.

    Source:
        Wang et al. 2019 (GLUE), arXiv:1804.07461, table 1.

    Example:
        >>> f1(["1", "1", "0"], [["1"], ["0"], ["0"]]).value  # precision 1/2, recall 1
        0.6666666666666666
    """
    from sklearn.metrics import precision_recall_fscore_support

    one_of("f1", "average", average, ("binary", "macro", "micro"))
    ours, right = labels(hypotheses, references)
    found = sorted({*ours, *right})
    if average == "binary" and (len({*found, str(positive)}) > 2 or str(positive) not in found):
        raise ConfigError(
            "F1 of a positive label needs two labels, one of them positive",
            where="metric f1, options average and positive",
            got=f"labels {', '.join(map(repr, found[:6]))}, positive {str(positive)!r}",
            expected="two labels, or average macro or micro",
            hint="name the positive label, for example positive=equivalent, or use average=macro",
        )
    every = precision_recall_fscore_support(right, ours, labels=found, zero_division=0.0)
    if average == "binary":
        at = found.index(str(positive))
        value, parts = every[2][at], {"precision": float(every[0][at]), "recall": float(every[1][at])}
    else:
        value = precision_recall_fscore_support(right, ours, labels=found, average=average, zero_division=0.0)[2]
        parts = {f"f1_{label}": float(one) for label, one in zip(found, every[2], strict=True)}
    of = f"binary, positive label {str(positive)!r}" if average == "binary" else f"{average} over {len(found)} labels"
    return Result(value=float(value), parts=parts, variant=f"F1, 0 to 1, {of}; {packages('scikit-learn')}")
