"""From updates back to an adapter: tensors, PEFT's configuration, and what deltaw says beside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from deltaw.adapter import METADATA, Adapter
from deltaw.algebra.parts import Parts, Update, attention_of, together
from deltaw.config import LoRAConfig
from deltaw.errors import CheckpointError
from deltaw.functional import scaling_of
from deltaw.keys import PREFIX
from deltaw.peft_config import to_peft
from deltaw.version import __version__

__all__ = ["LAYOUT", "aligned", "alpha_of", "configured", "evened", "reworked", "stored_own"]

LAYOUT = ("slices", "padded", "starts")
"""What deltaw notes about how a module's factors are made up; void once they are computed anew."""
_PLACES = ("exclude_modules", "layers_pattern", "layers_to_transform")
"""Fields beside ``target_modules`` that narrow what it means."""


def alpha_of(scaling: float, rank: int, stabilized: bool) -> float:
    """The alpha that gives a scaling, to the last bit where a float can.

    Args:
        scaling: factor on B A.
        rank: R.
        stabilized: scaling is alpha / sqrt(R).

    Returns:
        Alpha; a whole number where one gives exactly this scaling.

    Example:
        >>> alpha_of(2.0, 4, False), alpha_of(7 / 3, 3, False)
        (8, 7)
    """
    alpha = scaling * (math.sqrt(rank) if stabilized else rank)
    nearby = [float(round(alpha)), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf)]
    exact = next((one for one in nearby if one and scaling_of(rank, one, stabilized) == scaling), alpha)
    return int(exact) if exact.is_integer() and abs(exact) < 2**53 else exact


def configured(
    raw: Mapping[str, Any], updates: Mapping[str, Update], *, same_places: bool, present: Sequence[str] = ()
) -> dict[str, Any]:
    """PEFT's configuration with the ranks and alphas of these updates.

    Args:
        raw: the configuration to start from; its other fields stay.
        updates: path -> update, as they will be written.
        same_places: these are exactly the modules that ``raw`` targets; else they are named anew.
        present: paths of all modules of the base, where they are known: then a short name will do where it is exact.

    Returns:
        A dictionary ready for JSON.
    """
    stabilized = bool(raw.get("use_rslora", False))
    sites = {path: (u.rank, alpha_of(u.scaling, u.rank, stabilized)) for path, u in sorted(updates.items())}
    made = to_peft(LoRAConfig(), sites, present=list(present), copies=[], transposed=False, foreign={})
    found = {**raw, **{key: made[key] for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}}
    if not same_places:
        exact = "(" + "|".join(re.escape(p) for p in sites if attention_of(updates[p]) is None) + ")"
        found["target_modules"] = made["target_modules"] if present else exact
        found.update({key: None for key in _PLACES if raw.get(key) is not None})
    if any(update.bias is not None for update in updates.values()):
        found["lora_bias"] = True
    return found


