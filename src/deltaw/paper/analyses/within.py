"""The subspaces of one trained adapter: what each matrix's update is like, and which matrices look in one direction.

The paper compares two runs. One stored adapter has its own question: matrices that read the same kind of input (one
width) can be compared with each other, and with random ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.adapter import Adapter
from deltaw.algebra.factored import singular_values
from deltaw.algebra.similarity import overlaps
from deltaw.errors import ConfigError
from deltaw.paper.analyses.pieces import Piece, chosen, pieces_of, require_side
from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.style import SEQUENTIAL, brief
from deltaw.paper.analyses.subspace import gaussian

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Own", "Within", "within"]

_WORDS = {"A": "input directions", "B": "output directions"}


@dataclass(frozen=True, kw_only=True)
class Own:
    """One matrix of an adapter.

    Args:
        label: module path, with its slice.
        width: dimension of the space.
        rank: numerical rank of the factor.
        norm: Frobenius norm of scaling * B A.
        top: share of the squared norm in the first direction.
        partner: the other matrix whose space overlaps most; None where no other has this width.
        closest: phi of the two whole spaces.
        mean: phi with the others of this width on average.
        control: phi with a random Gaussian matrix of the same shape.
    """

    label: str
    width: int
    rank: int
    norm: float
    top: float
    partner: str | None
    closest: float | None
    mean: float | None
    control: float


@dataclass(frozen=True, kw_only=True)
class Within(Analysis):
    """The matrices of one adapter compared with each other.

    Args:
        source: where it came from.
        hash: its identity.
        side: "A" or "B".
        own: one entry for each matrix.
        phi: overlap of the whole spaces of each two; None where the widths differ.
        seed: of the random matrices.
    """

    name: ClassVar[str] = "subspace"

    source: str
    hash: str
    side: str
    own: tuple[Own, ...]
    phi: tuple[tuple[float | None, ...], ...]
    seed: int = 0

    def sheet(self) -> Sheet:
        """One row for each matrix."""
        columns = (
            "module", "width", "rank", "norm", "top share", "closest", "phi", "phi of others", "random", "rank / width",
        )  # fmt: skip
        rows = tuple(
            (
                each.label, each.width, each.rank, each.norm, each.top, each.partner, each.closest, each.mean,
                each.control, each.rank / each.width,
            )
            for each in self.own
        )  # fmt: skip
        notes = (
            "phi compares whole spaces; top share: part of the squared norm of B A in its first direction",
            "rank / width is what a random space gives on average",
        )
        title = f"{_WORDS[self.side]} of {len(self.own)} matrices of {self.source}"
        return Sheet(title=title, columns=columns, rows=rows, notes=notes)

    def details(self) -> Mapping[str, Any]:
        """The matrix of phi, and what it was drawn with."""
        return {"side": self.side, "hash": self.hash, "seed": self.seed, "phi": self.phi}

    @property
    def size(self) -> tuple[float, float]:
        """Large enough for the names."""
        edge = min(9.0, 3.2 + 0.22 * len(self.own))
        return edge + 1.6, edge

    def draw(self, figure: Figure) -> None:
        """The matrix of phi.

        Args:
            figure: an empty one of ``size``.
        """
        axes = figure.subplots()
        shown = [[float("nan") if value is None else value for value in row] for row in self.phi]
        apart = [v for i, row in enumerate(self.phi) for j, v in enumerate(row) if v is not None and i != j]
        # the diagonal is 1 by definition and would hide what lies between the others
        most = max(apart, default=1.0)
        image = axes.imshow(shown, cmap=SEQUENTIAL, vmin=0.0, vmax=most, interpolation="nearest")
        step = -(-len(self.own) // 48)
        places = range(0, len(self.own), step)
        names = [brief(self.own[place].label, 24) for place in places]
        axes.set_xticks(places, names, rotation=90, fontsize=7)
        axes.set_yticks(places, names, fontsize=7)
        end = "max" if most < 1 else "neither"
        figure.colorbar(image, ax=axes, label="phi of the whole spaces", extend=end, shrink=0.8)
        source = "/".join(self.source.rstrip("/").split("/")[-2:])
        axes.set_title(f"Overlap of {_WORDS[self.side]} within\n{source}")


def within(adapter: Adapter, *, modules: Sequence[str] = (), side: str = "A", seed: int = 0) -> Within:
    """Compare the matrices of one adapter with each other.

    Args:
        adapter: any LoRA.
        modules: names or globs; empty means all.
        side: "A" or "B".
        seed: of the random matrices.

    Returns:
        The comparison.

    Raises:
        CheckpointError: if it is no LoRA or is damaged.
        ConfigError: if a name matches nothing, or a factor is zero, as before training.
    """
    require_side(side)
    pieces = pieces_of(adapter)
    taken = [pieces[label] for label in chosen(pieces, modules, adapter.where)]
    spans = [piece.span(side) for piece in taken]
    for piece, span in zip(taken, spans, strict=True):
        if not bool(span.any()):
            raise ConfigError(
                "a factor that is zero spans nothing",
                where=f"{adapter.where}, module '{piece.label}'",
                got=f"lora_{side} is zero",
                expected="a trained adapter",
                hint="train it first, or leave the module out with --module.",
            )
    phi: list[list[float | None]] = [[None] * len(taken) for _ in taken]
    for i, one in enumerate(spans):
        for j in range(i + 1):
            if spans[j].shape[1] == one.shape[1]:
                phi[i][j] = phi[j][i] = float(overlaps(one, spans[j])[-1, -1])
    own = tuple(_own(place, taken, spans[place].shape[1], phi[place], side, seed) for place in range(len(taken)))
    return Within(source=adapter.where, hash=adapter.hash, side=side, own=own, phi=tuple(map(tuple, phi)), seed=seed)


def _own(place: int, taken: Sequence[Piece], width: int, phi: Sequence[float | None], side: str, seed: int) -> Own:
    piece = taken[place]
    span = piece.span(side)
    values = singular_values(piece.lora_A, piece.lora_B) * abs(piece.scaling)
    squares = values.square()
    total = float(squares.sum())
    others = {taken[j].label: value for j, value in enumerate(phi) if j != place and value is not None}
    partner = max(others, key=lambda label: others[label]) if others else None
    grid = overlaps(span, gaussian((int(span.shape[0]), width), seed, piece.label))
    return Own(
        label=piece.label,
        width=int(width),
        rank=int(grid.shape[0]),
        norm=total**0.5,
        top=float(squares.max()) / total if total else 0.0,
        partner=partner,
        closest=None if partner is None else others[partner],
        mean=sum(others.values()) / len(others) if others else None,
        control=float(grid[-1, -1]),
    )
