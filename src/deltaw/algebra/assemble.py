"""One adapter out of several: tensors, configuration and metadata of a sum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaw.adapter import METADATA, Adapter
from deltaw.algebra.check import owner_of_whole, shared_entries
from deltaw.algebra.parts import Parts, Update, named
from deltaw.algebra.write import LAYOUT, configured, stored_own
from deltaw.fingerprint import from_sites

__all__ = ["assembled", "shared_twins"]

_PLACES = ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform")
_OWNED = ("modules_to_save", "trainable_token_indices", "bias")
_NAMES = ("base_model_name_or_path", "task_type", "revision")
_NOT_SUMMED = (
    "use_rslora",
    "use_dora",
    "lora_bias",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "peft_version",
)


def shared_twins(adapters: Sequence[Adapter], parts: Sequence[Parts]) -> dict[str, str]:
    """Tied updates that every adapter with these modules shares alike.

    Args:
        adapters: the adapters.
        parts: their parts.

    Returns:
        path -> the path whose update it shares.
    """
    found: dict[str, str] = {}
    for adapter in adapters:
        found.update(adapter.own.get("twins", {}))
    return {
        path: primary
        for path, primary in found.items()
        if all(
            adapter.own.get("twins", {}).get(path) == primary or not {path, primary} & part.updates.keys()
            for adapter, part in zip(adapters, parts, strict=True)
        )
    }


def assembled(
    adapters: Sequence[Adapter],
    parts: Sequence[Parts],
    updates: Mapping[str, Update],
    twins: Mapping[str, str],
    origin: Mapping[str, Any],
) -> tuple[Adapter, list[str]]:
    """Make the adapter of a sum.

    What is trained in full comes from the one adapter that has it; of the other fields those stay that all files have
    alike, and the rest is named in the notes.

    Args:
        adapters: the adapters.
        parts: their parts.
        updates: path -> update of the sum.
        twins: path -> the path whose update it shares.
        origin: how the sum came to be.

    Returns:
        The adapter, and notes for the report.
    """
    owner = owner_of_whole(parts)
    lead = adapters[owner or 0]
    notes: list[str] = []
    tensors: dict[str, Tensor] = {}
    for adapter, part in zip(adapters, parts, strict=True):
        other = [
            k for k in part.frozen if not torch.equal(tensors.setdefault(k, adapter.tensors[k]), adapter.tensors[k])
        ]
        if other:
            notes.append(f"copies of the frozen base differ in {adapter.where}, the first are kept: {named(other)}")
        tensors.update({key: adapter.tensors[key] for key in part.whole})
    if owner is not None:
        notes.append(f"carried over from {lead.where}: {named(parts[owner].whole)}")
    for update in updates.values():
        tensors.update(update.tensors())
    start, same, more = _fields(adapters, lead, all(part.updates.keys() == updates.keys() for part in parts))
    noted = {path for adapter in adapters for name in LAYOUT for path in adapter.own.get(name, {})}
    if noted:
        notes.append(f"slices, or an update with its start, are one plain update now in {named(sorted(noted))}")
    own: dict[str, Any] = {"twins": dict(twins), "along": lead.own.get("along", [])}
    idle = [path for path in updates if all(_idle(a, p, path) for a, p in zip(adapters, parts, strict=True))]
    if idle:
        own["unworn"] = idle
    found = _fingerprint(adapters)
    if found:
        own["fingerprint"] = found
    metadata = {key: str(value) for key, value in shared_entries([adapter.metadata for adapter in adapters]).items()}
    metadata[METADATA] = json.dumps(stored_own(own, updates, origin), sort_keys=True)
    raw = configured(start, updates, same_places=same)
    return Adapter(tensors=tensors, raw=raw, metadata=metadata), notes + more


def _fields(adapters: Sequence[Adapter], lead: Adapter, same_paths: bool) -> tuple[dict[str, Any], bool, list[str]]:
    """Fields of the configuration to start from, whether the targets stand, and notes."""
    notes = []
    raws = [{key: value for key, value in adapter.raw.items() if value is not None} for adapter in adapters]
    common = shared_entries(raws)
    same = same_paths and all(_places(raw) == _places(raws[0]) for raw in raws)
    fields: dict[str, Any] = {"peft_type": "LORA", "use_rslora": False, "lora_dropout": 0.0}
    for key in _NAMES:
        named_by = [raw[key] for raw in raws if key in raw]
        fields[key] = named_by[0] if named_by else None
        if len(set(map(str, named_by))) > 1:
            notes.append(f"{key} differs between the files: {', '.join(map(repr, named_by))}; the first is kept")
    fields.update({k: v for k, v in common.items() if k not in _NOT_SUMMED and k not in _PLACES})
    fields.update({key: lead.raw[key] for key in _OWNED if lead.raw.get(key) is not None})
    if same:
        fields.update({key: lead.raw[key] for key in _PLACES if key in lead.raw})
    told = {*_NOT_SUMMED, *_PLACES, *_OWNED, *_NAMES, *common}
    left = sorted(key for raw in raws for key, value in raw.items() if value and key not in told)
    if left:
        notes.append(f"fields of adapter_config.json that differ were left out: {named(dict.fromkeys(left))}")
    return fields, same, notes


def _idle(adapter: Adapter, part: Parts, path: str) -> bool:
    """Whether an adapter has no update here, or zeros that were written for PEFT's sake."""
    return path not in part.updates or path in adapter.own.get("unworn", ())


def _places(raw: Mapping[str, Any]) -> list[Any]:
    found = [raw.get(key) or None for key in _PLACES]
    return [sorted(value, key=str) if isinstance(value, list) else value for value in found]


def _fingerprint(adapters: Sequence[Adapter]) -> dict[str, Any] | None:
    """The base's fingerprint over the modules of all adapters; over the first's alone where dtypes differ."""
    found = [adapter.own.get("fingerprint") for adapter in adapters]
    known = [one for one in found if isinstance(one, dict) and one.get("sites")]
    if not known:
        return None
    sites = dict(known[0]["sites"])
    for other in known[1:]:
        if other.get("dtype") == known[0].get("dtype"):
            sites.update({path: value for path, value in other["sites"].items() if path not in sites})
    return from_sites(str(known[0].get("dtype", "float32")), sites)
