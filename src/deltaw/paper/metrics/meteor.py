"""METEOR 1.5 for English: alignment by stages, weighted precision and recall, and a penalty for fragments.

The released program is Java and brings tables of WordNet synonyms and of paraphrases. Here the stages exact and stem
are always on, the other two where a table is given, and the variant says which were: scores of different stages
cannot be compared. The program's own tables can be given: the synonyms are in its jar (folder ``synonym``, to be
unzipped), the paraphrases beside it (``paraphrase-en.gz``).

Beside that program, on hypotheses made from references of E2E (630 segments), DART (2,768) and WebNLG (872), every
score of a segment was the same, with stages exact+stem, exact+stem+synonym and all four, and corpus scores to 1e-15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.paper.metrics.base import References, Result, one_of, packages
from deltaw.paper.metrics.meteor_align import align
from deltaw.paper.metrics.meteor_words import FUNCTION_WORDS, Paraphrases, Synonyms, normalized
from deltaw.paper.metrics.ptb import ptb_tokens
from deltaw.paper.metrics.tokens import treebank_tokens

__all__ = ["meteor"]

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""Of the stages exact, stem, synonym, paraphrase (English, task "rank")."""

STAGES = ("exact", "stem", "synonym", "paraphrase")
TOKENS = {"norm": None, "ptb": ptb_tokens, "treebank": treebank_tokens}


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a score is made of; sums over segments are made into a corpus score by the same formula.

    Args:
        lengths: words of hypothesis and reference.
        functions: function words among them.
        content: matched content words of hypothesis and reference, by stage.
        function: matched function words, by stage.
        chunks: runs of matches.
    """

    lengths: tuple[int, ...]
    functions: tuple[int, ...]
    content: tuple[tuple[int, ...], ...]
    function: tuple[tuple[int, ...], ...]
    chunks: int

    @property
    def whole(self) -> bool:
        """Whether every word of both sides is matched, in one chunk."""
        return self.chunks == 1 and all(self.matched(side) == self.lengths[side] for side in range(2))

    def matched(self, side: int) -> int:
        """Count the matched words of a side.

        Args:
            side: 0 for the hypothesis, 1 for the reference.

        Returns:
            Content and function words of every stage.
        """
        return sum(self.content[side]) + sum(self.function[side])


def meteor(
    hypotheses: Sequence[str],
    references: References,
    *,
    tokenize: str = "norm",
    synonyms: str | Path | None = None,
    paraphrases: str | Path | None = None,
) -> Result:
    """METEOR over a corpus, between 0 and 1: the best reference of each segment, its statistics summed.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        tokenize: what is done before METEOR's own normalization: ``norm`` nothing, ``ptb`` the COCO scripts' tokens
            without punctuation (e2e-metrics), ``treebank`` word tokens (GenerationEval).
        synonyms: a table of synonyms in METEOR's form; without one there is no synonym stage.
        paraphrases: a table of paraphrases in METEOR's form; without one there is no paraphrase stage.

    Returns:
        The value with precision, recall and fragmentation penalty, and every segment's score.

    Raises:
        DataError: if a table cannot be read.

    Source:
        Denkowski and Lavie 2014; meteor-1.5, parameters of English "rank".

    Example:
        >>> meteor(["the food is cheap"], [["the food is cheap"]]).value
        1.0
    """
    one_of("meteor", "tokenize", tokenize, tuple(TOKENS))
    words = Synonyms.read(synonyms) if synonyms is not None else None
    texts = [_tokens(text, tokenize) for text in hypotheses]
    groups = [[_tokens(text, tokenize) for text in group] for group in references]
    known = {word for group in (texts, *groups) for tokens in group for word in tokens}
    phrases = Paraphrases.read(paraphrases, known) if paraphrases is not None else None
    best: list[Statistics] = []
    segments: list[float] = []
    for tokens, group in zip(texts, groups, strict=True):
        found = [_statistics(tokens, text, words, phrases) for text in group]
        scores = [combined(statistics)["score"] for statistics in found]
        first = max(range(len(found)), key=scores.__getitem__)
        best.append(found[first])
        segments.append(scores[first])
    total = combined(summed(best))
    stages = [*STAGES[:2], *(STAGES[2:3] if words else ()), *(STAGES[3:] if phrases else ())]
    tables = "".join(f", table {table.where}" for table in (words, phrases) if table is not None)
    return Result(
        value=total.pop("score"),
        parts=total,
        segments=tuple(segments),
        variant=f"METEOR 1.5 English, stages {'+'.join(stages)}{tables}, alpha {ALPHA} beta {BETA} gamma {GAMMA} "
        f"delta {DELTA}, tokens {tokenize}{'' if tokenize == 'norm' else ' then norm'}; deltaw, Snowball stems of "
        f"{packages('nltk')}",
        notes=(
            *(
                ()
                if words
                else (
                    "no synonym stage: no table was given; the published program has this stage, so its values differ",
                )
            ),
            *(() if phrases else ("no paraphrase stage: no table was given",)),
        ),
    )


def _tokens(text: str, tokenize: str) -> list[str]:
    before = TOKENS[tokenize]
    return normalized(text if before is None else " ".join(before(text)))


def _statistics(
    hypothesis: Sequence[str], reference: Sequence[str], synonyms: Synonyms | None, paraphrases: Paraphrases | None
) -> Statistics:
    sides = (hypothesis, reference)
    alignment = align(hypothesis, reference, synonyms, paraphrases)
    content = [[0] * len(STAGES) for _ in sides]
    function = [[0] * len(STAGES) for _ in sides]
    for match in alignment.matches:
        for side, (start, length) in enumerate(((match.other, match.width), (match.start, match.length))):
            for word in sides[side][start : start + length]:
                (function if word in FUNCTION_WORDS else content)[side][match.stage] += 1
    return Statistics(
        lengths=tuple(map(len, sides)),
        functions=tuple(sum(word in FUNCTION_WORDS for word in side) for side in sides),
        content=tuple(map(tuple, content)),
        function=tuple(map(tuple, function)),
        chunks=alignment.chunks,
    )


def summed(parts: Sequence[Statistics]) -> Statistics:
    """Add the statistics of segments.

    A segment that is matched whole in one chunk adds no chunk, as in the released program: its penalty is 0, and it
    must not become one by being added.

    Args:
        parts: at least one.

    Returns:
        Their sums.

    Source:
        meteor-1.5, MeteorStats.addStats.
    """
    return Statistics(
        lengths=tuple(map(sum, zip(*(part.lengths for part in parts), strict=True))),
        functions=tuple(map(sum, zip(*(part.functions for part in parts), strict=True))),
        content=tuple(tuple(map(sum, zip(*(part.content[side] for part in parts), strict=True))) for side in range(2)),
        function=tuple(
            tuple(map(sum, zip(*(part.function[side] for part in parts), strict=True))) for side in range(2)
        ),
        chunks=sum(0 if part.whole else part.chunks for part in parts),
    )


def combined(found: Statistics) -> dict[str, float]:
    """Make statistics a score.

    Args:
        found: of a segment or of a corpus.

    Returns:
        ``score``, ``precision``, ``recall`` and ``penalty``; all but the penalty are 0 where nothing matches.
    """
    ratios = []
    for side in range(2):
        length = DELTA * (found.lengths[side] - found.functions[side]) + (1 - DELTA) * found.functions[side]
        matched = sum(
            weight * (DELTA * content + (1 - DELTA) * function)
            for weight, content, function in zip(WEIGHTS, found.content[side], found.function[side], strict=True)
        )
        ratios.append(matched / length if length else 0.0)
    precision, recall = ratios
    if not precision or not recall:
        return {"score": 0.0, "precision": precision, "recall": recall, "penalty": 0.0}
    words = found.matched(0) + found.matched(1)
    penalty = 0.0 if found.whole else GAMMA * (2 * found.chunks / words) ** BETA
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return {"score": mean * (1 - penalty), "precision": precision, "recall": recall, "penalty": penalty}
