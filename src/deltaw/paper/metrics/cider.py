"""CIDEr as the COCO scripts compute it, and plain CIDEr beside it.

What the scripts call CIDEr is CIDEr-D without its stemming: clipped counts, and a Gaussian of the difference of lengths
with sigma 6. They take a text's length as the number of its bigrams, which changes no difference of two lengths unless
a text has no words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from deltaw.errors import DataError
from deltaw.paper.metrics.base import References, Result, one_of
from deltaw.paper.metrics.ptb import PTB, ptb_tokens
from deltaw.paper.metrics.tokens import Ngrams, ngrams

__all__ = ["cider"]

ORDER = 4
SIGMA = 6.0
SCALE = 10.0

Vector = dict[tuple[str, ...], float]


def cider(
    hypotheses: Sequence[str],
    references: References,
    *,
    form: str = "coco",
    empty_references: str = "dropped",
) -> Result:
    """CIDEr over a corpus, 0 to 10; document frequencies come from the references, a group being a document.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        form: ``coco`` (CIDEr-D: clipping, sigma 6) or ``plain`` (the cosine of the original definition).
        empty_references: ``dropped``, or ``counted`` as references that are like nothing.

    Returns:
        The mean over segments and the value of every segment.

    Raises:
        DataError: if there is one segment only: every n-gram then stands in every document and weighs nothing.

    Source:
        Vedantam et al. 2015, eqs. 1-3 and 5; tylin/coco-caption, pycocoevalcap/cider/cider_scorer.py.

    Example:
        >>> texts = ["a red cat sat there", "one blue dog ran off"]
        >>> round(cider(texts, [[text] for text in texts]).value, 4)
        10.0
    """
    one_of("cider", "form", form, ("coco", "plain"))
    if len(hypotheses) < 2:
        raise DataError(
            "CIDEr of one segment is 0 whatever it says",
            where="metric cider",
            got="1 segment",
            expected="two or more, since n-grams weigh by the number of segments they are absent from",
            hint="score the whole set at once; the score of every segment is part of the result",
        )
    cooked = [[_counts(text) for text in group] for group in references]
    frequency: Ngrams = Counter()
    for group in cooked:
        frequency.update({ngram for counts in group for count in counts for ngram in count})
    log_documents = math.log(len(cooked))
    segments = []
    for text, group in zip(hypotheses, cooked, strict=True):
        ours = _weighted(_counts(text), frequency, log_documents)
        likeness = 0.0
        for counts in group:
            likeness += _likeness(ours, _weighted(counts, frequency, log_documents), clipped=form == "coco")
        segments.append(SCALE * likeness / len(group))
    rules = f"CIDEr-D: clipped, sigma {SIGMA:g}, no stemming" if form == "coco" else "cosine, no sigma, no stemming"
    return Result(
        value=sum(segments) / len(segments),
        segments=tuple(segments),
        variant=f"CIDEr, {form} form ({rules}), 0 to 10, document frequencies of these references, {PTB}, "
        f"empty references {empty_references}; deltaw",
    )


def _counts(text: str) -> list[Ngrams]:
    tokens = ptb_tokens(text)
    return [ngrams(tokens, n + 1) for n in range(ORDER)]


def _weighted(counts: list[Ngrams], frequency: Ngrams, log_documents: float) -> tuple[list[Vector], int]:
    """The tf-idf vectors by order, and the length."""
    vectors = [
        {ngram: count * (log_documents - math.log(max(1, frequency[ngram]))) for ngram, count in found.items()}
        for found in counts
    ]
    return vectors, sum(counts[1].values())


def _likeness(one: tuple[list[Vector], int], other: tuple[list[Vector], int], *, clipped: bool) -> float:
    """The mean over orders of the cosine of two texts."""
    total = 0.0
    for ours, theirs in zip(one[0], other[0], strict=True):
        norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        if norms:
            shared = [(weight, theirs[ngram]) for ngram, weight in ours.items() if ngram in theirs]
            total += sum((min(pair) if clipped else pair[0]) * pair[1] for pair in shared) / norms
    gaussian = math.exp(-((one[1] - other[1]) ** 2) / (2 * SIGMA**2)) if clipped else 1.0
    return total * gaussian / ORDER
