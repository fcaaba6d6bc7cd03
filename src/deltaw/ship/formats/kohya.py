"""kohya's sd-scripts: ``lora_unet_down_blocks_0_..._to_q.lora_down.weight``, dots turned into underscores.

down is A, (r, I) or (r, I, *kernel); up is B, (O, r) or (O, r, 1, 1); ``alpha`` is a scalar, and where it is missing
or zero the scale is 1. With ``lora_mid`` (LoCon's CP form) A is the kernel of mid after down. Which underscore was a
dot cannot be told from a name, so every module of the real tree is spelled that way and looked up.

Source: kohya-ss/sd-scripts, networks/lora.py; KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.errors import CheckpointError, nearest
from deltaw.ship.formats.contract import Ask, Format, Source
from deltaw.ship.formats.draft import Draft, Update
from deltaw.ship.formats.places import Places, wanted

__all__ = ["KOHYA", "scale_of", "through_mid"]

_PREFIXES = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "lora_prior_": "prior",
}
_PARTS = re.compile(r"(?P<stem>.+?)[._](?P<part>lora_down|lora_up|lora_mid|lora_A|lora_B)(?:\.default)?\.weight")
_OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "diff": "a full difference",
    "on_input": "(IA)^3",
    "w_norm": "a trained norm",
    "b_norm": "a trained norm",
    "a1.": "GLoRA",
    "a2.": "GLoRA",
    "b1.": "GLoRA",
    "b2.": "GLoRA",
    "bm.": "GLoRA",
}
_NAMES = {"lora_down": "A", "lora_A": "A", "lora_up": "B", "lora_B": "B", "lora_mid": "mid"}


def _component(key: str) -> tuple[str, str] | None:
    """The component a key speaks of, and its prefix."""
    return next(((name, prefix) for prefix, name in _PREFIXES.items() if key.startswith(prefix)), None)


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    found = next((c for key in tensors if (c := _component(key))), None)
    return None if found is None else f"keys begin with {found[1]!r}, dots turned into underscores"


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    stems, strays = _stems(source)
    _refuse_others(draft, strays)
    draft.strays([key for key, _ in strays], [], "is no part of a LoRA in this format")
    if draft.tree is None:
        raise CheckpointError(
            "these names can only be read against the base's modules",
            where=draft.where,
            got="names in which underscores stand for dots and for themselves",
            expected="the base, or the names of its modules",
            hint="add --model DIR, or --tree FILE with one module path a line (model= in Python).",
        )
    owners = {stem: component for stem in stems if (component := (_component(stem) or ("?", ""))[0])}
    owners = {stem: _actual(draft, component) for stem, component in owners.items()}
    chosen, alone = wanted(ask, draft, owners)
    places = Places(draft.tree, alone)
    for stem, parts in sorted(stems.items()):
        if owners[stem] in chosen:
            _add(draft, places, owners[stem], stem, parts)
    for key in ("ss_base_model_version", "ss_network_module"):
        if source.metadata.get(key):
            draft.notes.append(f"the file says {key} = {source.metadata[key]}")


def _actual(draft: Draft, component: str) -> str:
    """A diffusion transformer is called unet in these files."""
    assert draft.tree is not None
    tops = {path.partition(".")[0] for path in draft.tree.nodes}
    return "transformer" if component == "unet" and "transformer" in tops and "unet" not in tops else component


def _stems(source: Source) -> tuple[dict[str, dict[str, Tensor]], list[tuple[str, str]]]:
    """Tensors by module, and (key, what follows its module's name) of those that are no part of a LoRA."""
    stems: dict[str, dict[str, Tensor]] = {}
    strays: list[tuple[str, str]] = []
    for key, tensor in sorted(source.tensors.items()):
        match = _PARTS.fullmatch(key)
        stem, dot, leaf = key.partition(".")
        if match:
            stems.setdefault(match["stem"], {})[_NAMES[match["part"]]] = tensor
        elif dot and leaf in ("alpha", "dora_scale"):
            stems.setdefault(stem, {})[leaf] = tensor
        else:
            strays.append((key, leaf))
    return stems, strays


def _refuse_others(draft: Draft, strays: list[tuple[str, str]]) -> None:
    methods: dict[str, str] = {}
    for key, leaf in strays:
        name = next((name for start, name in _OTHERS.items() if leaf.startswith(start)), None)
        if name is not None:
            methods.setdefault(name, key)
    if methods:
        raise CheckpointError(
            f"the file holds {' and '.join(sorted(methods))}, which is no LoRA",
            where=draft.where,
            got=", ".join(f"'{key}'" for key in methods.values()),
            expected="lora_down and lora_up for every module",
            hint="extract a LoRA of the rank you want with the tool that wrote it, and convert that.",
        )


def _add(draft: Draft, places: Places, component: str, stem: str, parts: dict[str, Tensor]) -> None:
    pair = draft.pair(stem, parts.get("A"), parts.get("B"))
    if pair is None or not draft.same_rank(stem, pair):
        return
    rank = pair[0].shape[0]
    if "mid" in parts:
        pair = through_mid(pair[0], pair[1], parts["mid"])
    magnitude = _magnitude(draft, stem, parts.get("dora_scale"), pair[1])
    name = stem.removeprefix((_component(stem) or ("", ""))[1])
    found = places.find(component, name, pair)
    if not found:
        missing = places.prefix(component) is None
        close = "" if missing else f"; nearest: {nearest(name, places.names(component), 2)}"
        lacks = f"the tree holds no {component}" if missing else f"no module spelled '{name}'"
        draft.problems.append(f"'{stem}': {lacks}{close}")
        return
    if len(found) > 1:
        draft.problems.append(f"'{stem}' may be any of {', '.join(map(repr, found))}")
        return
    alpha = scale_of(draft, stem, parts.get("alpha"), rank)
    draft.add(found[0], Update(lora_A=pair[0], lora_B=pair[1], alpha=alpha, origin=stem, magnitude=magnitude))


def scale_of(draft: Draft, stem: str, alpha: Tensor | None, rank: int) -> float:
    """Alpha of one module by the convention of these files.

    Args:
        draft: hears of an alpha that is no number.
        stem: the module's name in the file.
        alpha: the stored scalar, or None.
        rank: R.

    Returns:
        The stored alpha; the rank, which makes the scale 1, where there is none or it is 0.
    """
    if alpha is not None and alpha.numel() != 1:
        draft.problems.append(f"'{stem}': alpha has {alpha.numel()} values, not one")
        return float(rank)
    value = 0.0 if alpha is None else float(alpha)
    return value if value != 0 else float(rank)


def through_mid(down: Tensor, up: Tensor, mid: Tensor) -> tuple[Tensor, Tensor]:
    """Put a convolution's three factors into two.

    Args:
        down: 1x1 kernel of shape (R, I, 1, 1).
        up: 1x1 kernel of shape (O, R, 1, 1).
        mid: kernel of shape (R, R, *kernel).

    Returns:
        A of shape (R, I, *kernel), computed in float64 and rounded once, and B of shape (O, R, 1, 1).

    Source:
        LyCORIS, weights rebuilt from the CP decomposition: sum over p, q of up[o, p] mid[p, q, ...] down[q, i].
    """
    whole = torch.einsum("pq...,qi->pi...", mid.double(), down.flatten(1).double())
    return whole.to(torch.promote_types(down.dtype, torch.float32)), up


def _magnitude(draft: Draft, stem: str, scale: Tensor | None, up: Tensor) -> Tensor | None:
    """DoRA's magnitude where it stands for output channels; LyCORIS also wrote one for input channels."""
    if scale is None:
        return None
    if scale.dim() < 2 or scale.shape[0] != up.shape[0] or scale.numel() != up.shape[0]:
        draft.problems.append(
            f"'{stem}.dora_scale' {tuple(scale.shape)} is DoRA over input channels, which PEFT's format cannot hold"
        )
        return None
    return scale.flatten()


KOHYA = Format(name="kohya", title="kohya's sd-scripts", detect=_detect, read=_read)
"""kohya's LoRA and LoCon files."""
