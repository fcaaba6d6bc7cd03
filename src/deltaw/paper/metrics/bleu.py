"""BLEU as the E2E scripts report it: mteval-v13a's tokens and rules, in the arithmetic of pymteval.

sacrebleu counts matches and lengths. Three rules are pymteval's and are applied to the counts here: n-gram totals are
(words - n + 1) summed over all segments, negative for segments shorter than n; a precision is never below 1e-15, so
that the score is never 0; the value lies between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, one_of, packages, transposed
from deltaw.paper.metrics.tokens import mteval_tokens

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
    empty_references: str = "dropped",
) -> Result:
    """BLEU-4 over a corpus, between 0 and 1.

    Args:
        hypotheses: the texts that are judged, not tokenized.
        references: one group for every hypothesis.
        lowercase: fold the case, as mteval does unless told otherwise.
        reference_length: which reference's length a segment is held against: ``closest`` (the shorter one of two
            that are as close, mteval-v13a) or ``shortest`` (the older rule of mteval-v11b).
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
    one_of("bleu", "reference_length", reference_length, ("closest", "shortest"))
    counter = BLEU(lowercase=lowercase, tokenize="13a", smooth_method="none", force=True)
    found = counter.corpus_score(list(hypotheses), transposed(references))
    expected = float(found.ref_len)
    if reference_length == "shortest":
        expected = sum(min(len(mteval_tokens(text, lowercase)) for text in group) for group in references)
    totals = [found.sys_len - n * len(hypotheses) for n in range(ORDER)]
    precisions = [
        max(float(hits), LEAST_HITS) / max(float(total), LEAST_TOTAL)
        for hits, total in zip(found.counts, totals, strict=True)
    ]
    penalty = math.exp(1 - expected / (found.sys_len or 1e-5)) if found.sys_len <= expected else 1.0
    return Result(
        value=penalty * math.exp(sum(math.log(precision) for precision in precisions) / ORDER),
        parts={
            **{f"precision_{n + 1}": precision for n, precision in enumerate(precisions)},
            "brevity_penalty": penalty,
            "hypothesis_length": float(found.sys_len),
            "reference_length": float(expected),
        },
        variant=f"BLEU-4, 0 to 1, pymteval rules, 13a tokens, {'lower case' if lowercase else 'cased'}, "
        f"{reference_length} reference length, empty references {empty_references}; {packages('sacrebleu')}",
    )
