"""``text_label`` and ``pair_label``: a text, or two, with a class or a score."""

from __future__ import annotations

from deltaw.train.data.formats.base import Columns, Kind, Label, Labelled, Record, text_of
from deltaw.train.data.sources.base import Row, RowProblem

__all__ = ["PAIR", "SINGLE", "number_of"]

_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "score",
    "rating",
    "stars",
    "quality",
    "gold_label",
)


def number_of(value: Label) -> int | float | None:
    """Read a label as a number, also where a file keeps numbers as text.

    Args:
        value: the label as it stands in the row.

    Returns:
        An int or a float; None for bools and for text that is no number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        for read in (int, float):
            try:
                return read(value)
            except ValueError:
                continue
    return None


def _label(row: Row, columns: Columns) -> Label:
    column = columns["label"]
    value = row.get(column)
    if value is None:
        raise RowProblem(f"column {column!r} is null" if column in row else f"column {column!r} is missing")
    if not isinstance(value, (str, int, float)):
        raise RowProblem(f"column {column!r} holds {type(value).__name__}, not a label")
    if isinstance(value, str) and not value.strip():
        raise RowProblem(f"column {column!r} is empty")
    number = number_of(value)
    if number is not None and not abs(number) < float("inf"):
        raise RowProblem(f"column {column!r} holds {value}, not a finite number")
    return value.strip() if isinstance(value, str) else value


def _single(row: Row, columns: Columns) -> Record:
    return Labelled(text_a=text_of(row, columns, "text"), text_b=None, label=_label(row, columns))


def _pair(row: Row, columns: Columns) -> Record:
    first, second = text_of(row, columns, "text_a"), text_of(row, columns, "text_b")
    return Labelled(text_a=first, text_b=second, label=_label(row, columns))


SINGLE = Kind(
    name="text_label",
    roles={
        "text": ("text", "sentence", "review", "content", "document", "tweet", "title", "utterance"),
        "label": _LABELS,
    },
    parse=_single,
    example='{"text": "A lovely film.", "label": "positive"}',
    labelled=True,
)
PAIR = Kind(
    name="pair_label",
    roles={
        "text_a": ("text_a", "sentence1", "premise", "question1", "question", "query", "#1 string", "text1"),
        "text_b": ("text_b", "sentence2", "hypothesis", "question2", "sentence", "passage", "#2 string", "text2"),
        "label": _LABELS,
    },
    parse=_pair,
    example='{"text_a": "It rains.", "text_b": "It is wet.", "label": "entailment"}',
    labelled=True,
)
