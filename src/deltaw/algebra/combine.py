"""Sums of adapters: Delta W = sum of weight * scaling * B A, exact, on the factors alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltaw.adapter import METADATA, Adapter
from deltaw.algebra.assemble import assembled, shared_twins
from deltaw.algebra.check import (
    check_bases,
    check_shapes,
    check_summable,
    check_weights,
)
from deltaw.algebra.factored import distance
from deltaw.algebra.methods import METHODS, WIDE, Method, Term
from deltaw.algebra.parts import Parts, Update, natural, parts_of
from deltaw.algebra.write import aligned, evened, reworked, stored_own
from deltaw.errors import ConfigError, nearest
from deltaw.reports import count, table

__all__ = ["CombineReport", "CombinedModule", "combine", "scale"]

_MANY = 48


@dataclass(frozen=True, kw_only=True)
class CombinedModule:
    """What became of one module.

    Args:
        path: module path.
        ranks: R in each adapter; 0 where it has no update of this module.
        rank: R of the result.
        error: ||result - sum|| / (sum of the terms' norms), measured on what is stored.
    """

    path: str
    ranks: tuple[int, ...]
    rank: int
    error: float


@dataclass(frozen=True, kw_only=True)
class CombineReport:
    """A combined adapter; ``str`` is what ``deltaw combine`` prints.

    Args:
        adapter: the result.
        method: how it was made.
        sources: where the adapters came from, with their weights.
        modules: one entry for each module of the result.
        heuristic: what the method does instead of the sum, or None where the result is the sum.
        notes: what a reader should know.
        every: print every module, however many there are.
    """

    adapter: Adapter
    method: str
    sources: tuple[tuple[str, float], ...]
    modules: tuple[CombinedModule, ...]
    heuristic: str | None = None
    notes: tuple[str, ...] = ()
    every: bool = False

    @property
    def error(self) -> float:
        """Largest error of any module."""
        return max((module.error for module in self.modules), default=0.0)

    def __str__(self) -> str:
        """The sum in words, the table of modules, notes."""
        terms = " + ".join(f"{weight:g} * {where}" for where, weight in self.sources)
        head = f"combined by {self.method}: {terms}"
        size = f"{len(self.modules)} modules, {count(self.adapter.parameters)} parameters"
        lines = [head, f"{size}, largest error against the exact sum {self.error:.2e}"]
        if self.heuristic:
            lines.append(f"heuristic: {self.heuristic}")
        return "\n".join([*lines, self._table(), *(f"note: {note}" for note in self.notes)])

    def _table(self) -> str:
        rows = [(m.path, " + ".join(map(str, m.ranks)), m.rank, f"{m.error:.2e}") for m in self.modules]
        if self.every or len(rows) < _MANY:
            return table(("module", "ranks", "rank", "error"), rows)
        groups: dict[tuple[str, str, int], list[CombinedModule]] = {}
        for module, (_, ranks, rank, _) in zip(self.modules, rows, strict=True):
            groups.setdefault((module.path.rpartition(".")[2], ranks, rank), []).append(module)
        grouped = [(*key, len(group), f"{max(m.error for m in group):.2e}") for key, group in groups.items()]
        return table(("module", "ranks", "rank", "count", "largest error"), grouped)


def scale(adapter: Adapter, weight: float) -> Adapter:
    """An adapter with all its updates multiplied; its tensors keep their bits, alpha carries the factor.

    Args:
        adapter: the adapter.
        weight: a finite number.

    Returns:
        The scaled adapter; the adapter itself for weight 1.

    Raises:
        ConfigError: if the weight is no finite number.
        CheckpointError: if the adapter is no LoRA, or holds what cannot be scaled.
    """
    check_weights([adapter], [weight or 1.0])
    if weight == 1:
        return adapter
    parts = parts_of(adapter)
    check_summable([adapter], [parts], [weight])
    origin = {"verb": "scale", "of": adapter.hash, "weight": weight}
    if weight == 0:
        zeros = {path: _zeroed(update) for path, update in parts.updates.items()}
        return reworked(adapter, parts, zeros, origin)
    raw = dict(adapter.raw)
    alphas = raw.get("alpha_pattern") or {}
    raw["lora_alpha"] = _tidy(raw.get("lora_alpha", 8) * weight)
    raw["alpha_pattern"] = {key: _tidy(alpha * weight) for key, alpha in alphas.items()}
    scaled = replace(adapter, raw=raw)
    own = _scaled_notes(adapter.own, weight)
    updates = {path: replace(update, scaling=scaled.scaling(path)) for path, update in parts.updates.items()}
    metadata = {**adapter.metadata, METADATA: json.dumps(stored_own(own, updates, origin), sort_keys=True)}
    return replace(scaled, metadata=metadata, where=f"{weight:g} * {adapter.where}")


def _scaled_notes(own: Mapping[str, Any], weight: float) -> dict[str, Any]:
    """What deltaw notes about slices, padding and starts, with the factor.

    Slices of several scalings are folded into B and would be read without alpha's new factor: as one plain update they
    are not.
    """

    def times(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, **{key: entry[key] * weight for key in ("alpha", "scaling") if entry.get(key) is not None}}

    found = dict(own)
    found["slices"] = {
        path: [times(one) for one in entries]
        for path, entries in own.get("slices", {}).items()
        if len({one["scaling"] for one in entries}) == 1
    }
    for name in ("padded", "starts"):
        if name in own:
            found[name] = {path: times(entry) for path, entry in own[name].items()}
    return found


def _tidy(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _zeroed(update: Update) -> Update:
    bias = None if update.bias is None else torch.zeros_like(update.bias)
    return replace(update, lora_B=torch.zeros_like(update.lora_B), bias=bias)


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: str = "exact",
    density: float | None = None,
    seed: int | None = None,
    allow_other_base: bool = False,
) -> CombineReport:
    """Add adapters, each times a weight; negative weights subtract.

    ``exact`` gives the sum at the least rank that holds it, ``concatenate`` the sum with ranks added and no singular
    value taken. ``ties`` and ``dare`` are heuristics: see ``deltaw.algebra.heuristics`` for what they compute. Modules
    may differ between adapters; ranks, alphas and rank stabilization too. One adapter of weight 1 is returned as it is.

    Args:
        adapters: at least one.
        weights: one for each; 1 by default.
        method: a name in ``METHODS``.
        density: for ties and dare: share of the factors' entries that is kept, in (0, 1]; 0.5 by default.
        seed: for dare: any whole number; 0 by default.
        allow_other_base: accept adapters whose recorded bases differ.

    Returns:
        The combined adapter and how far it is from the exact sum.

    Raises:
        ConfigError: if weights, method or options are wrong.
        CheckpointError: if an adapter cannot be added: DoRA, full copies, another base, other shapes, damaged.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    check_weights(adapters, weights)
    chosen = _method(method, density, seed)
    notes = check_bases(adapters, allow_other_base)
    sources = tuple((adapter.where, float(weight)) for adapter, weight in zip(adapters, weights, strict=True))
    if len(adapters) == 1 and chosen.heuristic is None:
        return _alone(adapters[0], weights[0], method, sources)
    zero = [adapter.where for adapter, weight in zip(adapters, weights, strict=True) if weight == 0]
    notes += [f"weight 0, left out: {where}" for where in zero]
    used = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight != 0]
    adapters, weights = [adapter for adapter, _ in used], [weight for _, weight in used]
    parts = [parts_of(adapter) for adapter in adapters]
    check_summable(adapters, parts, weights)
    check_shapes(adapters, parts)
    terms = _terms(parts, weights)
    share, number = (0.5 if density is None else density), (0 if seed is None else seed)
    updates = {path: _biased(chosen.join(found, share, number), found) for path, found in sorted(terms.items())}
    twins = shared_twins(adapters, parts)
    updates = _with_biases(aligned(evened(updates, twins), twins))
    origin: dict[str, Any] = {
        "verb": "combine",
        "method": method,
        "of": [[adapter.hash, weight] for adapter, weight in zip(adapters, weights, strict=True)],
    }
    origin.update({"density": share} if chosen.density else {}, **({"seed": number} if chosen.seed else {}))
    made, more = assembled(adapters, parts, updates, twins, origin)
    modules = tuple(
        CombinedModule(
            path=path,
            ranks=tuple(part.updates[path].rank if path in part.updates else 0 for part in parts),
            rank=updates[path].rank,
            error=_error(updates[path], terms[path]),
        )
        for path in sorted(terms, key=natural)
    )
    return CombineReport(
        adapter=made, method=method, sources=sources, modules=modules, heuristic=chosen.heuristic,
        notes=tuple(notes + more),
    )  # fmt: skip


