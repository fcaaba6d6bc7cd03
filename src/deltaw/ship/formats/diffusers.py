"""diffusers' LoRA files, old and new.

Old: ``unet.<attn>.processor.to_q_lora.down.weight`` (up to 0.20), ``unet.<layer>.lora.down.weight``, and for text
encoders ``...self_attn.to_q_lora.down.weight`` or ``...q_proj.lora_linear_layer.down.weight``. New: PEFT's
``<layer>.lora_A.weight`` behind the component's name. Alpha stands in ``<layer>.alpha``, or in the metadata of newer
files; where there is none, the scale is 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deltaw.errors import CheckpointError
from deltaw.peft_config import alpha_for
from deltaw.ship.formats.contract import Ask, Format, Source
from deltaw.ship.formats.draft import Draft, Update
from deltaw.ship.formats.kohya import scale_of
from deltaw.ship.formats.places import COMPONENTS, Places, wanted

__all__ = ["DIFFUSERS"]

METADATA = "lora_adapter_metadata"
_ENDS = {
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".alpha": "alpha",
}
_PROCESSOR = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_BARE = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(?:down|up)\.weight$")
_TRANSFORMER = re.compile(
    r"transformer\.(?!h\.\d|layers?\.\d+\.(?:attn|attention|mlp)\b)\w*(?:blocks|embed|proj|norm)\w*"
)


def _component(key: str) -> str:
    top = key.partition(".")[0]
    return top if top in COMPONENTS else ""


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    for key in tensors:
        if not key.endswith(tuple(_ENDS)) or "peft_type" in config:
            continue
        if _BARE.search(key):
            return "keys name attention processors ('.processor.to_q_lora.')"
        top = _component(key)
        if top and (top != "transformer" or _TRANSFORMER.match(key)):
            return f"keys begin with a pipeline's component ('{top}.')"
        if key.endswith((".lora.down.weight", ".lora_linear_layer.down.weight")):
            return "keys end in '.lora.down.weight' or '.lora_linear_layer.down.weight'"
    return None


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    stems: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(source.tensors.items()):
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None:
            draft.problems.append(f"'{key}' is no part of a LoRA in this format")
        else:
            stems.setdefault(_layer(key.removesuffix(end), end), {})[_ENDS[end]] = tensor
    owners = {stem: _component(stem) or "unet" for stem in stems}
    chosen, alone = wanted(ask, draft, owners)
    places = None if draft.tree is None else Places(draft.tree, alone)
    stated = _stated(source)
    for stem, parts in stems.items():
        component = owners[stem]
        if component not in chosen:
            continue
        path = stem.removeprefix(f"{component}.")
        if places is not None:
            prefix = places.prefix(component)
            if prefix is None:
                draft.problems.append(f"'{stem}': the tree holds no {component}")
                continue
            path = prefix + path
        _add(draft, stem, path, parts, stated.get(component, {}))
    if draft.tree is None and len(chosen) == 1:
        draft.notes.append(f"paths are those of the {alone} itself, not of a pipeline")


def _layer(stem: str, end: str) -> str:
    """The layer behind a processor's name."""
    if end == ".alpha":
        return _layer(*_of_alpha(stem))
    if not end.startswith("_lora"):
        return stem.removesuffix(".processor")
    owner, _, leaf = stem.rpartition(".")
    if owner.endswith(".processor"):
        return f"{owner.removesuffix('.processor')}.{_PROCESSOR.get(leaf, leaf)}"
    names = _TEXT if owner.endswith("self_attn") else _PROCESSOR
    return f"{owner}.{names.get(leaf, leaf)}"


def _of_alpha(stem: str) -> tuple[str, str]:
    """An alpha stands beside down and up, under whatever name they have."""
    for inner in ("_lora", ".lora", ".lora_linear_layer"):
        if stem.endswith(inner):
            return stem.removesuffix(inner), f"{inner}.down.weight"
    return stem, ".lora_A.weight"


def _add(draft: Draft, stem: str, path: str, parts: dict[str, Tensor], stated: Mapping[str, Any]) -> None:
    pair = draft.pair(stem, parts.get("A"), parts.get("B"))
    if pair is None or (pair[0].dim() == 2 and not draft.same_rank(stem, pair)):
        return
    rank = pair[0].shape[0]
    alpha = scale_of(draft, stem, parts.get("alpha"), rank)
    if "alpha" not in parts and "lora_alpha" in stated:
        inner = stem.removeprefix(f"{_component(stem)}.")
        alpha = float(alpha_for(dict(stated), inner))
        if stated.get("use_rslora"):
            alpha *= rank**0.5
    update = Update(
        lora_A=pair[0],
        lora_B=pair[1],
        alpha=alpha,
        origin=stem,
        magnitude=parts.get("magnitude"),
        bias=parts.get("bias"),
    )
    draft.add(path, update)


def _stated(source: Source) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each component, from the metadata of newer files."""
    text = source.metadata.get(METADATA)
    if not text:
        return {}
    try:
        entries = json.loads(text)
        found: dict[str, dict[str, Any]] = {}
        for name, value in entries.items():
            component, _, key = name.partition(".")
            found.setdefault(component, {})[key] = value
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            "the file's metadata cannot be read",
            where=f"{source.path}: {METADATA}",
            got=str(error)[:160],
            expected="JSON that holds an object",
            hint="the file is damaged; download it again.",
        ) from None
    return found


DIFFUSERS = Format(name="diffusers", title="diffusers", detect=_detect, read=_read)
"""diffusers' files, from attention processors to PEFT's keys."""
