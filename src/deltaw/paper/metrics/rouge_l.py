"""ROUGE-L as the COCO scripts compute it: best precision and best recall over the references, beta 1.2.

rouge-score has neither the beta nor that rule, so this is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.errors import ConfigError
from deltaw.paper.metrics.base import References, Result
from deltaw.paper.metrics.ptb import PTB, ptb_tokens

__all__ = ["rouge_l"]


def rouge_l(hypotheses: Sequence[str], references: References, *, beta: float = 1.2) -> Result:
    """ROUGE-L, between 0 and 1: the mean over segments.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        beta: how much recall weighs against precision.

    Returns:
        The value and that of every segment.

    Raises:
        ConfigError: if ``beta`` is not a positive number.

    Source:
        Lin 2004; tylin/coco-caption, pycocoevalcap/rouge/rouge.py.

    Example:
        >>> rouge_l(["a b"], [["a b c d", "a"]]).value  # precision 1 from the first, recall 1 from the second
        1.0
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < float("inf"):
        raise ConfigError(
            "an option of a metric has no such value",
            where="metric rouge_l, option beta",
            got=repr(beta),
            expected="a number above 0",
            hint="the COCO scripts use 1.2",
        )
    segments = []
    for hypothesis, group in zip(hypotheses, references, strict=True):
        words = ptb_tokens(hypothesis)
        texts = [ptb_tokens(text) for text in group]
        common = [longest(words, text) for text in texts]
        precision = max(common) / len(words) if words else 0.0
        recall = max(shared / len(text) if text else 0.0 for shared, text in zip(common, texts, strict=True))
        both = precision and recall
        segments.append((1 + beta**2) * precision * recall / (recall + beta**2 * precision) if both else 0.0)
    return Result(
        value=sum(segments) / len(segments),
        segments=tuple(segments),
        variant=f"ROUGE-L, COCO form, beta {beta}, {PTB}; deltaw",
    )


def longest(one: Sequence[str], other: Sequence[str]) -> int:
    """Measure the longest common subsequence.

    Args:
        one: tokens.
        other: tokens.

    Returns:
        Its length.

    Example:
        >>> longest("a b c d".split(), "a c x d".split())
        3
    """
    before = [0] * (len(other) + 1)
    for token in one:
        row = [0]
        for j, word in enumerate(other):
            row.append(before[j] + 1 if token == word else max(before[j + 1], row[j]))
        before = row
    return before[-1]
