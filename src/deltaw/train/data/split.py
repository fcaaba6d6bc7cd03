"""Hold out a part for validation, and find what two parts share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from deltaw.errors import DataError
from deltaw.train.data.dataset import Dataset
from deltaw.train.data.rows import Rows

__all__ = ["overlap", "split"]

Data = TypeVar("Data", Rows, Dataset)


def split(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Divide rows, or tokenized examples, into training and validation.

    Whole rows are drawn, so that the turns of a conversation or the windows of a text never stand on both sides. The
    same file, fraction and seed give the same division on every machine; the order of the file is kept.

    Args:
        data: rows or a data set.
        fraction: share of the rows for validation, between 0 and 1.
        seed: of the draw.

    Returns:
        Training and validation part. The report of a validation data set says how much of it also occurs in training.

    Raises:
        DataError: if the fraction is out of range or either part would be empty.
    """
    owners = np.arange(len(data)) if isinstance(data, Rows) else data.rows
    rows = np.unique(owners)
    count = max(1, round(len(rows) * fraction))
    path = str(data.path) if isinstance(data, Rows) else data.report.path
    if not 0 < fraction < 1 or count >= len(rows):
        raise DataError(
            "the data cannot be divided into training and validation",
            where=path,
            got=f"{len(rows)} rows and a validation fraction of {fraction}",
            expected="a fraction between 0 and 1 that leaves at least one row on each side",
            hint="pass a fraction such as 0.05, or a validation file.",
        )
    held = np.random.default_rng(seed).permutation(rows)[:count]
    inside = np.isin(owners, held)
    train_at, valid_at = np.flatnonzero(~inside), np.flatnonzero(inside)
    if isinstance(data, Rows):
        return data.select(train_at), data.select(valid_at)
    label = f"{fraction:.1%} of the rows, drawn with seed {seed}"
    train = data.select(train_at, f"training part: all but {label}")
    valid = data.select(valid_at, f"validation part: {label}")
    note_overlap(train, valid)
    return train, valid


def overlap(train: Dataset, valid: Dataset) -> int:
    """Count validation examples that also occur in training, token for token.

    Args:
        train: training data.
        valid: validation data, made with the same tokenizer.

    Returns:
        How many examples of ``valid``; such a number makes a validation loss look better than it is.
    """
    return int(np.isin(valid.hashes, train.hashes).sum())


def note_overlap(train: Dataset, valid: Dataset) -> None:
    """Put the overlap into the report of the validation data, where there is one.

    Args:
        train: training data.
        valid: validation data; its report gets a note.
    """
    count = overlap(train, valid)
    if count:
        note = f"{count:,} of {len(valid):,} validation examples also occur in training: their loss says little"
        valid.report.notes.append(note)
