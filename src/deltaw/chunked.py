"""The loss head: a projection to the vocabulary and its cross-entropy, without the logits of all tokens at once.

Legend: K tokens, H hidden size, V vocabulary, C tokens of a chunk. For one token with hidden state h, target t and
weight w, with e the label smoothing, s the logit scale and c the soft cap::

    a = s (W h + b)                     z = c tanh(a / c)            (z = a where there is no cap)
    loss = log sum exp z - (1 - e) z[t] - e mean z

The gradient of w loss, with p = softmax(z) and y the one at t::

    dz = w (p - (1 - e) y - e / V)      da = dz (1 - (z / c)^2)      dr = s da        (r = W h + b)
    dh = W^T dr                         dW = sum of dr h^T           db = sum of dr

Nothing in it waits for the backward but the factor that the loss is multiplied with, so it is formed in the forward, in
the very buffer that held the logits. What is kept is dh (K, H), and dW (V, H) and db (V) only where they are trained;
the backward multiplies. Chunks of tokens share one buffer of (C, V) float32 numbers, a second one with a cap or where
a GPU multiplies in a narrower dtype. On a CPU a head in bfloat16 or float16 is read in float32 blocks: the logits are
not rounded, and the products run on the units that every CPU has.

Where each token's loss gets a factor of its own in the backward and the head is trained, no sum can be formed before;
there the backward walks the chunks a second time.

Source:
    Hsu et al. 2024, arXiv:2410.10989 (fused linear cross-entropy), form the gradient of chunks in the forward; label
    smoothing is Szegedy et al. 2015, arXiv:1512.00567, section 7, the cap Gemma Team 2024, arXiv:2408.00118, section 2.
    The gradients above are the derivatives of these formulas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Job", "Rules", "chunk_tokens", "chunks", "loss_and_gradient", "rows_with_weight", "token_losses", "walk",
    "wide_dtype",
]  # fmt: skip

# Below 256 tokens both products slow down (1.0 to 1.3 times the full form at 64 and 128); above, only memory grows.
LEAST_TOKENS = 256
# 32 MiB of float32: a vocabulary of 32k gives 256 tokens, a smaller one more, so that short loops stay short.
CHUNK_VALUES = 2**23
# Values of a narrow head that are read in float32 at a time.
BLOCK_VALUES = 2**22


class Rules(NamedTuple):
    """What happens between the projection and the loss.

    Args:
        label_smoothing: share of the target that is spread over the vocabulary, 0 to 1.
        logit_scale: factor on the logits.
        soft_cap: bound c of c tanh(logits / c), after the scale; None for none.
    """

    label_smoothing: float = 0.0
    logit_scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, raw: Tensor) -> Tensor:
        """Apply scale and cap, in the plain form.

        Args:
            raw: projections, any shape and float dtype.

        Returns:
            Logits like ``raw``.

        Example:
            >>> Rules(logit_scale=0.5, soft_cap=1.0).logits(torch.tensor([0.0, 1e4])).tolist()
            [0.0, 1.0]
        """
        out = raw if self.logit_scale == 1.0 else raw * self.logit_scale
        return out if self.soft_cap is None else self.soft_cap * torch.tanh(out / self.soft_cap)


class Job(NamedTuple):
    """How a loss is computed.

    Args:
        rules: scale, cap and smoothing.
        size: tokens of a chunk; None chooses by the vocabulary.
        skip: look for tokens of weight zero and leave them out.
        each: the loss of each token is wanted, not their sum.
    """

    rules: Rules
    size: int | None = None
    skip: bool = True
    each: bool = False


def token_losses(raw: Tensor, targets: Tensor, rules: Rules) -> Tensor:
    """Cross-entropy of each token in the plain form that the chunks are measured against.

    Args:
        raw: projections, shape (K, V), any float dtype.
        targets: int64, shape (K,).
        rules: scale, cap and smoothing.

    Returns:
        Losses in nats, shape (K,), at least float32.
    """
    logits = rules.logits(raw.to(wide_dtype(raw.dtype)))
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=rules.label_smoothing)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses: float32, or float64 for float64.

    Args:
        dtype: of the hidden states.

    Returns:
        A dtype.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_tokens(vocabulary: int | None) -> int:
    """Tokens whose logits are in memory at once.

    Args:
        vocabulary: V, or None where it is not known.

    Returns:
        At least 256.

    Example:
        >>> chunk_tokens(32_000), chunk_tokens(152_064), chunk_tokens(1024)
        (262, 256, 8192)
    """
    return LEAST_TOKENS if vocabulary is None else max(LEAST_TOKENS, CHUNK_VALUES // vocabulary)


def rows_with_weight(weights: Tensor) -> Tensor | None:
    """Find the tokens that count.

    Args:
        weights: shape (K,).

    Returns:
        Their places, int64; None where all count.
    """
    rows = weights.nonzero()[:, 0]
    return None if len(rows) == len(weights) else rows


def chunks(count: int, size: int, rows: Tensor | None) -> Iterator[Any]:
    """Cut tokens into chunks.

    Args:
        count: K.
        size: C.
        rows: places of those that count, or None for all.

    Yields:
        Any: what indexes the tokens of one chunk: a slice, which copies nothing, or places.
    """
    for start in range(0, count if rows is None else len(rows), size):
        yield slice(start, min(start + size, count)) if rows is None else rows[start : start + size]


def loss_and_gradient(z: Tensor, targets: Tensor, weights: Tensor, rules: Rules, gradient: bool) -> Tensor:
    """Losses of a chunk; its projections become the gradient in place.

    Args:
        z: projections r, float32 or float64, shape (C, V); afterwards dr, or of no meaning.
        targets: int64, shape (C,).
        weights: dtype of ``z``, shape (C,).
        rules: scale, cap and smoothing.
        gradient: whether dr is wanted.

    Returns:
        Weighted losses, shape (C,).
    """
    smoothing, scale, cap = rules
    t, w, squeezed = targets.unsqueeze(1), weights.unsqueeze(1), None
    if scale != 1.0:
        z.mul_(scale)
    if cap is not None:
        z.div_(cap).tanh_()
        squeezed = z.clone() if gradient else None
        z.mul_(cap)
    z.sub_(z.amax(1, keepdim=True))
    hit = z.gather(1, t)
    if smoothing:
        hit = (1 - smoothing) * hit + smoothing * z.mean(1, keepdim=True)
    total = z.exp_().sum(1, keepdim=True)
    losses = (total.log() - hit) * w
    if gradient:
        z.mul_(w / total)
        z.scatter_add_(1, t, (smoothing - 1) * w)
        if smoothing:
            z.sub_(w * (smoothing / z.shape[1]))
        if squeezed is not None:
            z.mul_(squeezed.square_().neg_().add_(1))
        if scale != 1.0:
            z.mul_(scale)
    return losses.squeeze(1)


class _Projection:
    """r = W h + b and its gradients, for chunks that share buffers.

    Args:
        weight: shape (V, H).
        bias: shape (V,), or None.
        size: C.
        wide: dtype of the logits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, size: int, wide: torch.dtype) -> None:
        self.weight, self.bias, self.wide = weight, bias, wide
        narrow = weight.dtype != wide
        self.blocks = max(1, BLOCK_VALUES // weight.shape[1]) if narrow and weight.device.type == "cpu" else 0
        self.z = weight.new_empty(size, weight.shape[0], dtype=wide)
        self.low = weight.new_empty(self.z.shape) if narrow and not self.blocks else None

    def _parts(self, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some of the vocabulary at a time: columns of a chunk and the head's rows, cast where used."""
        for start in range(0, len(self.weight), self.blocks):
            stop = start + self.blocks
            yield columns[:, start:stop], self.weight[start:stop]

    def forward(self, h: Tensor) -> Tensor:
        """Projections of a chunk in the wide dtype, in the shared buffer."""
        z = self.z[: len(h)]
        if self.blocks:
            h = h.to(self.wide)
            for part, rows in self._parts(z):
                torch.mm(h, rows.to(self.wide).t(), out=part)
        elif self.low is not None:
            z.copy_(torch.mm(h, self.weight.t(), out=self.low[: len(h)]))
        else:
            torch.mm(h, self.weight.t(), out=z)
        return z if self.bias is None else z.add_(self.bias)

    def backward(self, dr: Tensor) -> Tensor:
        """dh of a chunk, in the head's dtype or wider."""
        if self.blocks:
            dh = dr.new_zeros(len(dr), self.weight.shape[1])
            for part, rows in self._parts(dr):
                dh.addmm_(part, rows.to(self.wide))
            return dh
        if self.low is not None:
            dr = self.low[: len(dr)].copy_(dr)
        return torch.mm(dr, self.weight)


def walk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, job: Job,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Losses, and the gradients of their sum, chunk by chunk.

    Args:
        hidden: shape (K, H), in the dtype of ``weight``.
        weight: shape (V, H).
        bias: shape (V,), or None.
        targets: int64, shape (K,); not read where the weight is zero and tokens are skipped.
        weights: float, shape (K,).
        job: how.
        needs: which gradients are wanted: of hidden, weight, bias.

    Returns:
        Weighted losses, shape (K,), at least float32; gradients like ``hidden``, ``weight`` and ``bias``, or None.
    """
    wide = wide_dtype(hidden.dtype)
    weights = weights.to(wide)
    rows = rows_with_weight(weights) if job.skip else None
    size = job.size or chunk_tokens(len(weight))
    count = len(hidden) if rows is None else len(rows)
    losses = weights.new_zeros(len(hidden))
    dh = torch.zeros_like(hidden) if needs[0] else None
    # summed over chunks in the wide dtype and rounded once, as one product over all tokens would be
    dW = torch.zeros_like(weight, dtype=wide) if needs[1] else None
    db = torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None
    head = _Projection(weight, bias, min(size, count), wide)
    for place in chunks(len(hidden), size, rows):
        h = hidden[place]
        z = head.forward(h)
        losses[place] = loss_and_gradient(z, targets[place], weights[place], job.rules, any(needs))
        if dh is not None:
            dh[place] = head.backward(z).to(dh.dtype)
        if dW is not None:
            dW.addmm_(z.t(), h.to(wide))
        if db is not None:
            db += z.sum(0)
    return (
        losses,
        dh,
        dW if dW is None else dW.to(weight.dtype),
        db if bias is None or db is None else db.to(bias.dtype),
    )
