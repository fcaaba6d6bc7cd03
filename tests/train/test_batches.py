"""Batches: every example once per epoch, a pure function of seed and epoch, little padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltaw.train.batches import BatchPlan, collate, eval_batches, longest_batch, walk


@dataclass
class Ex:
    ids: list[int]
    weights: list[float]
    label: int | float | None = None
    types: list[int] | None = field(default=None)


def plan(lengths: list[int], size: int | None = 4, tokens: int | None = None, accumulate: int = 1) -> BatchPlan:
    return BatchPlan(lengths=lengths, batch_size=size, batch_tokens=tokens, accumulate=accumulate, seed=3)


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5))
def test_every_example_once(lengths: list[int], size: int, epoch: int) -> None:
    batches = plan(lengths, size).epoch(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= size for batch in batches)


@given(LENGTHS, st.integers(1, 90))
def test_a_token_budget_holds_but_for_lone_examples(lengths: list[int], tokens: int) -> None:
    batches = plan(lengths, None, tokens).epoch(0)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= tokens


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [1 + index % 17 for index in range(100)]
    assert plan(lengths).epoch(1) == plan(lengths).epoch(1)
    assert plan(lengths).epoch(1) != plan(lengths).epoch(2)


def test_batches_hold_similar_lengths() -> None:
    lengths = [1 + (index * 37) % 100 for index in range(128)]
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in plan(lengths).epoch(0))
    assert padded < 1.05 * sum(lengths)


@pytest.mark.parametrize("tokens", [None, 30])
def test_walking_from_a_position_is_the_rest_of_the_walk(tokens: int | None) -> None:
    batches = plan([1 + index % 9 for index in range(22)], None if tokens else 4, tokens, accumulate=2)
    whole = list(walk(batches, epoch=0, index=0, steps=11))
    assert len(whole) == 11
    for done in range(1, 11):
        last = whole[done - 1]
        assert list(walk(batches, epoch=last.epoch, index=last.index + 1, steps=11 - done)) == whole[done:]


def test_steps_count_the_windows() -> None:
    batches = plan([5] * 22, 4, accumulate=2)
    assert [len(batches.windows(epoch)) for epoch in range(2)] == [3, 3]
    assert batches.steps(1) == 3 and batches.steps(2.5) == 8 and batches.steps(0.01) == 1


def test_the_longest_batch_bounds_every_other() -> None:
    lengths = [1 + (index * 37) % 100 for index in range(90)]
    batches = plan(lengths)
    worst = longest_batch(batches)
    size = len(worst) * max(lengths[index] for index in worst)
    assert all(len(b) * max(lengths[i] for i in b) <= size for epoch in range(3) for b in batches.epoch(epoch))


def test_eval_batches_keep_to_the_limit() -> None:
    assert sorted(i for b in eval_batches([3, 1, 2, 9], 2, None, 3) for i in b) == [0, 1, 2]


def test_collate_pads_on_the_right() -> None:
    batch = collate([Ex([5, 6, 7], [0.0, 1.0, 0.5]), Ex([8], [0.0])], (4, 9), pad_id=2)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert batch.attention_mask is not None and batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.where.tolist() == [[0, 0], [1, 2]]
    assert (batch.tokens, batch.trained, batch.weight, batch.rows) == (4, 2, 1.5, (4, 9))
    assert collate([Ex([5], [0.0])], (0,), pad_id=2).attention_mask is None


def test_collate_labels_and_types() -> None:
    batch = collate([Ex([5], [0.0], 1, [1]), Ex([5, 6], [0.0, 0.0], 0)], (0, 1), pad_id=0)
    assert batch.labels is not None and batch.labels.tolist() == [1, 0] and batch.labels.dtype == torch.int64
    assert batch.types is not None and batch.types.tolist() == [[1, 0], [0, 0]]
    assert batch.weight == batch.trained == 2
