"""What METEOR knows about words: its normalization, its function words, and the tables of a user.

A synonym table is METEOR's own form of WordNet: a directory with ``english.synsets`` and, where there is one,
``english.exceptions``, or the synsets file alone. Lines come in pairs: a word and the numbers of its synsets; a base
form and its irregular forms. A paraphrase table is METEOR's ``paraphrase-en.gz``: lines in threes, a probability that
is not used and two phrases.
"""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import DataError

__all__ = ["FUNCTION_WORDS", "Paraphrases", "Synonyms", "normalized", "stem"]

_FUNCTION = (
    "a about after all also an and are as at be been but by can could first for from had has have he her his i if in "
    "into is it its last more new no not of on one or other out over people s said she so some than that the their "
    "there they this time to two up was we were what when which who will with would year years you "
    "'s 't , . \" \u2019 ) -rrb- ( -lrb- : $ - \u201c \u201d -- ? \u2014 '"
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English function words of METEOR 1.5: tokens with a relative frequency above 1/1000 in news (Denkowski and Lavie
2011, section 2.2)."""

_PREFIXES = (
    "Adj Adm Adv Asst Bart Bldg Brig Bros Capt Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov Hon Hosp Hr "
    "Insp Lt MM MR MRS MS Maj Messrs Mlle Mme Mr Mrs Ms Msgr Nos Nr Op Ord Pfc Ph Prof Pvt Rep Reps Res Rev Rt "
    "Sen Sens Sfc Sgt Sr St Supt Surg rev v vs A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
)
PREFIXES = frozenset(_PREFIXES.split())
"""Words that keep their period, in this case only (nonbreaking prefixes of Moses, as METEOR 1.5 takes them)."""

NUMBERED = frozenset(["Art", "No", "pp"])
"""Words that keep their period before a number."""

LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697"
SIGN = re.compile(rf"([^0-9{LETTER}\s.'`,\-\u2018\u2019])", re.ASCII)
"""A blank outside ASCII is a sign until all is split, and is dropped then."""
DOTS = re.compile(r"\.{2,}")
COMMAS = tuple(re.compile(form, re.ASCII) for form in (r"(\D),(\D)", r"(\d),(\D)", r"(\D),(\d)"))
DASH = re.compile(rf"([0-9{LETTER}.])-([0-9{LETTER}])")
APOSTROPHES = (
    (re.compile(rf"([^{LETTER}])'([^{LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([^{LETTER}0-9])'([{LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([{LETTER}])'([^{LETTER}])"), r"\1 ' \2"),
    (re.compile(rf"([{LETTER}])'([{LETTER}])"), r"\1 '\2"),
    (re.compile(r"([0-9])'(s)"), r"\1 '\2"),
)
REGION = re.compile(".*?[aeiouy][^aeiouy]")
LONGER = re.compile("ation|er|ional")
HELD = "\ue000"
"""Stands for one dot of an ellipsis while periods are split."""


def normalized(text: str) -> list[str]:
    """Split and fold a text as METEOR's -norm does for English.

    Signs become tokens, commas within numbers stay, words lose their hyphens and abbreviations such as U.S. their
    dots, contractions are split before the apostrophe; then the case is folded. Of other words only ``PREFIXES`` keep
    their period, in the case they have there, and whatever stands before a word in lower case.

    Args:
        text: a segment, tokenized or not.

    Returns:
        Tokens, lower case.

    Example:
        >>> normalized("The U.S.-based Mr. Low's 1,000 family-friendly pubs... aren't.")
        ['the', 'us', 'based', 'mr.', 'low', "'s", '1,000', 'family', 'friendly', 'pubs', '...', 'aren', "'t", '.']
    """
    line = SIGN.sub(r" \1 ", f" {text} ")
    line = DOTS.sub(lambda found: f" {HELD * len(found.group())} ", line)
    for pattern in COMMAS:
        line = pattern.sub(r"\1 , \2", line)
    line = re.sub("[`\u2018\u2019]", "'", line)
    line = re.sub("[\u201c\u201d]|''", ' " ', line)
    line = line.replace("\u2013", "-").replace("--", "-")
    line = DASH.sub(r"\1 \2", line)
    for pattern, form in APOSTROPHES:
        line = pattern.sub(form, line)
    words = re.findall(r"\S+", line, re.ASCII)
    tokens: list[str] = []
    for i, word in enumerate(words):
        tokens += _period(word, words[i + 1] if i + 1 < len(words) else "")
    return [token.replace(HELD, ".").lower() for token in tokens if not token.isspace()]


def _period(word: str, following: str) -> list[str]:
    """Decide about the period at the end of a word: dropped, kept, or a token of its own."""
    body = word[:-1]
    if not body or not word.endswith("."):
        return [word]
    if "." in body and re.search(f"[{LETTER}]", body):
        return [word.replace(".", "")]
    numbered = body in NUMBERED and re.match("[0-9]", following)
    kept = body in PREFIXES or numbered or re.match("[a-z]", following)
    return [word] if kept else [body, "."]


@functools.lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer("english")


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Stem an English word with Snowball's rules, as METEOR does.

    Where a suffix such as -ization becomes -ize, nltk may lose the region R2 and then keep a last e that the rules
    delete; it is deleted here.

    Args:
        word: lower case.

    Returns:
        Its stem.

    Example:
        >>> stem("serving"), stem("serves"), stem("ionization")
        ('serv', 'serv', 'ioniz')
    """
    stemmed: str = _stemmer().stem(word)
    kept = stemmed.endswith(("ize", "ate")) and LONGER.match(word.removeprefix(stemmed[:-1]))
    return stemmed[:-1] if kept and len(stemmed) > _second_region(word) else stemmed


def _second_region(word: str) -> int:
    """Find where Snowball's R2 of a word starts: twice past a vowel and what is none after it."""
    marked = re.sub("^y|(?<=[aeiouy])y", "Y", word)
    known = re.match("gener|commun|arsen", marked)
    first = known or REGION.match(marked)
    second = REGION.match(marked, first.end()) if first else None
    return second.end() if second else len(word)


# WordNet's rules of detachment (morphy): nouns, then verbs, then adjectives.
ENDINGS = (
    *(("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")),
    *(("ies", "y"), ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e")),
    *(("ing", ""), ("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)


@dataclass(frozen=True, kw_only=True)
class Synonyms:
    """A table of synonyms.

    Args:
        where: the file it was read from.
        synsets: word -> numbers of its synsets.
        bases: irregular form -> base forms.
    """

    where: str
    synsets: dict[str, frozenset[str]]
    bases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Synonyms:
        """Read METEOR's form of WordNet.

        Args:
            path: the directory with ``english.synsets``, or that file.

        Returns:
            The table.

        Raises:
            DataError: if the file is absent, empty or not of that form.
        """
        place = Path(path).expanduser()
        file = place / "english.synsets" if place.is_dir() else place
        found: dict[str, frozenset[str]] = {}
        for number, (word, sets) in _records(file, 2):
            if not sets.split() or not all(item.isdigit() for item in sets.split()):
                raise _broken(file, number, repr(sets.rstrip()[:40]), "the numbers of the synsets of the word above it")
            found[word.rstrip()] = frozenset(sets.split())
        forms: dict[str, tuple[str, ...]] = {}
        irregular = file.with_name("english.exceptions")
        if file.name == "english.synsets" and irregular.is_file():
            for _, (base, written) in _records(irregular, 2):
                for form in written.split():
                    forms[form] = (*forms.get(form, ()), base.rstrip())
        return cls(where=file.name, synsets=found, bases=forms)

    def of(self, word: str) -> frozenset[str]:
        """Find the synsets of a word and of its base form.

        Args:
            word: lower case.

        Returns:
            Their numbers.
        """
        empty: frozenset[str] = frozenset()
        bases = self.bases.get(word) or (self._base(word),)
        return self.synsets.get(word, empty).union(*(self.synsets.get(base, empty) for base in bases))

    def _base(self, word: str) -> str:
        if word.endswith("ss") or len(word) <= 2:
            return word
        for ending, instead in ENDINGS:
            base = word.removesuffix(ending) + instead
            if word.endswith(ending) and base in self.synsets:
                return base
        return ""


@dataclass(frozen=True, kw_only=True)
class Paraphrases:
    """A table of paraphrases, or what of it texts can use.

    Args:
        where: the file it was read from.
        phrases: phrase -> the phrases that may stand for it.
        longest: words of the longest phrase; 0 where there is none.
    """

    where: str
    phrases: dict[tuple[str, ...], list[tuple[str, ...]]]
    longest: int

    @classmethod
    def read(cls, path: str | Path, words: Collection[str] | None = None) -> Paraphrases:
        """Read METEOR's table of paraphrases, compressed or not.

        The released table has five million pairs: kept whole it takes gigabytes.

        Args:
            path: the file.
            words: the words of the texts; pairs with other words are not kept. None keeps every pair.

        Returns:
            The table.

        Raises:
            DataError: if the file is absent, empty or not of that form.
        """
        file = Path(path).expanduser()
        known = None if words is None else frozenset(words)
        found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for number, (chance, phrase, other) in _records(file, 3):
            try:
                float(chance)
            except ValueError:
                raise _broken(file, number, repr(chance.rstrip()[:40]), "a probability above two phrases") from None
            here = phrase.split()
            if known is None or known.issuperset(here):
                there = other.split()
                if known is None or known.issuperset(there):
                    found.setdefault(tuple(here), []).append(tuple(there))
        return cls(where=file.name, phrases=found, longest=max(map(len, found), default=0))

    def starting(self, words: Sequence[str], start: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Find what may stand for the words from one place on.

        Args:
            words: a segment.
            start: the place.

        Yields:
            tuple[int, tuple[str, ...]]: how many words, and the phrase that may stand for them.
        """
        for length in range(1, min(self.longest, len(words) - start) + 1):
            for phrase in self.phrases.get(tuple(words[start : start + length]), ()):
                yield length, phrase


def _records(path: Path, size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Read a file of records of ``size`` lines with their ends, each with the number of its first line."""
    lines = 0
    try:
        with path.open("rb") as plain:
            raw = gzip.GzipFile(fileobj=plain) if plain.peek(2)[:2] == b"\x1f\x8b" else plain
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as file:
                for record in itertools.zip_longest(*[file] * size):
                    if record[-1] is None:
                        lines += size - record.count(None)
                        raise _broken(path, lines, f"{lines} lines", f"records of {size} lines")
                    yield lines + 1, record
                    lines += size
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            "a table for METEOR cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}",
            expected="a text file in UTF-8, as it is or compressed with gzip",
            hint="give the path of a table in METEOR's own form, or leave the option out",
        ) from None
    if not lines:
        raise _broken(path, 0, "0 lines", f"records of {size} lines")


def _broken(path: Path, line: int, got: str, expected: str) -> DataError:
    return DataError(
        "a table for METEOR is not in METEOR's form",
        where=f"{path}, line {line}",
        got=got,
        expected=expected,
        hint="english.synsets has pairs of lines, paraphrase-en.gz has threes; other forms have to be converted",
    )
