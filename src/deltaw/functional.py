"""LoRA as a handful of pure functions: the page to read first.

A frozen weight W of a linear map y = W x gets a low-rank update (Hu et al. 2021, arXiv:2106.09685, eq. 3)::

    h = W x + scaling * B (A x)            A: (R, I)   B: (O, R)   W: (O, I)

Only A and B are trained. B (or, for an embedding, A) starts at zero, so the first output is the base's own. Merging
adds ``scaling * B A`` to W once and for all; the model is then as fast as it was.

Shape legend: N rows (any leading axes), I input features, O output features, R rank. An embedding is the same map
with one-hot inputs: I is the vocabulary, O the embedding size, and its table is stored as (I, O).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.errors import ConfigError
from deltaw.indexed import index_add

__all__ = [
    "add_term",
    "all_finite",
    "compute_dtype",
    "delta_weight",
    "drop",
    "drop_mask",
    "embed_down",
    "kept_factor",
    "linear_down",
    "linear_up",
    "mask_blocks",
    "merge_weight",
    "scaling_of",
]


_PIECE = 1 << 20
_BLOCK = 1 << 18


def scaling_of(rank: int, alpha: float, rank_stabilized: bool = False) -> float:
    """Factor on the low-rank term: alpha / rank, or alpha / sqrt(rank) when rank-stabilized.

    Args:
        rank: inner dimension R, at least 1.
        alpha: numerator, no unit.
        rank_stabilized: divide by sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732).

    Returns:
        The scaling, no unit.

    Raises:
        ConfigError: if rank is below 1.

    Source:
        arXiv:2106.09685, section 4.1.

    Example:
        >>> scaling_of(8, 16.0), scaling_of(16, 16.0, rank_stabilized=True)
        (2.0, 4.0)
    """
    if rank < 1:
        raise ConfigError(
            "a scaling needs a rank of at least 1",
            where="rank",
            got=str(rank),
            expected="an integer >= 1",
            hint="use rank=0 only to attach nothing.",
        )
    return alpha / math.sqrt(rank) if rank_stabilized else alpha / rank


def linear_down(x: Tensor, lora_A: Tensor) -> Tensor:
    """First half of the term: x A^T, in the dtype of ``x``.

    The factor is cast, never the activation: A is small, x is not.

    Args:
        x: input, shape (..., I), floating.
        lora_A: down projection, shape (R, I).

    Returns:
        Tensor of shape (..., R), dtype of ``x`` (or autocast's).

    Example:
        >>> linear_down(torch.ones(2, 4), torch.ones(1, 4)).tolist()
        [[4.0], [4.0]]
    """
    return F.linear(x, lora_A.to(x.dtype))


def embed_down(
    ids: Tensor, lora_A: Tensor, padding_idx: int | None, scale_grad_by_freq: bool, dtype: torch.dtype
) -> Tensor:
    """First half of the term for an embedding: columns of A picked by token.

    Args:
        ids: token ids, any shape, integer.
        lora_A: down projection, shape (R, I) with I the vocabulary.
        padding_idx: the id whose column never gets a gradient, or None.
        scale_grad_by_freq: divide gradients by the token's count in the batch, as the base does.
        dtype: of the result.

    Returns:
        Tensor of shape (*ids.shape, R).

    Example:
        >>> embed_down(torch.tensor([1]), torch.tensor([[5.0, 7.0]]), None, False, torch.float32).tolist()
        [[7.0]]
    """
    return F.embedding(ids, lora_A.t(), padding_idx, scale_grad_by_freq=scale_grad_by_freq).to(dtype)


def linear_up(h: Tensor, lora_B: Tensor) -> Tensor:
    """Second half of the term: h B^T, not yet scaled.

    Args:
        h: what ``linear_down`` or ``embed_down`` returned, shape (..., R).
        lora_B: up projection, shape (O, R).

    Returns:
        Tensor of shape (..., O), dtype of ``h``.

    Example:
        >>> linear_up(torch.ones(1, 1), torch.tensor([[3.0], [4.0]])).tolist()
        [[3.0, 4.0]]
    """
    return F.linear(h, lora_B.to(h.dtype))


def add_term(out: Tensor, term: Tensor, scaling: float, rows: Tensor | None = None) -> Tensor:
    """The sum: out + scaling * term, on all output features or on some of them.

    Args:
        out: the base's output, shape (..., O).
        term: what ``linear_up`` returned; shape (..., len(rows)) with ``rows``.
        scaling: factor on the term.
        rows: int64 indices of the output features that the term speaks of; None means all.

    Returns:
        Tensor of shape (..., O), dtype of ``out``.

    Source:
        arXiv:2106.09685, eq. 3.

    Example:
        >>> add_term(torch.zeros(1, 2), torch.tensor([[3.0]]), 0.5, torch.tensor([1])).tolist()
        [[0.0, 1.5]]
    """
    term = term.to(out.dtype)
    if rows is None:
        return out.add(term, alpha=scaling)
    return index_add(out, rows, term, scaling)


def mask_blocks(
    shape: torch.Size, probability: float, seed: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """The mask of an inverted dropout, a function of its seed alone, so that it can be drawn again; block by block.

    Drawing is most of dropout's cost, so every entry gets one byte of a 64-bit number. A byte alone would know
    multiples of 1 / 256; the threshold it is compared with is one of two neighbours, drawn for each row, so that every
    entry is dropped with the probability asked for, to 2^-24. On a CPU, blocks of rows fit its cache, and their memory
    is used again; fresh memory costs more than the arithmetic.

    Args:
        shape: of what is to be dropped; its last axis are the rows' entries.
        probability: share of entries set to zero, in [0, 1).
        seed: seed of the mask; the global generators are not touched.
        dtype: of the mask.
        device: of the mask.

    Yields:
        A range of rows; and ones where an entry is kept and zeros elsewhere, shape (rows, entries).

    Example:
        >>> [(_, mask)] = mask_blocks(torch.Size([1, 1000]), 0.5, 3, torch.float32, torch.device("cpu"))
        >>> set(mask.view(-1).tolist()) == {0.0, 1.0}, 400 < int(mask.sum()) < 600
        (True, True)
    """
    wide = shape[-1] if shape else 1
    count = shape.numel() // max(1, wide)
    low, share = divmod(_grain(probability), 2**16)
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.empty(count, 1, dtype=torch.int64, device=device).random_(0, 2**16, generator=generator)
    limits = low + (rows < share).to(torch.int64)
    thresholds = limits.clamp_max(255).to(torch.uint8)
    step = max(1, count) if device.type != "cpu" else max(8, _BLOCK // max(1, wide) // 8 * 8)
    for start in range(0, count, step):
        size = min(step, count - start)
        words = torch.empty(-(-size * wide // 8), dtype=torch.int64, device=device)
        words.random_(-(2**63), None, generator=generator)
        lanes = words.view(torch.uint8)[: size * wide].view(size, wide)
        here = slice(start, start + size)
        # written as numbers at once: products with booleans cost five times more
        mask = torch.empty(size, wide, dtype=dtype, device=device)
        torch.ge(lanes, thresholds[here], out=mask)
        if low == 255:
            mask.mul_(limits[here] < 256)
        yield here, mask


def _grain(probability: float) -> int:
    return round(probability * 2**24)


def kept_factor(probability: float) -> float:
    """Factor on the entries that an inverted dropout keeps.

    Args:
        probability: share of entries set to zero, in [0, 1).

    Returns:
        1 / (1 - p), for the probability that masks are drawn with.

    Example:
        >>> kept_factor(0.5)
        2.0
    """
    return 2**24 / (2**24 - _grain(probability))


def drop_mask(
    shape: torch.Size, probability: float, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, float]:
    """The blocks of ``mask_blocks`` as one mask.

    Args:
        shape: of what is to be dropped.
        probability: share of entries set to zero, in [0, 1).
        seed: seed of the mask.
        dtype: of the mask.
        device: of the mask.

    Returns:
        Ones and zeros of that shape, and the factor on kept entries.

    Example:
        >>> mask, factor = drop_mask(torch.Size([1000]), 0.5, 3, torch.float32, torch.device("cpu"))
        >>> mask.shape, factor
        (torch.Size([1000]), 2.0)
    """
    blocks = [mask for _, mask in mask_blocks(shape, probability, seed, dtype, device)]
    mask = torch.cat(blocks) if blocks else torch.ones(shape, dtype=dtype, device=device)
    return mask.view(shape), kept_factor(probability)


def drop(x: Tensor, probability: float, seed: int) -> Tensor:
    """Inverted dropout whose mask depends on ``seed`` alone; see ``drop_mask``.

    Args:
        x: any shape, floating.
        probability: share of entries set to zero, in [0, 1).
        seed: seed of the mask.

    Returns:
        Tensor like ``x``; kept entries are divided by the share that is kept.

    Example:
        >>> x = torch.ones(1000)
        >>> bool(torch.equal(drop(x, 0.5, 3), drop(x, 0.5, 3))), set(drop(x, 0.5, 3).tolist()) == {0.0, 2.0}
        (True, True)
    """
    mask, factor = drop_mask(x.shape, probability, seed, x.dtype, x.device)
    return (x * mask).mul_(factor)


def all_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, found without a second tensor of this size.

    Args:
        tensor: any shape and dtype.

    Returns:
        True for integers too.

    Example:
        >>> all_finite(torch.ones(3)), all_finite(torch.tensor([1.0, float("nan")]))
        (True, False)
    """
    if not tensor.is_floating_point():
        return True
    pieces = (tensor,) if tensor.numel() <= _PIECE else torch.split(tensor.detach().flatten(), _PIECE)
    # a sum is finite only where all terms are; where it is not, it may have overflowed itself
    wide = compute_dtype(tensor.dtype)
    return all(bool(piece.sum(dtype=wide).isfinite()) or bool(torch.isfinite(piece).all()) for piece in pieces)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which weights of ``dtype`` are merged: at least fp32.

    Args:
        dtype: dtype of the stored weight.

    Returns:
        float64 for float64, float32 for everything else.

    Example:
        >>> compute_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def delta_weight(
    lora_A: Tensor, lora_B: Tensor, scaling: float, dtype: torch.dtype = torch.float32, groups: int = 1
) -> Tensor:
    """The update as a dense matrix, scaling * B A. Needed to merge, never to run.

    Args:
        lora_A: shape (R, I), or (R, I / groups, *kernel) of a convolution.
        lora_B: shape (O, R), or (O, R / groups, 1, ...).
        scaling: factor.
        dtype: of the computation and the result.
        groups: number of blocks; each block of outputs sees its own block of A.

    Returns:
        Tensor of shape (O, K), where K is I, or I / groups * kernel.

    Source:
        arXiv:2106.09685, eq. 3.

    Example:
        >>> delta_weight(torch.ones(1, 2), torch.tensor([[1.0], [2.0]]), 2.0).tolist()
        [[2.0, 2.0], [4.0, 4.0]]
    """
    wide_A, wide_B = lora_A.to(dtype).flatten(1), lora_B.to(dtype).flatten(1)
    if groups == 1:
        return (wide_B @ wide_A).mul_(scaling)
    blocks = wide_B.reshape(groups, -1, wide_B.shape[1]) @ wide_A.reshape(groups, -1, wide_A.shape[1])
    return blocks.reshape(wide_B.shape[0], -1).mul_(scaling)


def merge_weight(weight: Tensor, delta: Tensor) -> Tensor:
    """W + delta, added in at least fp32 and rounded once to the dtype of W.

    Args:
        weight: the base weight, any shape, floating.
        delta: the update in the weight's own layout, fp32 or wider.

    Returns:
        A new tensor like ``weight``.

    Example:
        >>> merge_weight(torch.ones(1, dtype=torch.bfloat16), torch.tensor([0.25]))
        tensor([1.2500], dtype=torch.bfloat16)
    """
    wide = compute_dtype(weight.dtype)
    return (weight.to(wide) + delta.to(wide)).to(weight.dtype)
