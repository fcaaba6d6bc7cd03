"""litgpt's ``lit_model.pth.lora``: ``transformer.h.0.attn.qkv.lora_A`` (r * n, I), ``lora_B`` (rows, r).

The fused projection's B holds the rows of all queries, then of all keys, then of all values, as far as they were
trained; A holds r rows for each of them. Models that transformers keeps split get one plain LoRA per projection, bit
for bit; fused ones get a zero-blocked B. ``hyperparameters.yaml`` states alpha and what was trained,
``model_config.yaml`` the heads.

Source: Lightning-AI/litgpt, litgpt/lora.py and litgpt/scripts/convert_lit_checkpoint.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.errors import CheckpointError
from deltaw.ship.formats.contract import Ask, Format, Source, stated_alpha
from deltaw.ship.formats.draft import Draft, Update
from deltaw.ship.formats.families import Family, Heads, family_by_tree, family_by_type, heads_of
from deltaw.ship.formats.fused import Part, add_parts

__all__ = ["LITGPT", "STEM"]

STEM = re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<role>attn\.(?:attn|qkv|proj)|mlp\.(?:fc|fc_1|fc_2|proj))")
"""litgpt's modules; the original GPT-2 code has c_attn, c_proj and c_fc instead."""
_ROLES = {"attn.proj": "o", "mlp.fc": "up", "mlp.fc_1": "gate", "mlp.fc_2": "up", "mlp.proj": "down"}
_SWITCHES = ("lora_query", "lora_key", "lora_value")


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    stems = [key.removesuffix(".lora_B") for key in tensors if key.endswith(".lora_B")]
    if any(STEM.fullmatch(stem) for stem in stems):
        return "keys name litgpt's modules ('transformer.h.N.attn...lora_B')"
    return "hyperparameters.yaml states lora_r" if stems and "lora_r" in config else None


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    stems: dict[str, dict[str, Tensor]] = {}
    strays = []
    for key, tensor in sorted(source.tensors.items()):
        stem, _, leaf = key.rpartition(".")
        if leaf in ("lora_A", "lora_B"):
            stems.setdefault(stem, {})[leaf] = tensor
        else:
            strays.append(key)
    draft.strays(strays, [], "is no part of a LoRA in this format")
    family, heads = _family(source, ask, draft), _heads(source, ask)
    alpha = stated_alpha(source, ask, draft, "litgpt without its hyperparameters.yaml")
    parts: dict[str, list[Part]] = {}
    for stem, tensors in stems.items():
        pair = draft.pair(stem, tensors.get("lora_A"), tensors.get("lora_B"))
        if pair is None:
            continue
        match = STEM.fullmatch(stem)
        role = _ROLES.get(match["role"]) if match else {"lm_head": "head"}.get(stem)
        layer = match["layer"] if match else ""
        if match and role is None:
            _attention(source, ask, draft, family, heads, layer, stem, pair, alpha, parts)
        elif role is None:
            draft.problems.append(f"'{stem}' is none of litgpt's modules that deltaw knows")
        elif draft.same_rank(stem, pair):
            update = Update(lora_A=pair[0], lora_B=pair[1], alpha=alpha, origin=stem)
            _place(draft, family, role, layer, update, parts)
    add_parts(draft, parts)


def _family(source: Source, ask: Ask, draft: Draft) -> Family:
    found = family_by_type(ask.base.get("model_type"))
    if found is None and draft.tree is not None:
        found = family_by_tree(draft.tree)
    if found is None:
        name = str(source.config.get("name", "")).lower()
        mlp = source.config.get("mlp_class_name")
        if "phi-3" in name or "phi-4" in name:
            found = family_by_type("phi3")
        elif mlp in ("LLaMAMLP", "GemmaMLP"):
            found = family_by_type("llama")
        elif mlp == "GptNeoxMLP":
            kinds = {"pythia": "gpt_neox", "falcon": "falcon", "phi-": "phi", "redpajama": "gpt_neox"}
            found = next((family_by_type(kind) for start, kind in kinds.items() if start in name), None)
    if found is not None:
        return found
    raise CheckpointError(
        "the model's family is not known",
        where=draft.where,
        got=f"model_type {ask.base.get('model_type')!r}, litgpt name {source.config.get('name')!r}",
        expected="a family whose names in transformers deltaw knows: Llama, Qwen, Phi, GPT-NeoX, Falcon",
        hint="give the base: --model DIR, or copy litgpt's model_config.yaml beside the file.",
    )


