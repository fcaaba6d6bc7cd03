"""Matthews correlation of labels (CoLA)."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.paper.metrics.accuracy import labels
from deltaw.paper.metrics.base import References, Result, packages

__all__ = ["matthews"]


def matthews(hypotheses: Sequence[str], references: References) -> Result:
    """Matthews correlation coefficient, -1 to 1.

    Args:
        hypotheses: the labels that are judged, compared as text.
        references: the right one for each.

    Returns:
        The value; 0, with a note, where one side has one label only.

    Source:
        arXiv:2106.09685, table 2 (CoLA); Warstadt et al. 2019.

    Example:
        >>> matthews(["1", "0", "1"], [["1"], ["0"], ["1"]]).value
        1.0
    """
    from sklearn.metrics import matthews_corrcoef

    ours, right = labels(hypotheses, references)
    # With one class in all, scikit-learn warns about its confusion matrix; the value is 0 by definition.
    constant = [name for name, side in (("hypotheses", ours), ("references", right)) if len(set(side)) == 1]
    return Result(
        value=0.0 if constant else float(matthews_corrcoef(right, ours)),
        variant=f"Matthews correlation, -1 to 1, labels as text; {packages('scikit-learn')}",
        notes=tuple(f"all {name} have one label: the correlation is 0 by definition" for name in constant),
    )
