"""An adapter from two checkpoints: the nearest low-rank update that leads from one to the other.

The checkpoints are read one tensor at a time, in two passes: the first finds what differs and refuses what no LoRA
can hold before anything is computed; the second decomposes one difference after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import METADATA, Adapter
from deltaw.algebra.parts import Update, named, natural
from deltaw.algebra.shards import Shards, prefix_between
from deltaw.algebra.sites import WeightSite, sites_by_model, sites_by_name, tied_paths
from deltaw.algebra.truncate import Truncated, truncate
from deltaw.algebra.write import configured, stored_own
from deltaw.errors import CheckpointError, ConfigError
from deltaw.fingerprint import fingerprint, from_sites
from deltaw.reports import count, table

__all__ = ["ExtractReport", "ExtractedModule", "extract"]

_MANY = 48
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


@dataclass(frozen=True, kw_only=True)
class ExtractedModule:
    """One weight that differs.

    Args:
        path: module path.
        shape: (O, I).
        rank: R of its update.
        norm: Frobenius norm of the difference.
        kept: share of its squared norm that the update holds.
        error: ||difference - update|| / ||difference||, measured on what is stored.
        method: how it was decomposed.
    """

    path: str
    shape: tuple[int, int]
    rank: int
    norm: float
    kept: float
    error: float
    method: str


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """An extracted adapter and what it leaves over; ``str`` is what ``deltaw extract`` prints.

    Args:
        adapter: the result.
        modules: one entry for each weight that differs and is held.
        rest: key -> why a tensor that differs is not held.
        unchanged: number of tensors that are equal.
        kept: share of the squared norm of all held differences together.
        notes: what a reader should know.
        every: print every module, however many there are.
    """

    adapter: Adapter
    modules: tuple[ExtractedModule, ...]
    rest: Mapping[str, str]
    unchanged: int
    kept: float
    notes: tuple[str, ...] = ()
    every: bool = False

    def __str__(self) -> str:
        """Totals, the table of modules, what is left over, notes."""
        head = (
            f"extracted {len(self.modules)} modules, {count(self.adapter.parameters)} parameters: "
            f"{self.kept:.4%} of their differences' energy; {count(self.unchanged)} tensors are equal"
        )
        left = [f"left over: {key}: {why}" for key, why in self.rest.items()]
        return "\n".join([head, self._table(), *left, *(f"note: {note}" for note in self.notes)])

    def _table(self) -> str:
        if self.every or len(self.modules) < _MANY:
            header = ("module", "size", "rank", "norm", "energy kept", "error", "method")
            return table(header, [(m.path, *_cells([m])) for m in self.modules])
        groups: dict[tuple[str, tuple[int, int]], list[ExtractedModule]] = {}
        for module in self.modules:
            groups.setdefault((module.path.rpartition(".")[2], module.shape), []).append(module)
        titles = ("module", "count", "size", "rank", "largest norm", "least energy kept", "largest error", "method")
        return table(titles, [(leaf, len(group), *_cells(group)) for (leaf, _), group in groups.items()])


def _cells(group: Sequence[ExtractedModule]) -> tuple[str, ...]:
    low, high = min(m.rank for m in group), max(m.rank for m in group)
    return (
        f"{group[0].shape[1]} -> {group[0].shape[0]}",
        str(low) if low == high else f"{low}-{high}",
        f"{max(m.norm for m in group):.4g}",
        f"{min(m.kept for m in group):.4%}",
        f"{max(m.error for m in group):.2e}",
        " and ".join(sorted({m.method for m in group})),
    )


@dataclass
class _Differences:
    """What the first pass found."""

    held: dict[str, str] = field(default_factory=dict)
    """Key of the base -> key of the tuned checkpoint."""
    rest: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0
    mixed: bool = False
    """The two hold some weight in different dtypes."""


def extract(
    base: str | Path,
    tuned: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    model: nn.Module | None = None,
    allow_rest: bool = False,
) -> ExtractReport:
    """Find the LoRA that leads from one checkpoint to another.

    Weights of linear maps and embeddings are held. Matrices whose smaller side is at most 1024 are decomposed exactly
    in float64; larger ones by randomized subspace iteration in float32, or exactly again where the energy asks for
    more than a quarter of their directions. What is reported is measured on each difference.

    Args:
        base: directory with the base's safetensors, sharded or not, or one such file.
        tuned: the same for the tuned model.
        rank: rank of every update (less where a matrix is smaller); or
        energy: share of each difference's squared norm to keep, in (0, 1].
        model: a model of this shape, on the meta device if you like: it says what each weight is and under which path
            it stands. Without it names and ``config.json`` say so.
        allow_rest: leave over tensors that differ and that no LoRA holds (norms, biases, other shapes).

    Returns:
        The adapter, what each update keeps, and what is left over.

    Raises:
        ConfigError: if not exactly one of rank and energy is given, or one is out of range.
        CheckpointError: if files are damaged, nothing differs, or something is left over that was not allowed.
    """
    _check(rank, energy)
    with Shards(base) as first, Shards(tuned) as second:
        pairs, lone = _paired(first, second)
        keys = _model_keys(first.keys(), model)
        if model is not None:
            sites = sites_by_model(model, keys)
        else:
            sites = sites_by_name({key: first.shape(key) for key in first.keys()}, first.config())  # noqa: SIM118
        found = _differences(first, second, pairs, sites)
        found.rest.update(lone)
        _refuse(found, allow_rest, first.path, second.path)
        cuts: dict[str, Truncated] = {}
        prints: dict[str, Any] = {}
        for key, other in found.held.items():
            weight = first.tensor(key)
            cuts[key] = truncate(_difference(sites[key], weight, second.tensor(other)), rank, energy, sites[key].path)
            prints = _printed(prints, sites[key].path, weight)
        return _report(first, second, model, sites, found, cuts, prints, {"rank": rank, "energy": energy})


def _check(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise ConfigError(
            "extract needs one measure",
            where="rank, energy",
            got="both" if rank is not None else "neither",
            expected="exactly one of the two",
            hint="rank=16, or energy=0.9 for a share of each difference's squared norm.",
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ConfigError(
            "a rank is a whole number",
            where="rank",
            got=repr(rank),
            expected="an integer >= 1",
            hint="common ranks are 4 to 64.",
        )
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1):
        raise ConfigError(
            "the energy to keep is a share",
            where="energy",
            got=repr(energy),
            expected="a number in (0, 1]",
            hint="0.9 (not 90) keeps nine tenths of each difference's squared norm.",
        )


def _paired(first: Shards, second: Shards) -> tuple[dict[str, str], dict[str, str]]:
    """Keys of both, up to a prefix that one of them lacks; and keys of one alone, with the reason."""
    names, others = first.keys(), second.keys()
    ahead, behind = prefix_between(others, names), prefix_between(names, others)
    offers = [{ahead + other: other for other in others}, {k.removeprefix(behind): k for k in others}]
    hits = [sum(name in offer for name in names) for offer in offers]
    by_name = offers[0] if hits[0] >= hits[1] else offers[1]
    pairs = {name: by_name[name] for name in names if name in by_name}
    lone = {name: "only in the base" for name in names if name not in pairs}
    used = set(pairs.values())
    lone.update({other: "only in the tuned model" for other in others if other not in used})
    return pairs, lone


def _model_keys(keys: Sequence[str], model: nn.Module | None) -> dict[str, str]:
    """Key of the base's checkpoint -> key of the model."""
    known = [] if model is None else [*model.state_dict()]
    prefix = prefix_between(keys, known)
    return {key: prefix + key for key in keys}


