"""Tokenized examples by position, and views on some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deltaw.train.data.cache import Store
from deltaw.train.data.formats.base import Format
from deltaw.train.data.report import DataReport, length_stats
from deltaw.train.data.templates import Renderer
from deltaw.train.data.tokens import Example

__all__ = ["Dataset"]


class Dataset:
    """Tokenized examples; ``dataset[i]`` reads one from disk.

    Args:
        store: the arrays.
        format: what the rows mean.
        renderer: how rows become text; it renders prompts for sampling too.
        report: what became of the rows.
        picks: positions in the store; None for all.
    """

    def __init__(
        self,
        store: Store,
        format: Format,
        renderer: Renderer,
        report: DataReport,
        picks: NDArray[np.int64] | None = None,
    ) -> None:
        self.store, self.format, self.renderer, self.report = store, format, renderer, report
        self.picks = np.arange(len(store.rows), dtype=np.int64) if picks is None else picks
        self.lengths: NDArray[np.int64] = np.diff(store.offsets)[self.picks]
        self.trained_tokens = int(store.trained[self.picks].sum())
        self.task = format.task
        self.labels: list[str] = list(store.names)

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.picks)

    def __getitem__(self, index: int) -> Example:
        """Read one example.

        Args:
            index: position from 0; negative counts from the end.

        Returns:
            Its tokens, weights and label.
        """
        store, at = self.store, int(self.picks[index])
        start, end = int(store.offsets[at]), int(store.offsets[at + 1])
        label = None if store.labels is None else store.labels[at].item()
        return Example(
            ids=store.ids[start:end].tolist(),
            weights=[0.0] * (end - start) if store.weights is None else store.weights[start:end].tolist(),
            label=label,
            row=int(store.rows[at]),
            types=None if store.types is None else store.types[start:end].tolist(),
        )

    def __iter__(self) -> Iterator[Example]:
        """Read all examples in order."""
        return (self[index] for index in range(len(self)))

    @property
    def rows(self) -> NDArray[np.int64]:
        """Source row of each example, shape (examples,), int64."""
        return self.store.rows[self.picks]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Content of each example, shape (examples,), uint64: equal for equal tokens, weights and label."""
        return self.store.hashes[self.picks]

    @property
    def highest_id(self) -> int:
        """The largest token id, to be compared with the rows of a model's embedding."""
        return int(self.store.ids.max())

    def select(self, indices: Sequence[int] | NDArray[np.int64], note: str = "") -> Dataset:
        """Take some of the examples, without reading them.

        Args:
            indices: positions, in the wanted order.
            note: a line for the report of the view.

        Returns:
            A view with counts of its own.
        """
        picks = self.picks[np.asarray(indices, dtype=np.int64)]
        lengths = np.diff(self.store.offsets)[picks]
        stats, histogram = length_stats(lengths) if len(picks) else ({}, [])
        counts = dict(self.report.labels)
        if self.labels and self.store.labels is not None:
            numbers = np.bincount(self.store.labels[picks], minlength=len(self.labels))
            counts = {name: int(number) for name, number in zip(self.labels, numbers, strict=True)}
        report = dataclasses.replace(
            self.report,
            examples=len(picks),
            tokens=int(lengths.sum()),
            trained_tokens=int(self.store.trained[picks].sum()),
            lengths=stats,
            histogram=histogram,
            duplicates=len(picks) - len(np.unique(self.store.hashes[picks])),
            labels=counts,
            notes=[*self.report.notes, *([note] if note else [])],
        )
        return Dataset(self.store, self.format, self.renderer, report, picks)
