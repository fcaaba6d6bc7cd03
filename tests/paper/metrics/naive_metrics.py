"""The metrics once more, from their definitions: slow, in float64 numpy, sharing nothing with the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

HYPOTHESES = [
    "Blue Spice is a coffee shop in the riverside area .",
    "The Eagle serves cheap English food near Burger King .",
    "There is a family friendly pub called The Mill .",
    "The Mill , a pub , has a price range of 20 to 25 .",
    "Cotto is not a family friendly place .",
    "If you like wine , try The Vaults by the river .",
    "It is rated 5 out of 5 by its customers .",
    "Near Crowne Plaza you find Fitzbillies , which is moderately priced .",
    "The Phoenix offers Indian food and and has a low rating .",
    "Strada .",
]
REFERENCES = [
    ["Blue Spice is a riverside coffee shop .", "In the riverside area there is a coffee shop called Blue Spice ."],
    ["The Eagle near Burger King serves cheap English food .", "For cheap English food there is The Eagle ."],
    ["The Mill is a family friendly pub ."],
    [
        "The Mill is a pub with a price range of 20 to 25 .",
        "The Mill , a pub , costs 20 to 25 .",
        "A pub is The Mill .",
    ],
    ["Cotto is no place for families .", "Cotto is not family friendly ."],
    ["If wine is what you like , The Vaults is by the river .", "Try the wine of The Vaults by the river ."],
    ["Its customers rate it 5 out of 5 .", "It has a rating of 5 out of 5 by customers ."],
    ["Fitzbillies , near Crowne Plaza , is moderately priced .", "Fitzbillies is near Crowne Plaza ."],
    ["The Phoenix has Indian food and a low rating .", "Indian food is what The Phoenix offers ; it is rated low ."],
    ["Strada is a pub .", "There is Strada ."],
]
"""Ten instances of our own in the manner of E2E, already tokens where split at blanks."""


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def bleu(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    hits, totals, ours, theirs = np.zeros(4), np.zeros(4), 0, 0
    for words, group in zip(hypotheses, references, strict=True):
        for n in range(1, 5):
            found = grams(words, n)
            for gram in set(found):
                hits[n - 1] += min(found.count(gram), max(grams(text, n).count(gram) for text in group))
            totals[n - 1] += len(found)
        ours += len(words)
        theirs += sorted((abs(len(text) - len(words)), len(text)) for text in group)[0][1]
    return float(np.exp(min(0.0, 1 - theirs / ours)) * np.exp(np.log(hits / totals).mean()))


def nist(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    every = [text for group in references for text in group]
    pools = {n: [gram for text in every for gram in grams(text, n)] for n in range(1, 6)}
    pools[0] = [()] * sum(map(len, every))
    total = 0.0
    for n in range(1, 6):
        information, length = 0.0, 0
        for words, group in zip(hypotheses, references, strict=True):
            found = grams(words, n)
            for gram in set(found):
                times = min(found.count(gram), max(grams(text, n).count(gram) for text in group))
                if times:
                    information += times * math.log2(pools[n - 1].count(gram[:-1]) / pools[n].count(gram))
            length += len(found)
        total += information / length
    ours = sum(map(len, hypotheses))
    theirs = sum(float(np.mean([len(text) for text in group])) for group in references)
    ratio = min(1.0, ours / theirs)
    return total * math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2)


def rouge_l(words: Sequence[str], group: Sequence[Sequence[str]], beta: float) -> float:
    def common(text: Sequence[str]) -> int:
        subsets = (c for size in range(len(words), 0, -1) for c in itertools.combinations(words, size))
        return next((len(one) for one in subsets if _within(one, text)), 0)

    shared = [common(text) for text in group]
    precision = max(shared) / len(words)
    recall = max(one / len(text) for one, text in zip(shared, group, strict=True))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if shared != [0] * len(shared) else 0.0


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def cider(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], clip: bool) -> np.ndarray:
    """Dense vectors over every n-gram there is."""
    values = np.zeros(len(hypotheses))
    for n in range(1, 5):
        texts = [*hypotheses, *(text for group in references for text in group)]
        columns = sorted({gram for text in texts for gram in grams(text, n)})
        documents = np.array([sum(any(g in grams(t, n) for t in group) for group in references) for g in columns])
        weights = math.log(len(references)) - np.log(np.maximum(1, documents))

        def vector(
            text: Sequence[str], n: int = n, columns: list = columns, weights: np.ndarray = weights
        ) -> np.ndarray:
            found = grams(text, n)
            return np.array([found.count(gram) for gram in columns], dtype=np.float64) * weights

        for i, (words, group) in enumerate(zip(hypotheses, references, strict=True)):
            ours = vector(words)
            for text in group:
                theirs = vector(text)
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                product = (np.minimum(ours, theirs) if clip else ours) @ theirs
                gap = max(len(words) - 1, 0) - max(len(text) - 1, 0)
                penalty = math.exp(-(gap**2) / 72) if clip else 1.0
                values[i] += (product / norm if norm else 0.0) * penalty / len(group) / 4 * 10
    return values


def best_alignment(hypothesis: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
    """Most exact matches, then fewest chunks, over every one-to-one alignment."""
    places = [[None, *(i for i, word in enumerate(hypothesis) if word == other)] for other in reference]
    best = (0, 0)
    for choice in itertools.product(*places):
        used = [i for i in choice if i is not None]
        if len(set(used)) < len(used):
            continue
        chunks, before = 0, None
        for i in choice:
            chunks += i is not None and (before is None or i != before + 1)
            before = i
        best = min(best, (-len(used), chunks))
    return -best[0], best[1]
