"""BLEU as the E2E scripts report it: mteval-v13a's tokens and rules, in the arithmetic of pymteval.

sacrebleu counts matches and lengths. What is pymteval's is applied to the counts here: matches of an order are never
fewer than 1e-15, so that the score is never 0, and the value lies between 0 and 1. One thing is not taken over unless
it is asked for: pymteval adds (words - n + 1) to an order's total also where that is negative, which lets segments
shorter than n raise the score, even above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, one_of, packages, transposed
from deltaw.paper.metrics.tokens import TOTALS, mteval_tokens, short_segments, totals_of

__all__ = ["bleu"]

ORDER = 4
LEAST_HITS = 1e-15
LEAST_TOTAL = 1e-9


def bleu(
    hypotheses: Sequence[str],
    references: References,
    *,
    lowercase: bool = True,
    reference_length: str = "closest",
    totals: str = "ngrams",
    empty_references: str = "dropped",
) -> Result:
    """BLEU-4 over a corpus, between 0 and 1.

    Args:
        hypotheses: the texts that are judged, not tokenized.
        references: one group for every hypothesis.
        lowercase: fold the case, as mteval does unless told otherwise.
        reference_length: which reference's length a segment is held against: ``closest`` (the shorter one of two
            that are as close, mteval-v13a) or ``shortest`` (the older rule of mteval-v11b).
        totals: what matches are divided by: ``ngrams``, as many as there are, or ``pymteval``, see above.
        empty_references: ``dropped``, or ``counted`` as references of length 0.

    Returns:
        The value with its precisions, brevity penalty and lengths.

    Source:
        Papineni et al. 2002; tuetschek/e2e-metrics, metrics/pymteval.py.

    Example:
        >>> round(bleu(["a b c d e"], [["a b c d f", "a b c d e g h"]]).value, 4)
        1.0
    """
    from sacrebleu.metrics import BLEU

    one_of("bleu", "lowercase", lowercase, (True, False))
    one_of("bleu", "totals", totals, TOTALS)
    one_of("bleu", "reference_length", reference_length, ("closest", "shortest"))
    counter = BLEU(lowercase=lowercase, tokenize="13a", smooth_method="none", force=True)
    found = counter.corpus_score(list(hypotheses), transposed(references))
    expected = float(found.ref_len)
    if reference_length == "shortest":
        expected = sum(min(len(mteval_tokens(text, lowercase)) for text in group) for group in references)
    lengths = [len(mteval_tokens(text, lowercase)) for text in hypotheses]
    divisors = totals_of(lengths, ORDER, totals)
    precisions = [
        max(float(hits), LEAST_HITS) / max(float(total), LEAST_TOTAL)
        for hits, total in zip(found.counts, divisors, strict=True)
    ]
    words, case = divisors[0], "lower case" if lowercase else "cased"
    penalty = math.exp(1 - expected / (words or 1e-5)) if words <= expected else 1.0
    return Result(
        value=penalty * math.exp(sum(math.log(precision) for precision in precisions) / ORDER),
        parts={
            **{f"precision_{n + 1}": precision for n, precision in enumerate(precisions)},
            "brevity_penalty": penalty,
            "hypothesis_length": float(words),
            "reference_length": float(expected),
        },
        variant=f"BLEU-4, 0 to 1, mteval-v13a as in pymteval, totals {totals}, 13a tokens, {case}, {reference_length} "
        f"reference length, empty references {empty_references}; {packages('sacrebleu')}",
        notes=short_segments(lengths, ORDER, totals),
    )
