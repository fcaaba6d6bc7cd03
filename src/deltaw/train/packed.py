"""Several examples side by side in one row, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltaw.errors import DataError
from deltaw.train.batches import Batch, TokenExample
from deltaw.train.isolation import Isolation

__all__ = ["pack"]


def pack(
    examples: Sequence[TokenExample], *, rows: Sequence[int] | None = None, isolation: Isolation | None = None
) -> Batch:
    """Put examples into one row, without padding.

    Positions restart with each example, and no first token is predicted, because what stands before it is another text.
    ``batch.inputs()`` is what the model is called with; for a loss of transformers, labels are
    ``batch.input_ids.masked_fill(batch.weights == 0, -100)``.

    Args:
        examples: at least one; they carry tokens and weights, no label.
        rows: their indices, kept for error messages; counted where None.
        isolation: how the model is told; from ``find_isolation``. Several examples have no inputs without it.

    Returns:
        A batch of shape (1, T) on the CPU, with ``segments`` (counted from 1) and ``positions`` (from 0).

    Raises:
        DataError: if an example has a label: a head that reads one position reads one for each row.

    Example:
        >>> from deltaw.train.data import Example
        >>> batch = pack([Example(ids=[5, 6, 7], weights=[0, 1, 1]), Example(ids=[8, 9], weights=[1, 1])])
        >>> batch.segments.tolist(), batch.positions.tolist(), batch.where.tolist()
        ([[1, 1, 1, 2, 2]], [[0, 1, 2, 0, 1]], [[0, 0, 0], [1, 2, 4]])
    """
    if any(example.label is not None for example in examples):
        raise DataError(
            "examples with a label cannot share a row",
            where="pack",
            got=f"label {next(example.label for example in examples if example.label is not None)!r}",
            expected="examples whose tokens have weights",
            hint="pad them into a batch of one example a row: deltaw.train.batches.collate",
        )
    counts = [len(example.ids) for example in examples]
    weights = [weight for example in examples for weight in (0.0, *example.weights[1:])]
    weigh = torch.tensor([weights], dtype=torch.float32)
    where = weigh.nonzero().T.contiguous()
    types = None
    if any(example.types is not None for example in examples):
        types = torch.tensor([[kind for ex in examples for kind in ex.types or [0] * len(ex.ids)]])
    return Batch(
        input_ids=torch.tensor([[token for example in examples for token in example.ids]], dtype=torch.int64),
        attention_mask=None,
        weights=weigh,
        types=types,
        where=where,
        labels=None,
        rows=tuple(range(len(examples)) if rows is None else rows),
        tokens=sum(counts),
        weight=float(weigh.sum(dtype=torch.float64)),
        trained=where.shape[1],
        segments=torch.arange(1, len(counts) + 1).repeat_interleave(torch.tensor(counts))[None],
        positions=torch.cat([torch.arange(count) for count in counts])[None],
        isolation=isolation,
    )
