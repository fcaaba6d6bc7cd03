"""MNLI as table 2 reports it: one accuracy over the matched and the mismatched development sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltaw.errors import ConfigError, DataError
from deltaw.paper.metrics.accuracy import labels
from deltaw.paper.metrics.base import References, Result, packages
from deltaw.paper.metrics.files import read_lines

__all__ = ["mnli"]

DOMAINS = ("matched", "mismatched")


def mnli(
    hypotheses: Sequence[str], references: References, *, domains: Sequence[str] | str | Path | None = None
) -> Result:
    """Overall accuracy, between 0 and 1: of all pairs, whichever set they are from.

    Args:
        hypotheses: the labels that are judged, of both sets.
        references: the right one for each.
        domains: ``matched`` or ``mismatched`` for every label, or a file with one of them on each line.

    Returns:
        The value; as parts the accuracy of each set and the mean of the two, which differs where their sizes do.

    Raises:
        ConfigError: if there are no domains.
        DataError: if there are not as many as labels, one is neither, or one set has no label.

    Source:
        arXiv:2106.09685, table 2.

    Example:
        >>> found = mnli(["0", "1", "2"], [["0"], ["1"], ["1"]], domains=["matched", "matched", "mismatched"])
        >>> round(found.value, 4), found.parts["mean"]
        (0.6667, 0.5)
    """
    from sklearn.metrics import accuracy_score

    if domains is None:
        raise ConfigError(
            "MNLI has two development sets, and nothing says which label is of which",
            where="metric mnli, option domains",
            got="nothing",
            expected="matched or mismatched for every label",
            hint="give domains=FILE with one word a line, or use accuracy for one set",
        )
    words = read_lines(domains) if isinstance(domains, str | Path) else [word.strip() for word in domains]
    where = str(domains) if isinstance(domains, str | Path) else "option domains"
    _refuse(words, len(hypotheses), where)
    ours, right = labels(hypotheses, references)
    rates = {}
    for domain in DOMAINS:
        chosen = [i for i, word in enumerate(words) if word == domain]
        rates[domain] = float(accuracy_score([right[i] for i in chosen], [ours[i] for i in chosen]))
    return Result(
        value=float(accuracy_score(right, ours)),
        parts={**rates, "mean": sum(rates.values()) / len(rates)},
        segments=tuple(float(one == other) for one, other in zip(ours, right, strict=True)),
        variant=f"MNLI accuracy over matched and mismatched pairs together, 0 to 1; {packages('scikit-learn')}",
    )


def _refuse(words: Sequence[str], count: int, where: str) -> None:
    strange = [i for i, word in enumerate(words) if word not in DOMAINS]
    absent = [domain for domain in DOMAINS if domain not in words]
    if len(words) == count and not strange and not absent:
        return
    got = f"{len(words)} domains for {count} labels"
    if strange:
        got = f"{words[strange[0]]!r} on line {strange[0] + 1}"
    elif len(words) == count:
        got = f"no label that is {absent[0]}"
    raise DataError(
        "the domains do not fit the labels",
        where=f"metric mnli, {where}",
        got=got,
        expected="matched or mismatched for every label, and labels of both",
        hint="one word for every line of the hypotheses, in the same order; for one set use accuracy",
    )
