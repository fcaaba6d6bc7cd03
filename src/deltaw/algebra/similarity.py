"""How two adapters relate: cosine of their updates, and the overlap of the subspaces that A and B span.

phi(A, B, i, j) = ||U_A^i^T U_B^j||_F^2 / min(i, j) compares the span of the first i singular directions of one factor
with that of the first j of another: 1 where the smaller lies in the larger, 0 where they are orthogonal. As in the
paper, the directions of lora_A are its right singular vectors (input space), those of lora_B its left ones (output
space), each factor taken by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.check import check_bases, check_shapes
from deltaw.algebra.factored import norm, relation
from deltaw.algebra.parts import Update, named, natural, parts_of
from deltaw.errors import CheckpointError, ConfigError, nearest
from deltaw.reports import table

__all__ = ["ModuleSimilarity", "Similarity", "basis_overlaps", "compare", "overlaps", "subspace_similarity"]

_MANY = 48
_SIDES = ("A", "B")


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """phi for all numbers of directions of two factors at once.

    Args:
        one: shape (R, K), rows span the space: lora_A, or lora_B transposed; any float dtype.
        other: shape (R', K).

    Returns:
        Shape (r, r') float64 in [0, 1] with r, r' the numerical ranks; entry (i - 1, j - 1) is phi at i and j.

    Source:
        arXiv:2106.09685, eq. 4 (there with the spans of two trained A, or two trained B).

    Example:
        >>> overlaps(torch.eye(2, 3), torch.eye(1, 3)).tolist()
        [[1.0], [1.0]]
    """
    return basis_overlaps(_directions(one), _directions(other))


def basis_overlaps(U: Tensor, V: Tensor) -> Tensor:
    """phi for all numbers of directions of two ordered bases.

    Args:
        U: shape (r, K), orthonormal rows in the order of their singular values, float64.
        V: shape (r', K), likewise.

    Returns:
        Shape (r, r') in [0, 1]; entry (i - 1, j - 1) is phi at i and j.

    Example:
        >>> basis_overlaps(torch.eye(2), torch.eye(2).flip(0)).tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    squares: Tensor = (U @ V.t()).square().cumsum(0).cumsum(1)
    rows, columns = (torch.arange(1, size + 1) for size in squares.shape)
    shares: Tensor = squares / torch.minimum(rows.unsqueeze(1), columns)
    return shares.clamp(0.0, 1.0)


def _directions(factor: Tensor) -> Tensor:
    """Orthonormal rows: the right singular vectors of a factor that are not rounding noise."""
    wide = factor.detach().to(torch.float64)
    Q, R = torch.linalg.qr(wide.t())
    left, values, _ = torch.linalg.svd(R, full_matrices=False)
    floor = float(values[0]) * max(wide.shape) * torch.finfo(torch.float64).eps
    rows: Tensor = (Q @ left[:, : int((values > floor).sum())]).t()
    return rows


def subspace_similarity(one: Tensor, other: Tensor, i: int, j: int) -> float:
    """The paper's normalized subspace similarity phi at i and j.

    Args:
        one: shape (R, K), rows span the space: lora_A, or lora_B transposed.
        other: shape (R', K).
        i: directions of ``one``.
        j: directions of ``other``.

    Returns:
        A number in [0, 1].

    Raises:
        ConfigError: if a factor has not that many directions.

    Source:
        arXiv:2106.09685, eq. 4.

    Example:
        >>> subspace_similarity(torch.eye(2, 4), torch.eye(4)[1:3], 2, 2)
        0.5
    """
    grid = overlaps(one, other)
    for name, number, most in (("i", i, grid.shape[0]), ("j", j, grid.shape[1])):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
            raise ConfigError(
                "a subspace has as many directions as the factor's rank at most",
                where=name,
                got=repr(number),
                expected=f"a whole number from 1 to {most}" if most else "a factor that is not zero",
                hint="a factor whose rows depend on each other spans less than its rank says.",
            )
    return float(grid[i - 1, j - 1])


@dataclass(frozen=True, kw_only=True)
class ModuleSimilarity:
    """How the updates of one module relate.

    Args:
        path: module path.
        cosine: <D, D'> / (||D|| ||D'||) of the two updates; 0 where one is zero.
        norms: Frobenius norms of the two updates.
        ranks: their ranks; 0 where an adapter has no update here.
        phi_A: overlap of the whole input subspaces, or None where one is empty.
        phi_B: overlap of the whole output subspaces, likewise.
    """

    path: str
    cosine: float
    norms: tuple[float, float]
    ranks: tuple[int, int]
    phi_A: float | None
    phi_B: float | None


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Two adapters compared; ``str`` is what ``deltaw compare`` prints.

    Args:
        names: where the two came from.
        hashes: their identities.
        cosine: of the two updates over all modules together; a module in one adapter only counts as zero in the other.
        norms: Frobenius norms of the two, over all modules.
        modules: one entry for each module of either.
        notes: what a reader should know.
        factors: path -> (A, B) of each, as matrices, for ``phi``.
        every: print every module, however many there are.
    """

    names: tuple[str, str]
    hashes: tuple[str, str]
    cosine: float
    norms: tuple[float, float]
    modules: tuple[ModuleSimilarity, ...]
    factors: dict[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
    notes: tuple[str, ...] = ()
    every: bool = False

    @property
    def phi_A(self) -> float | None:
        """Mean overlap of the input subspaces over the modules of both."""
        return _mean([m.phi_A for m in self.modules])

    @property
    def phi_B(self) -> float | None:
        """Mean overlap of the output subspaces over the modules of both."""
        return _mean([m.phi_B for m in self.modules])

    def phi(self, path: str, side: str = "A") -> Tensor:
        """The paper's phi of one module for all i and j, its figure 3.

        Args:
            path: module path.
            side: "A" for the input subspaces, "B" for the output ones.

        Returns:
            Shape (r, r'), float64; entry (i - 1, j - 1) is phi(first, second, i, j).

        Raises:
            ConfigError: if no such module is in both, or there is no such side.
        """
        if path not in self.factors or side not in _SIDES:
            raise ConfigError(
                "no such subspaces to compare",
                where="phi",
                got=f"{path!r}, side {side!r}",
                expected="a module that both adapters change, and side 'A' or 'B'",
                hint=f"nearest: {nearest(path, self.factors)}.",
            )
        one, other = (pair[_SIDES.index(side)] for pair in self.factors[path])
        return overlaps(one, other) if side == "A" else overlaps(one.t(), other.t())

    def __str__(self) -> str:
        """The whole, the table of modules, notes."""
        same = (
            "the same content" if self.hashes[0] == self.hashes[1] else f"{self.hashes[0][:12]}, {self.hashes[1][:12]}"
        )
        head = [
            f"a: {self.names[0]}",
            f"b: {self.names[1]}",
            f"hash: {same}",
            f"cosine {self.cosine:+.4f}; norms {self.norms[0]:.4g} and {self.norms[1]:.4g}; "
            f"phi A {_shown(self.phi_A)}, phi B {_shown(self.phi_B)} (means over modules)",
        ]
        return "\n".join([*head, self._table(), *(f"note: {note}" for note in self.notes)])

    def _table(self) -> str:
        if self.every or len(self.modules) < _MANY:
            titles = ("module", "ranks", "norms", "cosine", "phi A", "phi B")
            return table(titles, [(m.path, *_cells([m])) for m in self.modules])
        groups: dict[tuple[str, tuple[int, int]], list[ModuleSimilarity]] = {}
        for module in self.modules:
            groups.setdefault((module.path.rpartition(".")[2], module.ranks), []).append(module)
        rows = [(leaf, len(group), *_cells(group)) for (leaf, _), group in groups.items()]
        header = ("module", "count", "ranks", "norms", "cosine", "phi A", "phi B")
        return table(header, rows) + "\nmeans over the modules of a kind; --modules lists each"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cells(group: Sequence[ModuleSimilarity]) -> tuple[str, ...]:
    norms = " ".join(f"{fmean(m.norms[side] for m in group):.4g}" for side in (0, 1))
    return (
        " ".join(map(str, group[0].ranks)),
        norms,
        f"{fmean(m.cosine for m in group):+.4f}",
        _shown(_mean([m.phi_A for m in group])),
        _shown(_mean([m.phi_B for m in group])),
    )


def compare(one: Adapter, other: Adapter, *, allow_other_base: bool = False) -> Similarity:
    """Compare two adapters on their factors; the dense updates are never formed.

    Args:
        one: an adapter.
        other: another of the same base; ranks and modules may differ.
        allow_other_base: compare adapters whose recorded bases differ.

    Returns:
        The comparison.

    Raises:
        CheckpointError: if the bases or shapes differ, no module is in both, or a file is no LoRA or damaged.
    """
    pair = [one, other]
    notes = check_bases(pair, allow_other_base)
    parts = [parts_of(adapter) for adapter in pair]
    check_shapes(pair, parts)
    first, second = (part.updates for part in parts)
    if not first.keys() & second.keys():
        raise CheckpointError(
            "the adapters have no module in common",
            where=f"{one.where} and {other.where}",
            got=f"{named(first, 2)}; {named(second, 2)}",
            expected="at least one module that both change",
            hint="they change different weights, so the cosine is 0 and there is nothing to compare.",
        )
    found = [
        _module(path, first.get(path), second.get(path)) for path in sorted(first.keys() | second.keys(), key=natural)
    ]
    products = sum(m.cosine * m.norms[0] * m.norms[1] for m in found)
    norms = tuple(math.sqrt(sum(m.norms[side] ** 2 for m in found)) for side in (0, 1))
    for adapter, part, others in zip(pair, parts, (second, first), strict=True):
        lone = [path for path in part.updates if path not in others]
        if lone:
            notes.append(f"only in {adapter.where}: {named(lone)}")
        beside = [*part.magnitudes.values(), *part.whole]
        if beside:
            notes.append(f"not compared, since it is no low-rank update, in {adapter.where}: {named(beside)}")
    return Similarity(
        names=(one.where, other.where),
        hashes=(one.hash, other.hash),
        cosine=_cosine(products, norms[0], norms[1]),
        norms=(norms[0], norms[1]),
        modules=tuple(found),
        factors={path: (_whole(first[path]), _whole(second[path])) for path in first if path in second},
        notes=tuple(notes),
    )


def _cosine(product: float, one: float, other: float) -> float:
    return max(-1.0, min(1.0, product / one / other)) if one and other else 0.0


def _whole(update: Update) -> tuple[Tensor, Tensor]:
    """A and B as one pair of matrices; groups become blocks on the diagonal of B."""
    blocks = update.blocks()
    diagonal: Tensor = torch.block_diag(*(block[1] for block in blocks))  # type: ignore[no-untyped-call]
    return torch.cat([block[0] for block in blocks]), diagonal


def _module(path: str, one: Update | None, other: Update | None) -> ModuleSimilarity:
    norms = tuple(_norm(update) if update is not None else 0.0 for update in (one, other))
    ranks = tuple(update.rank if update is not None else 0 for update in (one, other))
    cosine, phi_A, phi_B = 0.0, None, None
    if one is not None and other is not None:
        found = [relation(a, b) for a, b in zip(one.blocks(), other.blocks(), strict=True)]
        sizes = [math.sqrt(sum(row[side] ** 2 for row in found)) for side in (1, 2)]
        sign = math.copysign(1.0, one.scaling * other.scaling)
        cosine = _cosine(sign * sum(row[0] for row in found), *sizes)
        (A, B), (A2, B2) = _whole(one), _whole(other)
        phi_A, phi_B = _last(overlaps(A, A2)), _last(overlaps(B.t(), B2.t()))
    return ModuleSimilarity(
        path=path, cosine=cosine, norms=(norms[0], norms[1]), ranks=(ranks[0], ranks[1]), phi_A=phi_A, phi_B=phi_B
    )


def _norm(update: Update) -> float:
    return math.sqrt(sum((norm(*block) * update.scaling) ** 2 for block in update.blocks()))


def _last(grid: Tensor) -> float | None:
    return float(grid[-1, -1]) if grid.numel() else None
