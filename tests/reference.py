"""LoRA in float64 numpy, written from the paper's formula and from nothing in ``src``.

Hu et al. 2021 (arXiv:2106.09685), equation 3: h = W0 x + (alpha / r) B A x. An embedding is the same map for one-hot
x; a fused projection takes the term on some of its output rows. ``W`` is always (out, in) here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass
class Term:
    """One low-rank term: A (r, in), B (rows, r), the rows of the output it is added to, a weight in a mix."""

    A: Array
    B: Array
    alpha: float
    rows: list[int] | None = None
    stabilized: bool = False
    weight: float = 1.0

    @property
    def scale(self) -> float:
        r = self.A.shape[0]
        return self.weight * self.alpha / (r**0.5 if self.stabilized else r)


def select(rows: list[int] | None, width: int) -> Array:
    """Matrix that puts a term's outputs at their rows: (width, len(rows))."""
    eye = np.eye(width)
    return eye if rows is None else eye[:, rows]


def delta(terms: list[Term], width: int) -> Array:
    """The whole update of W."""
    total = np.zeros((width, terms[0].A.shape[1]))
    for term in terms:
        total += term.scale * select(term.rows, width) @ term.B @ term.A
    return total


def forward(W: Array, bias: Array | None, x: Array, terms: list[Term]) -> Array:
    """Output for inputs x of shape (n, in)."""
    out = x @ W.T
    for term in terms:
        out = out + term.scale * ((x @ term.A.T) @ term.B.T) @ select(term.rows, W.shape[0]).T
    return out if bias is None else out + bias


def magnitude(W: Array, bias: Array | None, x: Array, terms: list[Term]) -> Array:
    """The same sum over absolute values: what rounding errors are relative to."""
    wide = [Term(abs(t.A), abs(t.B), abs(t.alpha), t.rows, t.stabilized, abs(t.weight)) for t in terms]
    return forward(abs(W), None if bias is None else abs(bias), abs(x), wide)


def gradients(W: Array, x: Array, terms: list[Term], dy: Array) -> tuple[list[tuple[Array, Array]], Array]:
    """Gradients of sum(dy * forward): [(dA, dB)] and dx."""
    dx = dy @ W
    pairs = []
    for term in terms:
        up = term.scale * dy @ select(term.rows, W.shape[0])
        pairs.append(((up @ term.B).T @ x, up.T @ (x @ term.A.T)))
        dx = dx + up @ term.B @ term.A
    return pairs, dx


def onehot(ids: Array, vocab: int) -> Array:
    """Token ids as the linear map sees them."""
    return np.eye(vocab)[ids.reshape(-1)]


def lookup_gradient(dA: Array, ids: Array, padding: int | None, by_frequency: bool) -> Array:
    """What torch's options make of the gradient of A, whose columns belong to tokens."""
    dA = dA.copy()
    if by_frequency:
        for token in set(ids.reshape(-1).tolist()):
            dA[:, token] /= (ids == token).sum()
    if padding is not None:
        dA[:, padding] = 0
    return dA


def bounded(rows: Array, limit: float) -> Array:
    """Rows scaled down to a largest norm."""
    norm = np.sqrt((rows**2).sum(-1, keepdims=True))
    return np.where(norm > limit, rows * limit / np.maximum(norm, 1e-300), rows)


def blocked(part: str, query: int, key: int) -> list[int]:
    """Rows of q, k, v laid out one after another, k and v of one size."""
    start = {"q": 0, "k": query, "v": query + key}[part]
    return list(range(start, start + (query if part == "q" else key)))


def per_head(part: str, heads: int, size: int) -> list[int]:
    """Rows of q, k, v laid out head by head."""
    at = "qkv".index(part)
    return [head * 3 * size + at * size + i for head in range(heads) for i in range(size)]


def halves(part: str, width: int) -> list[int]:
    """Rows of gate, then up."""
    return list(range(width // 2)) if part == "gate" else list(range(width // 2, width))
