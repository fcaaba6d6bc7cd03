"""Packed rows: every example once, capacity kept, a pure function of seed and epoch; and what a row holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_train import make_model

from deltaw.errors import DataError, StateError
from deltaw.train import Isolation, fill_rows, pack, segment_mask
from deltaw.train.batches import BatchPlan, collate, longest_batch, walk
from deltaw.train.data import Example
from deltaw.train.packing import POOL, best_fit, fill_share, fullest_row

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


def plan(lengths: list[int], tokens: int, accumulate: int = 1) -> BatchPlan:
    return BatchPlan(
        lengths=lengths, batch_size=None, batch_tokens=tokens, accumulate=accumulate, seed=3, packing=True
    )  # fmt: skip


@given(LENGTHS, st.integers(1, 100), st.integers(0, 5))
def test_every_example_once_and_capacity_kept(lengths: list[int], tokens: int, epoch: int) -> None:
    rows = plan(lengths, tokens).epoch(epoch)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert row and (len(row) == 1 or sum(lengths[index] for index in row) <= tokens)


@given(LENGTHS, st.integers(1, 100), st.integers(0, 3), st.integers(0, 3))
def test_rows_depend_on_lengths_seed_and_epoch_alone(lengths: list[int], tokens: int, seed: int, epoch: int) -> None:
    torch.rand(1)
    assert fill_rows(lengths, tokens, seed=seed, epoch=epoch) == fill_rows(
        tuple(lengths), tokens, seed=seed, epoch=epoch
    )


@given(LENGTHS, st.integers(1, 100))
def test_best_fit_leaves_no_two_rows_that_fit_into_one(lengths: list[int], tokens: int) -> None:
    loads = sorted(sum(lengths[index] for index in row) for row in best_fit(range(len(lengths)), lengths, tokens))
    assert len(loads) < 2 or loads[0] + loads[1] > tokens


@given(LENGTHS, st.integers(1, 100), st.integers(0, 2))
def test_the_row_that_is_tried_is_the_fullest(lengths: list[int], tokens: int, epoch: int) -> None:
    batches = plan(lengths, tokens)
    tried = batches.size(longest_batch(batches))
    assert max(lengths) <= tried <= max(tokens, *lengths)
    assert all(batches.size(row) <= tried for row in batches.epoch(0))
    greedy = fullest_row(lengths, tokens)
    left = set(range(len(lengths))) - set(greedy)
    assert len(set(greedy)) == len(greedy) and max(lengths[index] for index in greedy) == max(lengths)
    assert all(batches.size(greedy) + lengths[index] > tokens for index in left)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 3), st.integers(1, 30))
def test_walking_from_a_position_is_the_rest_of_the_walk(
    lengths: list[int], tokens: int, accumulate: int, done: int
) -> None:
    """A resumed run makes its plan anew and knows the position alone."""
    whole = list(walk(plan(lengths, tokens, accumulate), epoch=0, index=0, steps=done + 5))
    last = whole[done - 1]
    rest = walk(plan(lengths, tokens, accumulate), epoch=last.epoch, index=last.index + 1, steps=5)
    assert list(rest) == whole[done:]


def test_epochs_and_seeds_mix_differently() -> None:
    lengths = [1 + index % 17 for index in range(400)]
    orders = [fill_rows(lengths, 64, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    partners = [{frozenset(row) for row in rows} for rows in orders]
    assert len(partners[0] & partners[1]) < len(partners[0]) / 4 > len(partners[0] & partners[2])


def test_rows_are_full_over_many_pools() -> None:
    lengths = [1 + (index * 7919) % 101 for index in range(6000)]
    rows = fill_rows(lengths, 256, seed=0, epoch=0)
    assert len(rows) > 10 * POOL and fill_share(rows, lengths, 256) > 0.995


def test_an_example_over_the_budget_is_alone_and_uncut() -> None:
    rows = fill_rows([5, 90, 4, 3], 10, seed=0, epoch=0)
    assert [1] in rows and len(rows) == 3
    assert longest_batch(plan([5, 90, 4, 3], 10)) == [1]
    assert plan([5, 90, 4, 3], 10).padding() == 0.0


def test_an_epoch_is_ordered_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, asked, plain = plan([3, 5, 4, 6] * 20, 12), list[int](), BatchPlan.epoch
    monkeypatch.setattr(BatchPlan, "epoch", lambda self, epoch: (asked.append(epoch), plain(self, epoch))[1])
    assert batches.steps(3) == batches.steps(3) > batches.steps(1)
    assert asked == [0, 1, 2]
    list(walk(batches, epoch=2, index=0, steps=4))
    assert asked == [0, 1, 2]


EXAMPLES = [
    Example(ids=[5, 6, 7], weights=[0.0, 1.0, 0.5]),
    Example(ids=[8, 9], weights=[1.0, 1.0]),
    Example(ids=[4], weights=[1.0]),
]


def test_what_a_row_holds() -> None:
    batch = pack(EXAMPLES, rows=(4, 9, 2))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]] and batch.attention_mask is None
    assert batch.segments is not None and batch.segments.tolist() == [[1, 1, 1, 2, 2, 3]]
    assert batch.positions is not None and batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    # the first tokens of examples have weights of their own and nothing that predicts them
    assert batch.where.tolist() == [[0, 0, 0], [1, 2, 4]]
    assert (batch.tokens, batch.trained, batch.weight, batch.rows) == (6, 3, 2.5, (4, 9, 2))
    assert batch.types is None and batch.labels is None


def test_types_are_kept_and_moved_with_the_rest() -> None:
    typed = Example(ids=[1, 2], weights=[0.0, 1.0], types=[0, 1])
    batch = pack([typed, EXAMPLES[1]]).to(torch.device("meta"))
    assert pack([EXAMPLES[1], typed]).types.tolist() == [[0, 0, 0, 1]]  # type: ignore[union-attr]
    assert {t.device.type for t in vars(batch).values() if isinstance(t, torch.Tensor)} == {"meta"}


def test_a_lone_example_is_called_as_it_would_be_unpacked() -> None:
    assert set(pack(EXAMPLES[:1]).inputs()) == {"input_ids"} == set(collate(EXAMPLES[:1], (0,), 1).inputs())


def test_a_packed_row_without_a_way_is_refused() -> None:
    with pytest.raises(StateError, match="how its examples are kept apart"):
        pack(EXAMPLES).inputs()


def test_labels_are_refused() -> None:
    with pytest.raises(DataError, match="cannot share a row"):
        pack([Example(ids=[1], weights=[0.0], label=1)])


def allowed(**options: Any) -> list[list[int]]:
    mask = segment_mask(torch.tensor([[1, 1, 1, 1, 2, 2]]), **options)
    assert mask.shape == (1, 1, 6, 6) and set(mask.unique().tolist()) == {0.0, torch.finfo(mask.dtype).min}
    return [row.nonzero().flatten().tolist() for row in mask[0, 0] == 0]


def test_masks() -> None:
    assert allowed(causal=True) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [4, 5]]
    assert allowed(causal=True, window=2) == [[0], [0, 1], [1, 2], [2, 3], [4], [4, 5]]
    assert allowed(causal=False, dtype=torch.bfloat16) == [[0, 1, 2, 3]] * 4 + [[4, 5]] * 2


def test_mask_bytes() -> None:
    """Masks made by transformers for SDPA are kept by every layer, as the saved tensors of a step show."""
    way = Isolation()
    assert way.mask_bytes(10, 3, "eager") == 400 and way.mask_bytes(10, 3, "flash_attention_2") == 0
    assert Isolation(windows={"a": 0, "b": 4}).mask_bytes(10, 3, "sdpa") == 800
    tall = [Example(ids=[3 + i % 20 for i in range(30)], weights=[1.0] * 30)] * 2
    ways = (way, Isolation(windows={"": 0}))
    measured, expected = (
        [count(option, tall) for option in ways],
        [option.mask_bytes(60, 2, "sdpa") for option in ways],
    )
    assert measured[0] - measured[1] == pytest.approx(expected[0] - expected[1], abs=60 * 60)


def count(way: Isolation, examples: list[Example]) -> int:
    """Bytes of square tensors that a step keeps, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (60, 60):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = make_model(40)(**pack(examples, isolation=way).inputs()).logits.sum()
    loss.backward()
    return sum(kept.values())