def _method(name: str, density: float | None, seed: int | None) -> Method:
    chosen = METHODS.get(name)
    if chosen is None:
        raise ConfigError(
            "unknown method to combine",
            where="method",
            got=repr(name),
            expected=" or ".join(map(repr, METHODS)),
            hint=f"nearest: {nearest(name, METHODS, 1)}; 'exact' is the weighted sum.",
        )
    for option, value, read in (("density", density, chosen.density), ("seed", seed, chosen.seed)):
        if value is not None and not read:
            users = " and ".join(repr(other) for other, how in METHODS.items() if getattr(how, option))
            raise ConfigError(
                f"method {name!r} does not read {option}",
                where=option,
                got=repr(value),
                expected=f"{option} with {users} only",
                hint=f"leave {option} out, or choose another method.",
            )
    if density is not None and not 0 < density <= 1:
        raise ConfigError(
            "the density is a share",
            where="density",
            got=repr(density),
            expected="a number in (0, 1]",
            hint="0.5 keeps half of the entries; 1 keeps all.",
        )
    return chosen


def _alone(adapter: Adapter, weight: float, method: str, sources: tuple[tuple[str, float], ...]) -> CombineReport:
    # of weight 1 every adapter is itself, those included that no sum can hold
    ranks = {path: int(pair[0].shape[0]) for path, pair in adapter.contents.factors.items() if 0 in pair}
    modules = tuple(
        CombinedModule(path=path, ranks=(ranks[path],), rank=ranks[path], error=0.0)
        for path in sorted(ranks, key=natural)
    )
    return CombineReport(adapter=scale(adapter, weight), method=method, sources=sources, modules=modules)


