"""Fit examples into the maximum length, and count what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaw.errors import DataError
from deltaw.train.data.report import DataReport
from deltaw.train.data.tokens import Affixes, Encoded

if TYPE_CHECKING:
    from deltaw.train.data.build import Options

__all__ = ["fit", "refuse_share"]


def fit(
    encoded: Encoded, options: Options, added: Affixes, report: DataReport, place: str
) -> Iterator[tuple[list[int], list[float]]]:
    """Give an example in the form that is trained: whole, in windows, cut, or not at all.

    Args:
        encoded: the tokens.
        options: the maximum length and what to do beyond it.
        added: what the tokenizer puts in front, which a cut at the start keeps.
        report: where losses are counted.
        place: the row, for the report.

    Yields:
        tuple[list[int], list[float]]: tokens and weights; the first weight is 0 and at least one is not.
    """
    ids, weights, limit = encoded.ids, encoded.weights, options.max_length
    if not any(weights):
        report.untrained.add(place)
        return
    if len(ids) > limit:
        if encoded.windows:
            report.windows.add(place)
            yield from _windows(ids, weights, limit)
            return
        if options.truncation == "drop":
            report.too_long.add(place)
            return
        if options.truncation == "cut-prompt":
            ids, weights = _cut_start(ids, weights, limit, len(added.prefix), report, place)
    if any(weights[limit:]):
        (report.cut if any(weights[:limit]) else report.lost).add(place)
    ids, weights = ids[:limit], weights[:limit]
    if any(weights):
        yield ids, weights


def _windows(ids: list[int], weights: list[float], limit: int) -> Iterator[tuple[list[int], list[float]]]:
    # Each window starts with the last token of the one before, so that every token is predicted once.
    for start in range(0, len(ids) - 1, limit - 1):
        part = weights[start : start + limit]
        yield ids[start : start + limit], [0.0, *part[1:]]


def _cut_start(
    ids: list[int], weights: list[float], limit: int, prefix: int, report: DataReport, place: str
) -> tuple[list[int], list[float]]:
    """Remove context before the first trained token, as much as needed or as there is, but the begin tokens."""
    first = next(at for at, weight in enumerate(weights) if weight)
    # One token of context must stay, because the first token of an example cannot be predicted.
    keep = max(prefix, 1 if prefix else 0)
    most = max(0, first - keep - (0 if keep else 1))
    excess = min(len(ids) - limit, most)
    if excess:
        report.cut_prompts.add(place)
    return ids[:keep] + ids[keep + excess :], weights[:keep] + weights[keep + excess :]


def refuse_share(report: DataReport, truncation: str, limit: float) -> None:
    """Refuse data of which too much is cut.

    Args:
        report: what was counted.
        truncation: the mode; only ``refuse`` has a limit.
        limit: share of cut or lost examples, 0 to 1, that is accepted.

    Raises:
        DataError: if there are more.
    """
    hurt = report.cut.count + report.lost.count
    total = report.examples + report.lost.count
    if truncation != "refuse" or hurt <= limit * total:
        return
    first = ", ".join((report.lost.first + report.cut.first)[:5])
    if report.task != "causal":
        raise DataError(
            "too many texts are longer than the maximum length",
            where=f"{report.path}, such as {first}",
            got=f"{hurt:,} of {total:,} texts over {report.max_length:,} tokens",
            expected=f"at most {limit:.0%} of the texts",
            hint="raise --max-length, or choose --truncation cut or drop.",
        )
    raise DataError(
        "too many examples are longer than the maximum length, which would cut their answers",
        where=f"{report.path}, such as {first}",
        got=f"{hurt:,} of {total:,} examples over {report.max_length:,} tokens "
        f"({report.cut.count:,} cut, {report.lost.count:,} with the whole answer lost)",
        expected=f"at most {limit:.0%} of the examples",
        hint="raise --max-length, or choose --truncation cut-prompt (keeps answers), drop, or cut.",
    )