def stored_own(own: Mapping[str, Any], updates: Mapping[str, Update], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What deltaw writes into the metadata of a computed adapter.

    Args:
        own: what is to be kept.
        updates: path -> update, as they will be written.
        origin: how the adapter came to be.

    Returns:
        A dictionary ready for JSON.
    """
    scalings = {path: update.scaling for path, update in sorted(updates.items())}
    return {**own, "scaling": scalings, "version": __version__, "origin": dict(origin)}


def evened(updates: Mapping[str, Update], twins: Mapping[str, str]) -> dict[str, Update]:
    """Pad modules that must share a rank to the largest of theirs, and give an attention's projections one scaling.

    Args:
        updates: path -> update.
        twins: path -> the path whose update it shares.

    Returns:
        The same updates.
    """
    found = dict(updates)
    for group in together(updates, twins):
        rank = max(updates[path].rank for path in group)
        found.update({path: updates[path].padded(rank) for path in group})
        inner = [path for path in group if attention_of(updates[path]) is not None]
        if inner and len({found[path].scaling for path in group}) > 1:
            found.update({path: _unscaled(found[path]) for path in group})
    return found


def _unscaled(update: Update) -> Update:
    """The same update with its scaling in B, in fp32 at least."""
    if update.scaling == 1:
        return update
    dtypes = (
        torch.promote_types(update.lora_A.dtype, torch.float32),
        torch.promote_types(update.lora_B.dtype, torch.float32),
    )
    made = update.with_blocks([(A, B * update.scaling) for A, B in update.blocks()], 1.0, dtypes)
    bias = None if update.bias is None else (update.bias.double() * update.scaling).to(dtypes[1])
    return replace(made, bias=bias)


def aligned(updates: Mapping[str, Update], twins: Mapping[str, str]) -> dict[str, Update]:
    """Give the users of one tied update the same bits again, transposed where one of them stores its weight so.

    Args:
        updates: path -> update.
        twins: path -> the path whose update it shares.

    Returns:
        The same updates.
    """
    found = dict(updates)
    for path, primary in twins.items():
        if path not in found or primary not in found:
            continue
        mine, first = found[path], found[primary]
        _refuse_odd_twins(mine, first)
        if mine.suffixes == first.suffixes:
            found[path] = mine.with_blocks(first.blocks(first.lora_A.dtype), first.scaling, _dtypes(first))
        else:
            flipped = [(B.t(), A.t()) for A, B in first.blocks(first.lora_A.dtype)]
            found[path] = mine.with_blocks(flipped, first.scaling, _dtypes(first))
    return found


def _refuse_odd_twins(mine: Update, first: Update) -> None:
    """Refuse one update for two modules whose factors are of different sizes: the file contradicts itself."""
    (columns, rows, groups), (other_columns, other_rows, other_groups) = mine.shape, first.shape
    flipped = mine.suffixes != first.suffixes
    wanted = ((other_rows,), *other_columns) if flipped else (other_columns, other_rows)
    if (columns, rows) != wanted or groups != other_groups:
        raise CheckpointError(
            "two modules share one update, but their factors are of different sizes",
            where=f"modules '{mine.path}' and '{first.path}'",
            got=f"A {tuple(mine.lora_A.shape)} and A {tuple(first.lora_A.shape)}",
            expected="the same update for both users of a weight",
            hint="the file is damaged: copy it again.",
        )


def _dtypes(update: Update) -> Any:
    return update.lora_A.dtype, update.lora_B.dtype


def reworked(adapter: Adapter, parts: Parts, updates: Mapping[str, Update], origin: Mapping[str, Any]) -> Adapter:
    """The same adapter with other factors; everything else of it stays.

    Args:
        adapter: the adapter.
        parts: its parts.
        updates: path -> update; a path that is absent loses its update.
        origin: how the result came to be.

    Returns:
        The new adapter.
    """
    owned = {key for update in parts.updates.values() for key in update.tensors()}
    gone = tuple(f"{PREFIX}{path}.base_layer." for path in parts.updates if path not in updates)
    owned |= {key for key in parts.frozen if gone and (PREFIX + key.removeprefix(PREFIX)).startswith(gone)}
    tensors = {k: tensor for k, tensor in adapter.tensors.items() if not {k, PREFIX + k.removeprefix(PREFIX)} & owned}
    for update in updates.values():
        tensors.update(update.tensors())
    own = dict(adapter.own)
    same = {path for path, update in updates.items() if update is parts.updates[path]}
    for name in LAYOUT:
        if name in own:
            own[name] = {path: value for path, value in own[name].items() if path in same}
    if "twins" in own:
        own["twins"] = {path: primary for path, primary in own["twins"].items() if path in updates}
    if "unworn" in own:
        own["unworn"] = [path for path in own["unworn"] if path in updates]
    raw = configured(adapter.raw, updates, same_places=updates.keys() == parts.updates.keys())
    metadata = {**adapter.metadata, METADATA: json.dumps(stored_own(own, updates, origin), sort_keys=True)}
    return Adapter(tensors=tensors, raw=raw, metadata=metadata)