def _terms(parts: Sequence[Parts], weights: Sequence[float]) -> dict[str, list[Term]]:
    found: dict[str, list[Term]] = {}
    for part, weight in zip(parts, weights, strict=True):
        for path, update in part.updates.items():
            found.setdefault(path, []).append((update, weight * update.scaling))
    return found


def _biased(update: Update, terms: Sequence[Term]) -> Update:
    """Sum the biases of B, which are scaled like B."""
    found = [(term.bias, c) for term, c in terms if term.bias is not None]
    if not found:
        return replace(update, bias=None)
    total: Tensor = sum(
        (bias.double() * (c / update.scaling) for bias, c in found), torch.zeros((), dtype=torch.float64)
    )
    return replace(update, bias=total.to(torch.promote_types(found[0][0].dtype, WIDE)))


def _with_biases(updates: Mapping[str, Update]) -> dict[str, Update]:
    """PEFT's ``lora_bias`` is one flag for all modules but embeddings: a zero bias where only others have one."""
    if all(update.bias is None for update in updates.values()):
        return dict(updates)
    return {
        path: replace(update, bias=torch.zeros(update.lora_B.shape[0]))
        if update.bias is None and update.suffixes[1].endswith(".lora_B.weight")
        else update
        for path, update in updates.items()
    }


def _error(update: Update, terms: Sequence[Term]) -> float:
    """How far the stored result is from the exact sum, over the size of what was added."""
    after, squares = update.blocks(), 0.0
    for group, block in enumerate(after):
        pairs = [(term.blocks()[group], c) for term, c in terms]
        squares += distance([(block, update.scaling)], pairs) ** 2
    size = sum(math.sqrt(sum(distance([(block, c)], []) ** 2 for block in term.blocks())) for term, c in terms)
    return math.sqrt(squares) / size if size else 0.0
