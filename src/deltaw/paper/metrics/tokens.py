"""Tokenizers that the reference scripts take from other packages, as those or as rules, and n-grams of tokens.

``treebank`` stands for nltk's word tokens, whose sentence model has to be downloaded: it is nltk's Penn Treebank rules,
which need no data, and what those leave undone: periods inside a text of several sentences, and currency signs.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = [
    "TOTALS",
    "Ngrams",
    "mteval_tokens",
    "ngrams",
    "short_segments",
    "totals_of",
    "treebank_tokens",
]

Ngrams = Counter[tuple[str, ...]]

_KEPT = (
    "mr mrs ms dr prof rev hon gen sen rep gov capt col lt sgt maj st mt jr sr inc ltd co corp bros no vs etc approx "
    "dept est fig vol pp al jan feb mar apr jun jul aug sep sept oct nov dec ave blvd rd"
)
ABBREVIATIONS = frozenset(_KEPT.split())
"""Words that keep their period, lower case."""

CURRENCY = re.compile("([\u00a3\u20ac\u00a5])")
DOTTED = re.compile(r"(?:\w\.)+")


@functools.lru_cache(maxsize=1)
def _treebank() -> Callable[[str], list[str]]:
    from nltk.tokenize import TreebankWordTokenizer

    split: Callable[[str], list[str]] = TreebankWordTokenizer().tokenize
    return split


@functools.lru_cache(maxsize=1)
def _mteval() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    rules: Callable[[str], str] = Tokenizer13a()
    return rules


def treebank_tokens(text: str) -> list[str]:
    """Split by the Penn Treebank rules, periods at the ends of inner sentences too; the case stays.

    Args:
        text: one or more sentences.

    Returns:
        Tokens.

    Example:
        >>> treebank_tokens("It isn't in the U.S. Dr. Who left. So did I.")
        ['It', 'is', "n't", 'in', 'the', 'U.S.', 'Dr.', 'Who', 'left', '.', 'So', 'did', 'I', '.']
    """
    tokens: list[str] = []
    for token in _treebank()(CURRENCY.sub(r" \1 ", text)):
        word = token[:-1]
        keeps = not word or word.endswith(".") or DOTTED.fullmatch(token) or word.lower() in ABBREVIATIONS
        # "I." ends a sentence where "J." is an initial; nothing but the word tells them apart.
        if token.endswith(".") and (not keeps or word == "I"):
            tokens += [word, "."]
        else:
            tokens.append(token)
    return tokens


def mteval_tokens(text: str, lowercase: bool) -> list[str]:
    """Split by the rules of mteval-v13a, as sacrebleu has them.

    Args:
        text: one segment.
        lowercase: fold the case.

    Returns:
        Tokens.

    Example:
        >>> mteval_tokens("Blue Spice, a cafe in 1,000.", True)
        ['blue', 'spice', ',', 'a', 'cafe', 'in', '1,000', '.']
    """
    return _mteval()(text.lower() if lowercase else text).split()


def ngrams(tokens: Sequence[str], n: int) -> Ngrams:
    """Count the n-grams of a text.

    Args:
        tokens: the text.
        n: how many tokens make one.

    Returns:
        N-gram -> how often it occurs.

    Example:
        >>> sorted(ngrams("a b a b".split(), 2).items())
        [(('a', 'b'), 2), (('b', 'a'), 1)]
    """
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


TOTALS = ("ngrams", "pymteval")
"""How n-grams of hypotheses are counted where some are shorter than n."""


def totals_of(lengths: Sequence[int], orders: int, rule: str) -> list[int]:
    """Count the n-grams of all hypotheses, order by order.

    Args:
        lengths: tokens of each hypothesis.
        orders: the largest n.
        rule: ``ngrams``: as many as there are; ``pymteval``: (tokens - n + 1) also where that is negative, and one
            token in a hypothesis without any.

    Returns:
        A total for every n from 1.

    Example:
        >>> totals_of([5, 1], 3, "ngrams"), totals_of([5, 1], 3, "pymteval")
        ([6, 4, 3], [6, 4, 2])
    """
    if rule == "pymteval":
        return [sum(max(length, 1) - n for length in lengths) for n in range(orders)]
    return [sum(max(length - n, 0) for length in lengths) for n in range(orders)]


def short_segments(lengths: Sequence[int], orders: int, rule: str) -> tuple[str, ...]:
    """Say where the two ways to count n-grams differ.

    Args:
        lengths: tokens of each hypothesis.
        orders: the largest n.
        rule: which way was taken.

    Returns:
        One note, or none where both give the same.

    Example:
        >>> short_segments([4, 5], 5, "ngrams")
        ()
    """
    short = sum(length < orders - 1 for length in lengths)
    if not short:
        return ()
    where = f"{short} of {len(lengths)} hypotheses have fewer than {orders - 1} tokens"
    if rule == "pymteval":
        return (f"{where}: their missing n-grams count as negative ones, which raises the value",)
    return (f"{where}: pymteval, which counts negative numbers of n-grams there, gives another value",)
