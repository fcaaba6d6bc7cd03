"""Figure 8 and Table 7: what an adapter's update has to do with the weight it is added to.

Table 7: with U and V the first r left and right singular vectors of a matrix X, ||U^T W V^T||_F says how much of W lies
in the directions of X; X is Delta W, W itself, or random. The amplification factor is ||Delta W||_F / ||U^T W V^T||_F
with the directions of Delta W (section 7.3): how much what the update stresses was there before.

For random X the directions are uniform, whichever matrix they come from, so that orthonormal bases of Gaussian matrices
stand for them; the expectation of the squared norm is ||W||_F^2 r^2 / (O K).

Legend: O output features, K columns, r directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deltaw.algebra.factored import svd
from deltaw.algebra.similarity import basis_overlaps
from deltaw.errors import ConfigError
from deltaw.paper.analyses.pieces import Piece, drawn_labels, require_side
from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.style import SEQUENTIAL, brief
from deltaw.paper.analyses.subspace import Matrix, gaussian

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AgainstBase", "Projection", "against_base", "amplification"]

TOP = 0.1
"""The share of W's directions that section H.4 looks at."""
_DRAWN, _ROWS = 8, 128


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One weight with its update, in r directions.

    Args:
        label: module path, with its slice.
        directions: r.
        weight_norm: ||W||_F.
        delta_norm: ||Delta W||_F, of the whole update.
        in_delta: ||U^T W V^T||_F in the directions of Delta W.
        in_weight: in those of W itself.
        in_random: in random ones.
        shared: phi of the first r directions of Delta W and the first tenth of W's.
        random_shared: the same with random directions instead of Delta W's.
    """

    label: str
    directions: int
    weight_norm: float
    delta_norm: float
    in_delta: float
    in_weight: float
    in_random: float
    shared: float
    random_shared: float

    @property
    def factor(self) -> float:
        """The amplification factor; infinite where W has nothing in these directions."""
        return amplification(self.delta_norm, self.in_delta)


def amplification(delta_norm: float, in_delta: float) -> float:
    """||Delta W||_F / ||U^T W V^T||_F.

    Args:
        delta_norm: ||Delta W||_F.
        in_delta: ||U^T W V^T||_F with the directions of Delta W.

    Returns:
        The factor; infinite where the second is zero, 0 where both are.

    Source:
        arXiv:2106.09685, section 7.3; its Table 7 gives 6.91 / 0.32 and 3.57 / 1.90.

    Example:
        >>> round(amplification(6.91, 0.32), 1), round(amplification(3.57, 1.90), 2)
        (21.6, 1.88)
    """
    if in_delta == 0:
        return math.inf if delta_norm else 0.0
    return delta_norm / in_delta


@dataclass(frozen=True, kw_only=True)
class AgainstBase(Analysis):
    """An adapter against its base.

    Args:
        adapter: where the adapter came from.
        base: where the base came from.
        side: "A" or "B", of the overlaps.
        projections: Table 7, one entry for each weight and number of directions.
        overlaps: label -> phi of W's first i and Delta W's first j directions; a row for each of ``steps``.
        random_overlaps: the same with random directions instead of Delta W's.
        steps: label -> the numbers i of the rows, evenly from 1 to all of W's directions.
        seed: of what is random.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "subspace-base"

    adapter: str
    base: str
    side: str
    projections: tuple[Projection, ...]
    overlaps: Mapping[str, Matrix]
    random_overlaps: Mapping[str, Matrix]
    steps: Mapping[str, tuple[int, ...]]
    seed: int = 0
    notes: tuple[str, ...] = ()

    def sheet(self) -> Sheet:
        """Table 7's columns for each weight and number of directions."""
        columns = (
            "module", "r", "||W||", "||Delta W||", "in Delta W", "in W", "in random", "amplification", "phi top 10%",
            "random phi",
        )  # fmt: skip
        rows = tuple(
            (
                p.label, p.directions, p.weight_norm, p.delta_norm, p.in_delta, p.in_weight, p.in_random, p.factor,
                p.shared, p.random_shared,
            )
            for p in self.projections
        )  # fmt: skip
        notes = (
            "in X: ||U^T W V^T|| (Frobenius) with the first r left and right singular vectors of X; amplification: "
            "||Delta W|| / in Delta W",
            "phi top 10%: first r directions of Delta W against the first tenth of W's",
        )
        title = f"Delta W of {self.adapter} against W of {self.base}"
        return Sheet(title=title, columns=columns, rows=rows, notes=notes + self.notes)

    def details(self) -> Mapping[str, Any]:
        """The grids of figure 8."""
        return {
            "side": self.side,
            "seed": self.seed,
            "i": self.steps,
            "phi": self.overlaps,
            "random_phi": self.random_overlaps,
        }

    @property
    def _shown(self) -> list[str]:
        return drawn_labels(self.overlaps, _DRAWN)

    @property
    def size(self) -> tuple[float, float]:
        """A column for each weight that is drawn."""
        return 2.2 + 1.5 * len(self._shown), 5.6

    def draw(self, figure: Figure) -> None:
        """Figure 8: W's directions against Delta W's, and against random ones below.

        Args:
            figure: an empty one of ``size``.
        """
        shown = self._shown
        rows = figure.subplots(2, len(shown), squeeze=False, sharey="col")
        most = max(max(map(max, grid)) for grids in (self.overlaps, self.random_overlaps) for grid in grids.values())
        kinds = ((self.overlaps, "Delta W"), (self.random_overlaps, "random"))
        for row, (grids, word) in zip(rows, kinds, strict=True):
            for place, (axes, label) in enumerate(zip(row, shown, strict=True)):
                grid = grids[label]
                image = axes.imshow(
                    grid, cmap=SEQUENTIAL, vmin=0, vmax=most, aspect="auto", interpolation="nearest",
                    extent=(0.5, len(grid[0]) + 0.5, self.steps[label][-1] + 0.5, 0.5),
                )  # fmt: skip
                axes.set_xticks(sorted({1, len(grid[0])}))
                axes.set_xlabel(f"j, {word}")
                if place == 0:
                    axes.set_ylabel("i, directions of W")
                if grids is self.overlaps:
                    axes.set_title("\n".join(_halves(brief(label, 30))), fontsize=7)
        figure.colorbar(image, ax=rows, label="phi(i, j)", shrink=0.7)
        left = len(self.overlaps) - len(shown)
        more = f" ({left} more in the table)" if left else ""
        figure.suptitle(f"Directions of W shared by Delta W and by random ones{more}\n{_last(self.adapter)}")