def _differences(
    first: Shards, second: Shards, pairs: Mapping[str, str], sites: Mapping[str, WeightSite]
) -> _Differences:
    found = _Differences()
    for key, other in pairs.items():
        if first.shape(key) != second.shape(other):
            found.rest[key] = f"shape {first.shape(key)} became {second.shape(other)}"
            continue
        before, after = first.tensor(key), second.tensor(other)
        wide = torch.promote_types(before.dtype, after.dtype)
        if torch.equal(before.to(wide), after.to(wide)):
            found.unchanged += 1
        elif key in sites and before.is_floating_point():
            found.held[key] = other
            found.mixed |= before.dtype != after.dtype
            _require_finite(key, before, after)
        else:
            found.rest[key] = f"shape {tuple(before.shape)}, no linear map and no embedding"
    return found


def _require_finite(key: str, before: Tensor, after: Tensor) -> None:
    for tensor, which in ((before, "base"), (after, "tuned model")):
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                "a weight holds values that are not finite",
                where=f"'{key}' of the {which}",
                got="NaN or infinity",
                expected="finite numbers",
                hint="the training that wrote it diverged; take an earlier checkpoint.",
            )


def _refuse(found: _Differences, allow_rest: bool, base: Path, tuned: Path) -> None:
    if found.rest and not allow_rest:
        raise CheckpointError(
            "some tensors differ that no LoRA can hold",
            where=f"{base} and {tuned}",
            got="; ".join(f"'{key}': {why}" for key, why in list(found.rest.items())[:3])
            + (f"; and {len(found.rest) - 3} more" if len(found.rest) > 3 else ""),
            expected="differences in weights of linear maps and embeddings alone",
            hint="the adapter would not lead to the tuned model; to leave them over: allow_rest=True (--allow-rest).",
        )
    if not found.held:
        raise CheckpointError(
            "no weight differs that a LoRA could hold",
            where=f"{base} and {tuned}",
            got=f"{found.unchanged:,} equal tensors, {len(found.rest)} others",
            expected="at least one linear map or embedding that was tuned",
            hint="check that the second directory is the tuned model.",
        )


