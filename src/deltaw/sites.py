"""Where an adapter goes: sites, their parts, and the plan that lists them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deltaw.config import LoRAConfig
from deltaw.initialize import INITIALIZATIONS, Request
from deltaw.layers.kind import Kind
from deltaw.layers.slices import Ranges
from deltaw.reports import count, table
from deltaw.variants import Combined, variant_of

__all__ = ["BaseView", "Part", "Plan", "Rows", "Site", "request_for"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One pair of factors: a whole weight, or one slice of a fused one.

    Args:
        name: slice name, empty for a whole weight.
        rank: R.
        alpha: numerator of the scaling.
        scaling: factor on the update.
        out_features: output rows this part speaks of.
        rows: which rows; empty means all.
        variant: names of the variants of this update.
        subtract: what the factors start from is taken off the update again.
    """

    name: str
    rank: int
    alpha: float
    scaling: float
    out_features: int
    rows: Ranges = ()
    variant: tuple[str, ...] = ("lora",)
    subtract: bool = False
    update: Combined = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Put the variants together once: every forward reads them."""
        object.__setattr__(self, "update", variant_of(self.variant))


@dataclass(frozen=True, kw_only=True)
class Site:
    """One weight to adapt.

    Args:
        path: dotted module path.
        module: the module itself.
        kind: its kind.
        in_features: I.
        out_features: O.
        parts: its factor pairs; one unless the weight is adapted in slices.
        pattern: the pattern that chose it.
        aliases: further paths of the same module object.
        twins: (path, module, kind) of other modules that share the weight and get the same update.
        raw: the attribute itself is adapted, for others that read it.
    """

    path: str
    module: nn.Module = field(repr=False, compare=False)
    kind: Kind
    in_features: int
    out_features: int
    parts: tuple[Part, ...]
    pattern: str = ""
    aliases: tuple[str, ...] = ()
    twins: tuple[tuple[str, nn.Module, Kind], ...] = ()
    raw: bool = False

    @property
    def rank(self) -> int:
        """Sum of the parts' ranks."""
        return sum(part.rank for part in self.parts)

    @property
    def alpha(self) -> float:
        """Alpha of the first part."""
        return self.parts[0].alpha

    @property
    def scaling(self) -> float:
        """Scaling of the first part."""
        return self.parts[0].scaling

    @functools.cached_property
    def parameters(self) -> int:
        """Number of values in A and B together."""
        return sum(part.update.parameters(request_for(self, part, "kaiming", 0)) for part in self.parts)


class BaseView:
    """What a variant may ask about a site's weight; see ``variants.base.Base``.

    Args:
        kind: the site's kind.
        module: the site's module.
        rows: the adapted rows, or None for all.
        weight: a weight to show instead of the module's own, in its stored layout.
    """

    __slots__ = ("kind", "module", "rows", "weight")

    def __init__(self, kind: Kind, module: nn.Module, rows: Tensor | None = None, weight: Tensor | None = None) -> None:
        self.kind, self.module, self.rows, self.weight = kind, module, rows, weight

    def matrix(self) -> Tensor:
        """The frozen weight, shape (O, K), without gradient; only the rows that are adapted.

        Returns:
            The matrix, a view of the weight where all rows are adapted.
        """
        stored: Tensor = self.kind.weight(self.module) if self.weight is None else self.weight
        matrix = self.kind.matrix(self.module, stored.detach())
        return matrix if self.rows is None else matrix.index_select(0, self.rows.to(matrix.device))

    def bias(self) -> Tensor | None:
        """The bias that is in the output already.

        Returns:
            Shape (O) without gradient, or None.
        """
        bias = self.module._parameters.get(self.kind.bias)
        if bias is None:
            return None
        return bias.detach() if self.rows is None else bias.detach().index_select(0, self.rows)

    def spread(self, vector: Tensor) -> Tensor:
        """A vector of O values, shaped to meet an output.

        Args:
            vector: shape (O).

        Returns:
            A view.
        """
        return self.kind.spread(self.module, vector)

    @property
    def groups(self) -> int:
        """Number of blocks on the weight's diagonal."""
        return self.kind.groups(self.module)


