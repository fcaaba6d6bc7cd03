"""Which examples form which batch, and a batch as tensors.

The order of an epoch is a pure function of (lengths, size, seed, epoch): a position (epoch, step) says everything
about where a run is, and resuming needs no iterator to be replayed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from deltaw.errors import StateError
from deltaw.train.isolation import Isolation
from deltaw.train.packing import fill_rows, fullest_row

__all__ = ["Batch", "BatchPlan", "TokenExample", "Window", "collate", "eval_batches", "longest_batch", "walk"]

# Examples are sorted by length only within a pool of this many batches: enough to leave little padding, few enough
# that every epoch mixes the rows differently. On lengths with a long tail (log-normal, sigma 0.8) batches of 16 are
# padded by 14.5% with pools of 32, 8.6% with 64, 4.8% with 128.
POOL = 64


class TokenExample(Protocol):
    """What a batch needs of an example; see ``deltaw.train.data.Example``."""

    @property
    def ids(self) -> list[int]:
        """Input tokens."""

    @property
    def weights(self) -> list[float]:
        """Loss weight of predicting each."""

    @property
    def label(self) -> int | float | None:
        """Class or score; None for language modelling."""

    @property
    def types(self) -> list[int] | None:
        """Token types, or None."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded on the right, or packed into one row.

    Args:
        input_ids: shape (N, T), int64.
        attention_mask: shape (N, T), int64, 1 on tokens; None where nothing is padded.
        weights: shape (N, T), float32; [n, t] weighs the prediction of token t.
        types: shape (N, T), int64, token types of encoders that tell two texts apart; else None.
        where: shape (2, K), int64: row and column of every token with a weight. Found on the CPU, because a GPU would
            have to wait for the count.
        labels: shape (N,), int64 (classes) or float32 (values); None for language modelling.
        rows: the examples' indices in their dataset.
        tokens: number of tokens, padding left out.
        weight: what the batch counts in a mean: its token weights, or its rows where they carry labels.
        trained: number of tokens with a weight, or of labeled rows.
        segments: shape (N, T), int64, equal for the tokens of one example of a packed row; else None.
        positions: shape (N, T), int64, counted from 0 in each segment; else None.
        isolation: how the model is told of the segments.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    weights: Tensor
    types: Tensor | None
    where: Tensor
    labels: Tensor | None
    rows: tuple[int, ...]
    tokens: int
    weight: float
    trained: int
    segments: Tensor | None = None
    positions: Tensor | None = None
    isolation: Isolation | None = None

    def inputs(self) -> dict[str, Any]:
        """What a model is called with.

        Returns:
            Keyword arguments of a transformers model.

        Raises:
            StateError: if several examples share a row and nothing says how they are kept apart.
        """
        found: dict[str, Any] = {"input_ids": self.input_ids}
        if self.attention_mask is not None:
            found["attention_mask"] = self.attention_mask
        if self.types is not None:
            found["token_type_ids"] = self.types
        if self.segments is None or len(self.rows) == 1:
            return found
        if self.isolation is None:
            raise StateError(
                "a packed row does not say how its examples are kept apart",
                where="Batch.isolation",
                got="None",
                expected="a way that was tried on the model",
                hint="pack(examples, isolation=way), with way from deltaw.train.find_isolation(model, examples)",
            )
        return found | self.isolation.arguments(self)

    def doubled(self) -> Batch:
        """Put every row in twice, the copies below: what two passes with other dropout go through together.

        Returns:
            A batch of 2 N rows; ``rows``, ``weight`` and the counts are those of the examples still.
        """

        def twice(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else torch.cat([tensor, tensor])

        below = self.where + torch.tensor([[len(self.input_ids)], [0]], device=self.where.device)
        return dataclasses.replace(
            self,
            input_ids=torch.cat([self.input_ids] * 2),
            attention_mask=twice(self.attention_mask),
            weights=torch.cat([self.weights] * 2),
            types=twice(self.types),
            where=torch.cat([self.where, below], dim=1),
            labels=twice(self.labels),
            segments=twice(self.segments),
            positions=twice(self.positions),
        )

    def to(self, device: torch.device) -> Batch:
        """Move the tensors.

        Args:
            device: where to.

        Returns:
            A batch on ``device``.
        """

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return dataclasses.replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=move(self.attention_mask),
            weights=self.weights.to(device, non_blocking=True),
            types=move(self.types),
            where=self.where.to(device, non_blocking=True),
            labels=move(self.labels),
            segments=move(self.segments),
            positions=move(self.positions),
        )


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of every epoch.

    Args:
        lengths: tokens of each example.
        batch_size: most sequences in a batch; None for no limit.
        batch_tokens: most tokens in a batch, padding included; None for no limit. An example that is longer alone
            makes a batch alone.
        packing: whether a batch is one row of ``batch_tokens`` that several examples share, without padding.
        accumulate: batches whose gradients make one step; the last step of an epoch may have fewer.
        seed: of the order.
    """

    lengths: Sequence[int]
    batch_size: int | None
    batch_tokens: int | None
    accumulate: int
    seed: int
    packing: bool = False
    # Ordering a million examples takes seconds, and the same few epochs are asked for again and again.
    _kept: dict[int, list[list[list[int]]]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _counts: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def epoch(self, epoch: int) -> list[list[int]]:
        """Order one epoch: shuffle, sort by length within pools, cut (or pack), shuffle the batches.

        Args:
            epoch: counted from 0.

        Returns:
            Example indices, batch by batch; every example once.
        """
        if self.packing:
            assert self.batch_tokens is not None
            return fill_rows(self.lengths, self.batch_tokens, seed=self.seed, epoch=epoch)
        shuffler = random.Random(f"deltaw batches {self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        shuffler.shuffle(order)
        pool = POOL * (self.batch_size or max(1, self._per_batch()))
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda index: self.lengths[index])
            batches += cut(part, self.lengths, self.batch_size, self.batch_tokens)
        shuffler.shuffle(batches)
        return batches

    def _per_batch(self) -> int:
        assert self.batch_tokens is not None
        return self.batch_tokens * max(1, len(self.lengths)) // max(1, sum(self.lengths))

    def size(self, rows: Sequence[int]) -> int:
        """Count the tokens that go through the model for a batch.

        Args:
            rows: its example indices.

        Returns:
            Tokens, padding included.
        """
        found = [self.lengths[row] for row in rows]
        return sum(found) if self.packing else len(found) * max(found)

    def windows(self, epoch: int) -> list[list[list[int]]]:
        """Group an epoch's batches into optimizer steps.

        Args:
            epoch: counted from 0.

        Returns:
            One list of batches per step; the last epoch asked for is kept, so they are not the caller's to change.
        """
        if epoch not in self._kept:
            batches = self.epoch(epoch)
            self._kept.clear()
            self._kept[epoch] = [
                batches[start : start + self.accumulate] for start in range(0, len(batches), self.accumulate)
            ]
            self._counts[epoch] = len(self._kept[epoch])
        return self._kept[epoch]

    def _count(self, epoch: int) -> int:
        # Without a token budget every epoch has as many batches; with one it depends on the epoch's shuffle.
        epoch = epoch if self.batch_tokens else 0
        return self._counts[epoch] if epoch in self._counts else len(self.windows(epoch))

    def padding(self) -> float:
        """Measure the padding of the first epoch.

        Returns:
            Share of the tokens that go through the model.
        """
        through = sum(self.size(rows) for window in self.windows(0) for rows in window)
        return 1 - sum(self.lengths) / max(1, through)

    def steps(self, epochs: float) -> int:
        """Count the optimizer steps of a number of epochs.

        Args:
            epochs: may be fractional.

        Returns:
            At least 1.
        """
        whole, rest = int(epochs), epochs - int(epochs)
        steps = sum(self._count(epoch) for epoch in range(whole))
        return max(1, steps + (round(self._count(whole) * rest) if rest else 0))


def cut(order: Sequence[int], lengths: Sequence[int], size: int | None, tokens: int | None) -> list[list[int]]:
    """Cut a sequence of examples into batches.

    Args:
        order: example indices.
        lengths: tokens of each example.
        size: most sequences in a batch, or None.
        tokens: most tokens in a batch with padding, or None.

    Returns:
        Example indices, batch by batch.
    """
    batches: list[list[int]] = []
    widest = 0
    for index in order:
        widest_then = max(widest, lengths[index])
        full = not batches or (size is not None and len(batches[-1]) >= size)
        if full or (tokens is not None and widest_then * (len(batches[-1]) + 1) > tokens):
            batches.append([])
            widest_then = lengths[index]
        batches[-1].append(index)
        widest = widest_then
    return batches


def eval_batches(lengths: Sequence[int], size: int | None, tokens: int | None, limit: int | None) -> list[list[int]]:
    """Batch a validation set: by length, no shuffle, so that every evaluation sees the same batches.

    Args:
        lengths: tokens of each example.
        size: most sequences in a batch, or None.
        tokens: most tokens in a batch with padding, or None.
        limit: use only that many examples, the first ones.

    Returns:
        Example indices, batch by batch.
    """
    count = len(lengths) if limit is None else min(limit, len(lengths))
    order = sorted(range(count), key=lambda index: lengths[index])
    return cut(order, lengths, size, tokens)


def longest_batch(plan: BatchPlan) -> list[int]:
    """Find the heaviest batch that the run could meet: its memory bounds every other's.

    Args:
        plan: the batches of the run.

    Returns:
        Example indices of the largest padded size possible. Of packed rows, the fullest of the first epoch and of one
        around the longest example: that of another epoch can be fuller only where neither reaches the capacity.
    """
    if plan.packing:
        assert plan.batch_tokens is not None
        rows = [batch for window in plan.windows(0) for batch in window]
        return max([fullest_row(plan.lengths, plan.batch_tokens), *rows], key=plan.size)
    order = sorted(range(len(plan.lengths)), key=lambda index: -plan.lengths[index])
    return cut(order, plan.lengths, plan.batch_size, plan.batch_tokens)[0]


def collate(examples: Sequence[TokenExample], rows: Sequence[int], pad_id: int) -> Batch:
    """Pad examples on the right into one batch.

    Args:
        examples: at least one.
        rows: their indices, kept for error messages.
        pad_id: token written into the padding; it is masked, so any id of the vocabulary does.

    Returns:
        The batch, on the CPU.
    """
    width = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(examples), width), dtype=torch.int64)
    weights = torch.zeros((len(examples), width), dtype=torch.float32)
    for index, example in enumerate(examples):
        count = len(example.ids)
        input_ids[index, :count] = torch.tensor(example.ids, dtype=torch.int64)
        mask[index, :count] = 1
        weights[index, :count] = torch.tensor(example.weights, dtype=torch.float32)
    tokens, labels, where = int(mask.sum()), _labels(examples), weights.nonzero().T.contiguous()
    return Batch(
        input_ids=input_ids,
        attention_mask=None if tokens == mask.numel() else mask,
        weights=weights,
        types=_types(examples, width),
        where=where,
        labels=labels,
        rows=tuple(rows),
        tokens=tokens,
        weight=float(weights.sum(dtype=torch.float64)) if labels is None else float(len(examples)),
        trained=where.shape[1] if labels is None else len(examples),
    )


def _types(examples: Sequence[TokenExample], width: int) -> Tensor | None:
    if all(example.types is None for example in examples):
        return None
    types = torch.zeros((len(examples), width), dtype=torch.int64)
    for index, example in enumerate(examples):
        if example.types is not None:
            types[index, : len(example.types)] = torch.tensor(example.types, dtype=torch.int64)
    return types


def _labels(examples: Sequence[TokenExample]) -> Tensor | None:
    labels = [example.label for example in examples]
    if labels[0] is None:
        return None
    kind = torch.float32 if isinstance(labels[0], float) else torch.int64
    return torch.tensor(labels, dtype=kind)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The batches of one optimizer step, and their place.

    Args:
        epoch: counted from 0.
        index: the step's place in the epoch.
        count: steps of the epoch.
        batches: example indices, batch by batch.
    """

    epoch: int
    index: int
    count: int
    batches: list[list[int]]


def walk(plan: BatchPlan, *, epoch: int, index: int, steps: int) -> Iterator[Window]:
    """Walk the windows from a position on.

    Args:
        plan: the batches of the run.
        epoch: epoch to start in.
        index: step within that epoch to start at.
        steps: how many to walk.

    Yields:
        Window: ``steps`` of them.
    """
    while steps > 0:
        windows = plan.windows(epoch)
        for place in range(index, len(windows)):
            if steps <= 0:
                return
            yield Window(epoch=epoch, index=place, count=len(windows), batches=windows[place])
            steps -= 1
        epoch, index = epoch + 1, 0