def _difference(site: WeightSite, before: Tensor, after: Tensor) -> Tensor:
    wide = torch.float64 if min(before.shape) <= 1024 else torch.float32
    return site.matrix(after.to(wide) - before.to(wide))


def _printed(prints: dict[str, Any], path: str, weight: Tensor) -> dict[str, Any]:
    """Add one weight of the base to its fingerprint."""
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    one = fingerprint([(path, holder)])
    return from_sites(one["dtype"], {**prints.get("sites", {}), **one["sites"]})


def _report(
    first: Shards,
    second: Shards,
    model: nn.Module | None,
    sites: Mapping[str, WeightSite],
    found: _Differences,
    cuts: Mapping[str, Truncated],
    prints: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> ExtractReport:
    updates = {sites[key].path: _update(sites[key], cut) for key, cut in cuts.items()}
    twins: dict[str, str] = {}
    for path in list(updates) if model is not None else ():
        for other in tied_paths(model, path):  # type: ignore[arg-type]
            twins[other] = path
            updates[other] = _mirrored(updates[path], other, model)  # type: ignore[arg-type]
    adapter = _adapter(first, model, sites, found, updates, twins, prints, {k: v for k, v in asked.items() if v})
    total = sum(cut.norm**2 for cut in cuts.values())
    lost = sum((cut.norm * cut.error) ** 2 for cut in cuts.values())
    return ExtractReport(
        adapter=adapter,
        modules=tuple(_module(sites[key], cuts[key]) for key in sorted(cuts, key=natural)),
        rest=found.rest,
        unchanged=found.unchanged,
        kept=1 - lost / total,
        notes=tuple(_notes(first, second, model, found, twins)),
    )


def _update(site: WeightSite, cut: Truncated) -> Update:
    return Update(
        path=site.path, stem=site.path, lora_A=cut.lora_A, lora_B=cut.lora_B, scaling=1.0, suffixes=site.suffixes
    )


def _mirrored(update: Update, path: str, model: nn.Module) -> Update:
    """The same update for another module with the same weight."""
    site = sites_by_model(model, {"weight": f"{path}.weight"})["weight"]
    same = replace(update, path=path, stem=path, suffixes=site.suffixes)
    if site.suffixes == update.suffixes:
        return same
    return replace(same, lora_A=update.lora_B.t().contiguous(), lora_B=update.lora_A.t().contiguous())


def _module(site: WeightSite, cut: Truncated) -> ExtractedModule:
    return ExtractedModule(
        path=site.path,
        shape=(cut.lora_B.shape[0], cut.lora_A.shape[1]),
        rank=cut.lora_A.shape[0],
        norm=cut.norm,
        kept=max(0.0, 1 - cut.error**2),
        error=cut.error,
        method=cut.method,
    )


def _adapter(
    first: Shards,
    model: nn.Module | None,
    sites: Mapping[str, WeightSite],
    found: _Differences,
    updates: Mapping[str, Update],
    twins: Mapping[str, str],
    prints: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> Adapter:
    names = [str(name) for name in first.config().get("architectures") or []]
    task = next((task for end, task in _TASKS.items() if any(name.endswith(end) for name in names)), None)
    start = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": str(first.path),
        "revision": None,
        "inference_mode": True,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "bias": "none",
        "modules_to_save": None,
        "fan_in_fan_out": any(sites[key].kind == "Conv1D" for key in found.held),
    }
    present = [] if model is None else [path for path, _ in model.named_modules() if path]
    raw = configured(start, updates, same_places=False, present=present)
    origin = {"verb": "extract", **asked, "left_over": sorted(found.rest)}
    own = stored_own({"fingerprint": dict(prints), "twins": dict(twins)}, updates, origin)
    tensors = {key: tensor for update in updates.values() for key, tensor in update.tensors().items()}
    return Adapter(tensors=tensors, raw=raw, metadata={METADATA: json.dumps(own, sort_keys=True)})


def _notes(
    first: Shards, second: Shards, model: nn.Module | None, found: _Differences, twins: Mapping[str, str]
) -> list[str]:
    notes = []
    if model is None:
        notes.append("no model was given: what each weight is was told by its name, and its path is its key")
    if twins:
        notes.append(f"tied weights, written for every user: {named(twins)}")
    elif model is None and first.config().get("tie_word_embeddings"):
        notes.append("config.json ties the embedding to the head; without a model only the stored one is written")
    if found.mixed:
        notes.append(f"the two hold weights in different dtypes; the rounding counts as difference ({second.path})")
    return notes