def request_for(site: Site, part: Part, init: str, seed: int, data: Tensor | None = None) -> Request:
    """What an initialization and a variant are told about one update.

    Args:
        site: the site.
        part: the part of it.
        init: name of the initialization.
        seed: seed of the place.
        data: what was gathered there.

    Returns:
        The request.
    """
    kind, module = site.kind, site.module
    stored = kind.shapes(module, part.rank, site.in_features, part.out_features)

    def rows() -> Tensor | None:
        return torch.cat([torch.arange(start, stop) for start, stop in part.rows]) if part.rows else None

    def weight() -> Tensor:
        return BaseView(kind, module, rows()).matrix()

    if data is not None and part.rows and INITIALIZATIONS[init].needs == "gradient":
        data = data.index_select(0, rows().to(data.device))  # type: ignore[union-attr]

    return Request(
        in_features=math.prod(stored[0][1:]),
        out_features=part.out_features,
        rank=part.rank,
        seed=seed,
        groups=kind.groups(module),
        stored=stored,
        init=init,
        subtract=part.subtract,
        lookup=kind.lookup,
        scaling=part.scaling,
        weight=weight,
        data=data,
    )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a token table that are trained.

    Args:
        path: dotted module path of the embedding.
        module: the embedding.
        index: which rows, ascending.
        twins: (path, module, kind) of other modules that read the same table.
    """

    path: str
    module: nn.Module = field(repr=False, compare=False)
    index: tuple[int, ...]
    twins: tuple[tuple[str, nn.Module, Kind], ...] = ()

    @property
    def width(self) -> int:
        """Number of values in a row."""
        table = self.module._parameters["weight"]
        assert table is not None
        return int(table.shape[1])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``attach`` would do; nothing is touched.

    Args:
        config: the configuration it was made from.
        sites: weights that get a low-rank update.
        copies: (path, module) of modules trained in full.
        biases: (path, module) of biases trained beside the base's.
        tokens: token tables of which some rows are trained.
        readers: (path, module) of modules that read adapted children themselves and have to be told.
        matched: pattern -> number of modules it matched.
        total: number of parameters of the base, shared ones once.
        notes: what a reader should know.
    """

    config: LoRAConfig
    sites: tuple[Site, ...]
    copies: tuple[tuple[str, nn.Module], ...]
    biases: tuple[tuple[str, nn.Module], ...]
    matched: dict[str, int]
    total: int
    notes: tuple[str, ...] = ()
    tokens: tuple[Rows, ...] = ()
    readers: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def parameters(self) -> int:
        """Number of values the adapter would hold: factors, biases and full copies."""
        return sum(site.parameters for site in self.sites) + self._beside()

    def _beside(self) -> int:
        """Number of values beside the factors."""
        copies = sum(p.numel() for _, module in self.copies for p in module.parameters())
        biases = [module._parameters["bias"] for _, module in self.biases]
        rows = sum(len(rows.index) * rows.width for rows in self.tokens)
        return copies + rows + sum(bias.numel() for bias in biases if bias is not None)

    def __str__(self) -> str:
        """A table of the sites, grouped by the last part of their paths."""
        groups: dict[tuple[object, ...], list[Site]] = {}
        for site in self.sites:
            leaf = site.path.rpartition(".")[2]
            parts = ",".join(part.name for part in site.parts if part.name)
            key = (leaf + (f"[{parts}]" if parts else ""), site.kind.name, site.in_features, site.out_features)
            groups.setdefault((*key, tuple(p.rank for p in site.parts), site.scaling), []).append(site)
        rows = [
            (
                leaf,
                kind,
                f"{n_in} -> {n_out}",
                "+".join(str(part.rank) for part in sites[0].parts),
                f"{scaling:g}",
                len(sites),
                sum(s.parameters for s in sites),
            )
            for (leaf, kind, n_in, n_out, _, scaling), sites in groups.items()
        ]
        text = table(("module", "kind", "size", "rank", "scaling", "count", "parameters"), rows)
        lines = [text] if rows else ["no low-rank site"]
        lines += [f"trained in full: {', '.join(path for path, _ in self.copies)}"] if self.copies else []
        lines += [f"trained rows of '{rows.path}': {len(rows.index)}" for rows in self.tokens]
        lines += [f"trained biases: {len(self.biases)}"] if self.biases else []
        parameters = sum(int(row[-1]) for row in rows) + self._beside()
        share = 100 * parameters / max(self.total, 1)
        lines.append(f"adapter: {count(parameters)} parameters, {share:.3g}% of the base's {count(self.total)}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])
