"""METEOR's alignment of a hypothesis with a reference: every possible match, then a beam search for the best set.

What the released program (1.5) does is kept where a cleaner search would give other scores: matches that touch no
other are fixed beforehand; the search counts whole words of exact matches and half of other matches, rounded down as
each is added; then fewer chunks win, then the smaller sum of distances, which it adds to the path that skips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deltaw.paper.metrics.meteor_words import Paraphrases, Synonyms, stem

__all__ = ["EXACT", "PARAPHRASE", "STEM", "SYNONYM", "Alignment", "Match", "align"]

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
BEAM = 40


class Match(NamedTuple):
    """Words of the reference held against words of the hypothesis.

    Args:
        stage: EXACT, STEM, SYNONYM or PARAPHRASE.
        start: first word in the reference.
        length: words in the reference.
        other: first word in the hypothesis.
        width: words in the hypothesis.
    """

    stage: int
    start: int
    length: int
    other: int
    width: int

    @property
    def here(self) -> int:
        """The words of the reference as bits."""
        return ((1 << self.length) - 1) << self.start

    @property
    def there(self) -> int:
        """The words of the hypothesis as bits."""
        return ((1 << self.width) - 1) << self.other


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The best set of matches.

    Args:
        matches: in the order of the reference.
        chunks: runs of matches that are in order and without a gap on both sides.
    """

    matches: tuple[Match, ...]
    chunks: int


class _Path(NamedTuple):
    """A partial alignment: what is chosen in the words of the reference before ``at``."""

    words: int
    chunks: int
    distance: int
    at: int
    end: int  # one past the last matched word of the hypothesis; -1 where no chunk is open
    here: int
    there: int
    chosen: tuple[Match, ...]

    @property
    def rank(self) -> tuple[int, int, int]:
        return -self.words, self.chunks, self.distance


def align(
    hypothesis: Sequence[str],
    reference: Sequence[str],
    synonyms: Synonyms | None = None,
    paraphrases: Paraphrases | None = None,
) -> Alignment:
    """Align two segments.

    Args:
        hypothesis: its words.
        reference: its words.
        synonyms: a table, or no synonyms.
        paraphrases: a table, or no paraphrases.

    Returns:
        The best alignment that the beam search finds.

    Source:
        Denkowski and Lavie 2014, section 2; meteor-1.5, Aligner.java.

    Example:
        >>> align("the cats sat".split(), "the cat sat".split()).chunks
        1
    """
    matches: list[list[Match]] = [[] for _ in reference]
    for match in _candidates(hypothesis, reference, synonyms, paraphrases):
        matches[match.start].append(match)
    fixed = _fixed(matches)
    here = sum(match.here for match in fixed.values())
    there = sum(match.there for match in fixed.values())
    paths = [_Path(0, 0, 0, 0, -1, here, there, ())]
    for at in range(len(reference)):
        paths.sort(key=lambda path: path.rank)
        paths = [following for path in paths[:BEAM] for following in _onward(path, at, matches[at], fixed)]
    paths.sort(key=lambda path: path.rank)
    best = min(paths[:BEAM], key=lambda path: (-path.words, path.chunks + (path.end != -1), path.distance))
    return Alignment(matches=best.chosen, chunks=best.chunks + (best.end != -1))


def _candidates(
    hypothesis: Sequence[str],
    reference: Sequence[str],
    synonyms: Synonyms | None,
    paraphrases: Paraphrases | None,
) -> Iterator[Match]:
    """Every match of every stage; of identical segments the exact ones only."""
    pairs = [(j, i) for j in range(len(reference)) for i in range(len(hypothesis))]
    yield from (Match(EXACT, j, 1, i, 1) for j, i in pairs if reference[j] == hypothesis[i])
    if list(hypothesis) == list(reference):
        return
    different = [(j, i) for j, i in pairs if reference[j] != hypothesis[i]]
    stems, others = [stem(word) for word in reference], [stem(word) for word in hypothesis]
    yield from (Match(STEM, j, 1, i, 1) for j, i in different if stems[j] == others[i])
    if synonyms is not None:
        sets, other_sets = [synonyms.of(word) for word in reference], [synonyms.of(word) for word in hypothesis]
        yield from (Match(SYNONYM, j, 1, i, 1) for j, i in different if not sets[j].isdisjoint(other_sets[i]))
    if paraphrases is not None:
        for j in range(len(reference)):
            for length, phrase in paraphrases.starting(reference, j):
                for i in _places(hypothesis, phrase):
                    yield Match(PARAPHRASE, j, length, i, len(phrase))
        for i in range(len(hypothesis)):
            for width, phrase in paraphrases.starting(hypothesis, i):
                for j in _places(reference, phrase):
                    yield Match(PARAPHRASE, j, len(phrase), i, width)


def _places(words: Sequence[str], phrase: tuple[str, ...]) -> Iterator[int]:
    size = len(phrase)
    return (i for i in range(len(words) - size + 1) if tuple(words[i : i + size]) == phrase)


def _fixed(matches: Sequence[Sequence[Match]]) -> dict[int, Match]:
    """The matches whose words no other match touches."""
    covered: dict[tuple[bool, int], int] = {}
    for group in matches:
        for match in group:
            for key in _words(match):
                covered[key] = covered.get(key, 0) + 1
    return {
        group[0].start: group[0]
        for group in matches
        if len(group) == 1 and all(covered[key] == 1 for key in _words(group[0]))
    }


def _words(match: Match) -> list[tuple[bool, int]]:
    ours = [(True, match.start + k) for k in range(match.length)]
    return ours + [(False, match.other + k) for k in range(match.width)]


def _onward(path: _Path, at: int, matches: Sequence[Match], fixed: dict[int, Match]) -> Iterator[_Path]:
    """Every way to go on from one word of the reference."""
    if path.here >> at & 1:
        if at < path.at:
            yield path
        elif at in fixed:
            match = fixed[at]
            yield _taken(path, match)._replace(distance=path.distance + abs(match.start - match.other))
        return
    distance = path.distance
    for match in matches:
        if not (match.here & path.here or match.there & path.there):
            yield _taken(path, match)._replace(distance=distance)
            distance += abs(match.start - match.other)
    yield path._replace(chunks=path.chunks + (path.end != -1), end=-1, at=path.at + 1, distance=distance)


def _taken(path: _Path, match: Match) -> _Path:
    # Half a word, rounded down, of what is no exact match, on each side by itself.
    half = 1 if match.stage == EXACT else 2
    return _Path(
        words=path.words + match.width // half + match.length // half,
        chunks=path.chunks + (path.end not in (-1, match.other)),
        distance=path.distance,
        at=match.start + match.length,
        end=match.other + match.width,
        here=path.here | match.here,
        there=path.there | match.there,
        chosen=(*path.chosen, match),
    )
