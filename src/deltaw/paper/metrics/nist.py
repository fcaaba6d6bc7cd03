"""NIST as the E2E scripts report it (pymteval): information of matched n-grams, orders 1 to 5.

No package has this form: nltk's corpus_nist weighs and penalizes differently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, one_of, packages
from deltaw.paper.metrics.tokens import TOTALS, Ngrams, mteval_tokens, ngrams, short_segments, totals_of

__all__ = ["nist"]

ORDER = 5
BETA = -math.log(0.5) / math.log(1.5) ** 2
"""Makes the length factor 1/2 where the hypotheses have 2/3 of the references' words."""


def nist(
    hypotheses: Sequence[str],
    references: References,
    *,
    lowercase: bool = True,
    totals: str = "ngrams",
    empty_references: str = "dropped",
) -> Result:
    """NIST over a corpus, from 0 upwards.

    The information of an n-gram is log2(occurrences of its first n - 1 words / its own occurrences), counted over all
    references; that of a word is taken against the number of all words.

    Args:
        hypotheses: the texts that are judged, not tokenized.
        references: one group for every hypothesis.
        lowercase: fold the case.
        totals: what information is divided by: the ``ngrams`` there are, or ``pymteval``, as in ``bleu``.
        empty_references: ``dropped``, or ``counted`` in the mean length of a group.

    Returns:
        The value with the mean information of every order and the length factor.

    Source:
        Doddington 2002; tuetschek/e2e-metrics, metrics/pymteval.py.

    Example:
        >>> round(nist(["a b"], [["a b"]]).value, 4)
        1.0
    """
    one_of("nist", "lowercase", lowercase, (True, False))
    one_of("nist", "totals", totals, TOTALS)
    seen: list[Ngrams] = [Counter() for _ in range(ORDER + 1)]
    matched: list[Ngrams] = [Counter() for _ in range(ORDER + 1)]
    lengths, mean_words = [], 0.0
    for hypothesis, group in zip(hypotheses, references, strict=True):
        tokens = mteval_tokens(hypothesis, lowercase)
        texts = [mteval_tokens(text, lowercase) for text in group]
        lengths.append(len(tokens))
        mean_words += sum(map(len, texts)) / len(texts)
        seen[0][()] += sum(map(len, texts))
        for n in range(1, ORDER + 1):
            most: Ngrams = Counter()
            for text in texts:
                found = ngrams(text, n)
                most |= found
                seen[n].update(found)
            matched[n].update(ngrams(tokens, n) & most)
    means = []
    divisors = totals_of(lengths, ORDER, totals)
    for n, total in enumerate(divisors, 1):
        information = sum(
            count * math.log2(seen[n - 1][ngram[:-1]] / seen[n][ngram]) for ngram, count in matched[n].items()
        )
        means.append(information / total if total > 0 else 0.0)
    ratio = divisors[0] / mean_words
    factor = math.exp(-BETA * math.log(ratio) ** 2) if 0 < ratio < 1 else float(ratio >= 1)
    case = "lower case" if lowercase else "cased"
    return Result(
        value=factor * sum(means),
        parts={
            **{f"information_{n + 1}": mean for n, mean in enumerate(means)},
            "length_factor": factor,
            "hypothesis_length": float(divisors[0]),
            "reference_length": mean_words,
        },
        variant=f"NIST-5 as in pymteval, totals {totals}, 13a tokens, {case}, mean reference length, empty references "
        f"{empty_references}; deltaw, tokens of {packages('sacrebleu')}",
        notes=short_segments(lengths, ORDER, totals),
    )
