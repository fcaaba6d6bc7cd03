"""Which examples share a row when rows are packed: best fit decreasing within shuffled pools.

Everything here is a pure function of (lengths, tokens, seed, epoch): a position (epoch, step) is all that a resumed run
needs to know. Best fit decreasing wastes at most 2/9 of the optimum (Johnson et al. 1974, doi 10.1137/0203025); on
rows of many examples it wastes next to nothing.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence

__all__ = ["POOL", "fill_rows", "fill_share", "fullest_row"]

# Examples are put in order of length only within a pool of this many rows (or batches): enough to waste little, few
# enough that every epoch mixes the examples differently.
POOL = 32


def fill_rows(lengths: Sequence[int], tokens: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Put every example of one epoch into a row.

    Args:
        lengths: tokens of each example.
        tokens: capacity of a row. A longer example has a row to itself and is not cut.
        seed: of the order.
        epoch: counted from 0; each has an order of its own.

    Returns:
        Example indices, row by row; every example once.

    Example:
        >>> sorted(map(sorted, fill_rows([3, 9, 2, 5], 5, seed=0, epoch=0)))
        [[0, 2], [1], [3]]
    """
    shuffler = random.Random(f"deltaw rows {seed} {epoch}")
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    pool = POOL * max(1, tokens * len(order) // max(1, sum(lengths)))
    rows: list[list[int]] = []
    rest: list[int] = []
    for start in range(0, len(order), pool):
        found = best_fit([*rest, *order[start : start + pool]], lengths, tokens)
        # The emptiest row of a pool is one that the next pool can fill.
        last = start + pool >= len(order)
        rest = [] if last else found.pop(min(range(len(found)), key=lambda at: _load(found[at], lengths)))
        rows += found
    shuffler.shuffle(rows)
    return rows


def best_fit(order: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Fill rows, the longest example first, each into the fullest row that has room for it.

    Args:
        order: example indices; it decides among examples of one length.
        lengths: tokens of each example.
        tokens: capacity of a row.

    Returns:
        Example indices, row by row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(order, key=lambda index: -lengths[index]):
        at = bisect_left(room, (lengths[index], -1))
        if at == len(room):
            rows.append([])
            left, row = tokens, len(rows) - 1
        else:
            left, row = room.pop(at)
        rows[row].append(index)
        if left > lengths[index]:
            insort(room, (left - lengths[index], row))
    return rows


def fullest_row(lengths: Sequence[int], tokens: int) -> list[int]:
    """Fill one row as no epoch may: the longest example, and of the others the longest that still fit.

    Args:
        lengths: tokens of each example.
        tokens: capacity of a row.

    Returns:
        Example indices; no example that is left out would fit.
    """
    left, row = tokens, list[int]()
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not row or lengths[index] <= left:
            row.append(index)
            left -= lengths[index]
        if left <= 0:
            break
    return row


def fill_share(rows: Sequence[Sequence[int]], lengths: Sequence[int], tokens: int) -> float:
    """Measure how full rows are.

    Args:
        rows: example indices, row by row.
        lengths: tokens of each example.
        tokens: capacity of a row; a longer example counts as a full row.

    Returns:
        Tokens over capacity, at most 1.

    Example:
        >>> fill_share([[0, 2], [1], [3]], [3, 9, 2, 4], 5)
        0.9333333333333333
    """
    return sum(min(tokens, _load(row, lengths)) for row in rows) / (tokens * max(1, len(rows)))


def _load(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in row)
