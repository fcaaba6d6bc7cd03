"""Figures 3, 4, 6 and 7: how far the subspaces of two adapters overlap, with random matrices for comparison.

phi(A1, A2, i, j) = ||U1_i^T U2_j||_F^2 / min(i, j), with U the right singular vectors of A. Appendix G prints
(1/p)(1 - d^2) with the projection distance d, where only 1 - d^2 / p gives the same; the form above is the right one.

For two Gaussian matrices of width d the expectation is i j / d / min(i, j) = max(i, j) / d, because each direction of
one lies in an independent uniform subspace with a squared share of j / d.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.check import check_bases, check_shapes
from deltaw.algebra.parts import named, parts_of
from deltaw.algebra.similarity import overlaps
from deltaw.errors import CheckpointError, ConfigError
from deltaw.paper.analyses.pieces import Piece, chosen, drawn_labels, pieces_of, require_side
from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.style import brief, heat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Grid", "Subspace", "gaussian", "subspace"]

Matrix = tuple[tuple[float, ...], ...]
_PANELS = 12
"""At most so many modules are drawn; the table has all."""
_WORDS = {"A": "input directions (lora_A)", "B": "output directions (lora_B)"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """phi of one module for all numbers of directions.

    Args:
        label: module path, with its slice.
        width: dimension of the space.
        phi: entry [i - 1][j - 1] is phi at i and j.
        control: the same for two random Gaussian matrices; None where none were drawn.
    """

    label: str
    width: int
    phi: Matrix
    control: Matrix | None = None

    @property
    def ranks(self) -> tuple[int, int]:
        """i and j of the last entry."""
        return len(self.phi), len(self.phi[0])

    @property
    def expected(self) -> float:
        """What random matrices of these ranks give on average at the last entry."""
        return max(self.ranks) / self.width


@dataclass(frozen=True, kw_only=True)
class Subspace(Analysis):
    """Two adapters' subspaces compared.

    Args:
        names: where the two came from.
        hashes: their identities.
        side: "A" or "B".
        grids: one for each module.
        seed: of the random matrices.
        notes: what a reader should know.
    """

    name: ClassVar[str] = "subspace"

    names: tuple[str, str]
    hashes: tuple[str, str]
    side: str
    grids: tuple[Grid, ...]
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def controlled(self) -> bool:
        """Whether random matrices were drawn."""
        return self.grids[0].control is not None

    def sheet(self) -> Sheet:
        """One row for each module: phi of the first directions, and of all asked for."""
        columns: tuple[str, ...] = ("module", "width", "i", "j", "phi(1, 1)", "phi(i, j)")
        columns += ("random", "max(i, j) / width") if self.controlled else ()
        rows = []
        for grid in self.grids:
            row: tuple[Any, ...] = (grid.label, grid.width, *grid.ranks, grid.phi[0][0], grid.phi[-1][-1])
            rows.append(row + ((grid.control[-1][-1], grid.expected) if grid.control is not None else ()))
        title = f"phi of {_WORDS[self.side]}: {self.names[0]} (i) against {self.names[1]} (j)"
        return Sheet(title=title, columns=columns, rows=tuple(rows), notes=self.notes)

    def details(self) -> Mapping[str, Any]:
        """The whole grids."""
        return {"side": self.side, "hashes": self.hashes, "seed": self.seed, "grids": self.grids}

    @property
    def _shown(self) -> list[Grid]:
        """Modules to draw."""
        shown = set(drawn_labels([grid.label for grid in self.grids], _PANELS))
        return [grid for grid in self.grids if grid.label in shown]

    @property
    def _panels(self) -> list[tuple[str, Matrix]]:
        """Titles and values; one control for each shape, since random matrices differ in nothing else."""
        shown = self._shown
        panels = [(brief(grid.label), grid.phi) for grid in shown]
        controls = {(grid.width, grid.ranks): grid.control for grid in reversed(shown) if grid.control is not None}
        for (width, _), control in reversed(controls.items()):
            panels.append((f"random Gaussian, width {width}", control))
        return panels

    @property
    def _places(self) -> tuple[int, int]:
        """Rows and columns of panels."""
        number = len(self._panels)
        columns = min(number, 4)
        return -(-number // columns), columns

    @property
    def size(self) -> tuple[float, float]:
        """As many panels as are drawn."""
        rows, columns = self._places
        return max(4.6, 1.0 + 2.3 * columns), 0.8 + 2.25 * rows

    def draw(self, figure: Figure) -> None:
        """One heat map for each module, as in figures 3 and 4; random matrices behind them.

        Args:
            figure: an empty one of ``size``.
        """
        rows, columns = self._places
        axes = figure.subplots(rows, columns, squeeze=False)
        panels = self._panels
        for place, panel in enumerate(axes.flat):
            if place >= len(panels):
                panel.set_visible(False)
                continue
            title, values = panels[place]
            i, j = range(1, len(values) + 1), range(1, len(values[0]) + 1)
            image = heat(panel, values, x=j, y=i, limits=(0.0, 1.0))
            panel.set(title=title, xlabel="j")
            panel.set_ylabel("i", rotation=0)
        figure.colorbar(image, ax=axes, label="phi(i, j)", shrink=min(1.0, 2 / rows))
        left = len(self.grids) - len(self._shown)
        more = f"; {left} more modules in the table" if left else ""
        names = "\n".join(f"{letter}: {_last(name)}" for letter, name in zip("ij", self.names, strict=True))
        figure.suptitle(f"Overlap of {_WORDS[self.side]}{more}\n{names}")


def _last(name: str) -> str:
    return "/".join(name.rstrip("/").split("/")[-2:])


def gaussian(shape: tuple[int, int], seed: int, label: str) -> Tensor:
    """A random Gaussian matrix that depends on seed and module alone, not on the order of modules.

    Args:
        shape: its shape.
        seed: of the run.
        label: of the module, and which of its matrices.

    Returns:
        Float64.
    """
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + zlib.crc32(label.encode())) % (1 << 63))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def subspace(
    one: Adapter,
    other: Adapter,
    *,
    modules: Sequence[str] = (),
    ranks: tuple[int, int] | None = None,
    side: str = "A",
    control: bool = False,
    seed: int = 0,
    allow_other_base: bool = False,
) -> Subspace:
    """Compare the subspaces of two adapters, module by module.

    Args:
        one: an adapter.
        other: another of the same base, of any ranks: another rank (figure 3) or another seed (figure 4).
        modules: names or globs; empty means all that both have.
        ranks: how many directions of each, i and j; None takes all.
        side: "A" or "B".
        control: draw two Gaussian matrices of the same shapes for each module.
        seed: of the control.
        allow_other_base: compare adapters whose recorded bases differ.

    Returns:
        The grids.

    Raises:
        CheckpointError: if bases or shapes differ, or no module is in both.
        ConfigError: if a name matches nothing, or more directions are asked for than there are.

    Source:
        arXiv:2106.09685, section 7.2, equation 4, figures 3, 4, 6, 7; footnote 7 for B.
    """
    require_side(side)
    pair = [one, other]
    notes = check_bases(pair, allow_other_base)
    check_shapes(pair, [parts_of(adapter) for adapter in pair])
    first, second = pieces_of(one), pieces_of(other)
    common = [label for label in first if label in second]
    if not common:
        raise CheckpointError(
            "the adapters have no module in common",
            where=f"{one.where} and {other.where}",
            got=f"{named(first, 2)}; {named(second, 2)}",
            expected="at least one module that both change",
            hint="compare two runs that adapt the same weights; deltaw inspect lists them.",
        )
    for adapter, own, others in ((one, first, second), (other, second, first)):
        lone = [label for label in own if label not in others]
        notes += [f"only in {adapter.where}: {named(lone)}"] if lone else []
    grids = [
        _grid(label, (first[label], second[label]), ranks, side, seed if control else None)
        for label in chosen(common, modules, f"{one.where} and {other.where}")
    ]
    if one.hash == other.hash:
        notes.append("both are the same content: phi is 1 wherever the directions of one are among the other's")
    return Subspace(
        names=(one.where, other.where),
        hashes=(one.hash, other.hash),
        side=side,
        grids=tuple(grids),
        seed=seed,
        notes=tuple(notes),
    )


def _grid(label: str, pair: tuple[Piece, Piece], ranks: tuple[int, int] | None, side: str, seed: int | None) -> Grid:
    spans = [piece.span(side) for piece in pair]
    phi = overlaps(*spans)
    i, j = _checked(label, ranks, (int(phi.shape[0]), int(phi.shape[1])))
    width = int(spans[0].shape[1])
    control = None
    if seed is not None:
        drawn = [gaussian((number, width), seed, f"{label}, {place}") for place, number in enumerate((i, j))]
        control = _rows(overlaps(*drawn))
    return Grid(label=label, width=width, phi=_rows(phi[:i, :j]), control=control)


def _rows(grid: Tensor) -> Matrix:
    return tuple(tuple(row) for row in grid.tolist())


def _checked(label: str, ranks: tuple[int, int] | None, most: tuple[int, int]) -> tuple[int, int]:
    """i and j, or all there are."""
    asked = most if ranks is None else ranks
    if 0 in most or not all(1 <= number <= limit for number, limit in zip(asked, most, strict=True)):
        raise ConfigError(
            "a subspace has as many directions as the factor's rank at most",
            where=f"--ranks, module '{label}'",
            got=f"{asked[0]},{asked[1]}",
            expected=f"from 1,1 to {most[0]},{most[1]}" if 0 not in most else "factors that are not zero",
            hint="ask for fewer, or leave --ranks out for all; rows that depend on each other span less than the rank.",
        )
    return asked
