"""ROUGE-1, ROUGE-2 and ROUGE-L as Google's rouge-score computes them (SAMSum): F, the best reference, then the mean."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, one_of, packages

__all__ = ["rouge1", "rouge2", "rougeL"]


def rouge1(hypotheses: Sequence[str], references: References, *, stemmer: bool = True) -> Result:
    """ROUGE-1 F, between 0 and 1.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        stemmer: compare Porter stems of words longer than three letters.

    Returns:
        The mean F over segments, with the mean precision and recall of the references that gave it.

    Source:
        Lin 2004; google-research/rouge. The paper does not say which implementation it used.

    Example:
        >>> rouge1(["a b"], [["a c", "a b"]]).value
        1.0
    """
    return _rouge("rouge1", hypotheses, references, stemmer)


def rouge2(hypotheses: Sequence[str], references: References, *, stemmer: bool = True) -> Result:
    """ROUGE-2 F, between 0 and 1.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        stemmer: compare Porter stems of words longer than three letters.

    Returns:
        As ``rouge1`` does.

    Source:
        As ``rouge1``.

    Example:
        >>> rouge2(["a b c"], [["a b d"]]).value
        0.5
    """
    return _rouge("rouge2", hypotheses, references, stemmer)


def rougeL(hypotheses: Sequence[str], references: References, *, stemmer: bool = True) -> Result:
    """ROUGE-L F (whole texts), between 0 and 1.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        stemmer: compare Porter stems of words longer than three letters.

    Returns:
        As ``rouge1`` does.

    Source:
        As ``rouge1``.

    Example:
        >>> rougeL(["a b c d"], [["a c x d"]]).value
        0.75
    """
    return _rouge("rougeL", hypotheses, references, stemmer)


def _rouge(name: str, hypotheses: Sequence[str], references: References, stemmer: bool) -> Result:
    from rouge_score.rouge_scorer import RougeScorer

    one_of(name, "stemmer", stemmer, (True, False))
    scorer = RougeScorer([name], use_stemmer=stemmer)
    found = [scorer.score_multi(group, text)[name] for text, group in zip(hypotheses, references, strict=True)]
    return Result(
        value=sum(item.fmeasure for item in found) / len(found),
        parts={
            "precision": sum(item.precision for item in found) / len(found),
            "recall": sum(item.recall for item in found) / len(found),
        },
        segments=tuple(float(item.fmeasure) for item in found),
        variant=f"{name} F, 0 to 1, {'Porter stems' if stemmer else 'no stemmer'}, best reference by F; "
        f"{packages('rouge-score')}",
    )