def _heads(source: Source, ask: Ask) -> Heads | None:
    queries, groups = source.config.get("n_head"), source.config.get("n_query_groups")
    size, width = source.config.get("head_size"), source.config.get("n_embd")
    if not isinstance(queries, int) or queries < 1:
        return heads_of(ask.base)
    groups = groups if isinstance(groups, int) and groups > 0 else queries
    if not isinstance(size, int) and isinstance(width, int):
        size = width // queries
    return Heads(queries=queries, groups=groups, size=size) if isinstance(size, int) else heads_of(ask.base)


def _attention(
    source: Source,
    ask: Ask,
    draft: Draft,
    family: Family,
    heads: Heads | None,
    layer: str,
    stem: str,
    pair: tuple[Tensor, Tensor],
    alpha: float,
    parts: dict[str, list[Part]],
) -> None:
    """The fused projection: r rows of A and some rows of B for each of q, k, v that was trained."""
    if heads is None:
        raise CheckpointError(
            "the head layout is not known",
            where=draft.where,
            got="no n_head, n_embd or head_size beside the file, and no base",
            expected="how many rows of the fused projection are queries, keys and values",
            hint="give the base: --model DIR, or copy litgpt's model_config.yaml beside the file.",
        )
    enable = _enable(source, ask, draft, heads, stem, pair)
    if enable is None:
        return
    rank, start = pair[1].shape[1], 0
    places = heads.interleaved() if family.interleaved else heads.in_a_row()
    for number, part in enumerate([i for i, on in enumerate(enable) if on]):
        role, width = "qkv"[part], heads.widths()[part]
        update = Update(
            lora_A=pair[0][number * rank : (number + 1) * rank],
            lora_B=pair[1][start : start + width],
            alpha=alpha,
            origin=f"{stem}[{role}]",
        )
        start += width
        path = family.path(role, layer, draft.tree)
        if path is not None:
            draft.add(path, update)
        else:
            whole = family.path("qkv", layer, draft.tree) or ""
            parts.setdefault(whole, []).append(Part(update=update, rows=places[part], out=sum(heads.widths())))


def _enable(
    source: Source, ask: Ask, draft: Draft, heads: Heads, stem: str, pair: tuple[Tensor, Tensor]
) -> tuple[bool, ...] | None:
    """Which of q, k, v were trained: as stated, as asked, or the one choice that fits the shapes."""
    fitting = []
    for choice in itertools.product((True, False), repeat=3):
        rows = sum(width for width, on in zip(heads.widths(), choice, strict=True) if on)
        if any(choice) and sum(choice) * pair[1].shape[1] == pair[0].shape[0] and rows == pair[1].shape[0]:
            fitting.append(choice)
    stated = tuple(bool(source.config.get(name)) for name in _SWITCHES)
    if any(name in source.config for name in _SWITCHES):
        wanted: tuple[bool, ...] | None = stated
    elif len(fitting) > 1 and ask.enable is not None:
        draft.used.add("enable")
        wanted = ask.enable
    else:
        wanted = fitting[0] if len(fitting) == 1 else None
    if wanted in fitting:
        return wanted
    shapes = f"A {tuple(pair[0].shape)} and B {tuple(pair[1].shape)}"
    if wanted is None and fitting:
        draft.problems.append(f"'{stem}': {shapes} may be several of q, k, v; say which with --enable")
    else:
        draft.problems.append(
            f"'{stem}': {shapes} do not fit {heads.queries} query heads and {heads.groups} key heads of {heads.size}"
        )
    return None


def _place(draft: Draft, family: Family, role: str, layer: str, update: Update, parts: dict[str, list[Part]]) -> None:
    path = family.path(role, layer, draft.tree)
    fused = family.path("gate_up", layer, draft.tree) if role in ("gate", "up") else None
    if path is not None:
        draft.add(path, update)
    elif fused is not None:
        width = update.lora_B.shape[0]
        rows = torch.arange(width) + (width if role == "up" else 0)
        parts.setdefault(fused, []).append(Part(update=update, rows=rows, out=2 * width))
    else:
        draft.problems.append(f"'{update.origin}': {family.name} has no such module")


LITGPT = Format(name="litgpt", title="litgpt", detect=_detect, read=_read)
"""litgpt's LoRA checkpoints."""