def _halves(label: str) -> tuple[str, ...]:
    head, _, tail = label.rpartition(".")
    return (head, tail) if len(label) > 14 and head else (label,)


def _last(name: str) -> str:
    return "/".join(name.rstrip("/").split("/")[-2:])


def against_base(
    pieces: Mapping[str, Piece],
    weights: Mapping[str, Tensor],
    *,
    directions: Sequence[int] = (),
    side: str = "A",
    seed: int = 0,
    names: tuple[str, str] = ("the adapter", "the base"),
    notes: Sequence[str] = (),
) -> AgainstBase:
    """Compare updates with the weights they are added to.

    Args:
        pieces: label -> update.
        weights: label -> W, shape (O, K), any float dtype and device; one at a time is turned into float64.
        directions: numbers of directions for Table 7; empty takes each update's rank.
        side: "A": overlaps of input directions; "B": of output directions.
        seed: of what is random.
        names: where adapter and base came from.
        notes: to print along.

    Returns:
        The tables and grids.

    Raises:
        ConfigError: if more directions are asked for than an update has.

    Source:
        arXiv:2106.09685, section 7.3, Table 7, figure 8, section H.4.
    """
    require_side(side)
    projections: list[Projection] = []
    phi: dict[str, Matrix] = {}
    chance: dict[str, Matrix] = {}
    steps: dict[str, tuple[int, ...]] = {}
    for label, piece in pieces.items():
        found, phi[label], chance[label], steps[label] = _weight(piece, weights[label], tuple(directions), side, seed)
        projections += found
    return AgainstBase(
        adapter=names[0],
        base=names[1],
        side=side,
        projections=tuple(projections),
        overlaps=phi,
        random_overlaps=chance,
        steps=steps,
        seed=seed,
        notes=tuple(notes),
    )


def _weight(
    piece: Piece, stored: Tensor, directions: Sequence[int], side: str, seed: int
) -> tuple[list[Projection], Matrix, Matrix, tuple[int, ...]]:
    """Table 7's rows and figure 8's two grids of one weight, with the rows' numbers of directions."""
    W = stored.detach().to("cpu", torch.float64)
    U, values, V = svd(piece.lora_A, piece.lora_B)
    values = values * abs(piece.scaling)
    rank = int((values > float(values[0]) * max(W.shape) * torch.finfo(torch.float64).eps).sum())
    _require_directions(piece, directions, rank)
    U_W, S_W, V_W = torch.linalg.svd(W, full_matrices=False)
    # orthonormal bases of Gaussian matrices: uniformly random directions
    U_R = torch.linalg.qr(gaussian((W.shape[0], rank), seed, f"{piece.label}, left")).Q
    V_R = torch.linalg.qr(gaussian((W.shape[1], rank), seed, f"{piece.label}, right")).Q
    delta, chance = (V[:, :rank].t(), V_R.t()) if side == "A" else (U[:, :rank].t(), U_R.t())
    own = V_W if side == "A" else U_W.t()
    phi, random_phi = basis_overlaps(own, delta), basis_overlaps(own, chance)
    top = max(1, round(TOP * own.shape[0]))
    found = [
        Projection(
            label=piece.label,
            directions=r,
            weight_norm=float(W.norm()),
            delta_norm=float(values.norm()),
            in_delta=float((U[:, :r].t() @ W @ V[:, :r]).norm()),
            in_weight=float(S_W[:r].norm()),
            in_random=float((U_R[:, :r].t() @ W @ V_R[:, :r]).norm()),
            shared=float(phi[top - 1, r - 1]),
            random_shared=float(random_phi[top - 1, r - 1]),
        )
        for r in (directions or (rank,))
    ]
    steps = torch.linspace(0, own.shape[0] - 1, min(_ROWS, own.shape[0])).round().long()
    grids = [tuple(map(tuple, grid[steps].tolist())) for grid in (phi, random_phi)]
    return found, grids[0], grids[1], tuple((steps + 1).tolist())


def _require_directions(piece: Piece, directions: Sequence[int], rank: int) -> None:
    wrong = [r for r in directions if not 1 <= r <= rank]
    if rank == 0 or wrong:
        raise ConfigError(
            "an update has as many directions as its rank at most",
            where=f"--directions, module '{piece.label}'",
            got=", ".join(map(str, wrong)) or "an update that is zero",
            expected=f"numbers from 1 to {rank}" if rank else "a trained adapter",
            hint="leave --directions out for the whole rank; deltaw inspect shows the ranks.",
        )
