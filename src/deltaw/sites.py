"""Where an adapter goes: sites, their parts, and the plan that lists them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from deltaw.config import LoRAConfig
from deltaw.layers.kind import Kind
from deltaw.layers.slices import Ranges
from deltaw.reports import count, table

__all__ = ["Part", "Plan", "Site"]


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
    """

    name: str
    rank: int
    alpha: float
    scaling: float
    out_features: int
    rows: Ranges = ()


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

    @property
    def parameters(self) -> int:
        """Number of values in A and B together."""
        return sum(part.rank * (self.in_features + part.out_features) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``attach`` would do; nothing is touched.

    Args:
        config: the configuration it was made from.
        sites: weights that get a low-rank update.
        copies: (path, module) of modules trained in full.
        biases: (path, module) of biases trained beside the base's.
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

    @property
    def parameters(self) -> int:
        """Number of values the adapter would hold: factors, biases and full copies."""
        factors = sum(site.parameters for site in self.sites)
        copies = sum(p.numel() for _, module in self.copies for p in module.parameters())
        biases = [module._parameters["bias"] for _, module in self.biases]
        return factors + copies + sum(bias.numel() for bias in biases if bias is not None)

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
        lines += [f"trained biases: {len(self.biases)}"] if self.biases else []
        share = 100 * self.parameters / max(self.total, 1)
        lines.append(f"adapter: {count(self.parameters)} parameters, {share:.3g}% of the base's {count(self.total)}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])
