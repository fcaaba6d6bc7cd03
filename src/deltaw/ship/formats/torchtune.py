"""torchtune's adapter files: ``layers.0.attn.q_proj.lora_a.weight`` (r, I), ``lora_b.weight`` (O, r), ``magnitude``.

torchtune turns neighboring pairs of a head's values where transformers turns its halves, so for the families whose
checkpoints it permutes on loading (Llama, Mistral, Gemma), the rows of q's and k's B are put back in transformers'
order; Qwen and Phi-3 are not permuted. ``adapter_config.json`` beside the tensors states r and alpha.

Source: pytorch/torchtune, torchtune/models/convert_weights.py, models/qwen2/_convert_weights.py, models/phi3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltaw.errors import CheckpointError
from deltaw.ship.formats.contract import Ask, Format, Source, stated_alpha
from deltaw.ship.formats.draft import Draft, Update
from deltaw.ship.formats.families import FAMILIES, Family, Heads, family_by_tree, family_by_type, heads_of
from deltaw.ship.formats.fused import Part, add_parts

__all__ = ["TORCHTUNE", "halves"]

_KEY = re.compile(r"(?P<stem>.+)\.(?P<part>lora_a\.weight|lora_b\.weight|magnitude(?:\.weight)?)")
_STEM = re.compile(r"layers\.(?P<layer>\d+)\.(?P<role>attn\.\w+|mlp\.\w+)")
_ROLES = {
    "attn.q_proj": "q",
    "attn.k_proj": "k",
    "attn.v_proj": "v",
    "attn.output_proj": "o",
    "mlp.w1": "gate",
    "mlp.w2": "down",
    "mlp.w3": "up",
}


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    found = next((key for key in tensors if key.endswith(".lora_b.weight")), None)
    return None if found is None else "keys end in '.lora_a.weight' and '.lora_b.weight'"


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    stems: dict[str, dict[str, Tensor]] = {}
    strays = []
    for key, tensor in sorted(source.tensors.items()):
        match = _KEY.fullmatch(key)
        if match:
            stems.setdefault(match["stem"], {})[match["part"].partition(".")[0]] = tensor
        else:
            strays.append(key)
    draft.strays(strays, [], "is no part of a LoRA in this format")
    family = _family(ask, draft)
    heads = heads_of(ask.base)
    alpha = stated_alpha(source, ask, draft, "torchtune without its adapter_config.json")
    parts: dict[str, list[Part]] = {}
    for stem, tensors in stems.items():
        pair = draft.pair(stem, tensors.get("lora_a"), tensors.get("lora_b"))
        if pair is None or not draft.same_rank(stem, pair):
            continue
        role, layer = _role(stem)
        update = Update(lora_A=pair[0], lora_B=pair[1], alpha=alpha, origin=stem, magnitude=tensors.get("magnitude"))
        if role in ("q", "k") and family.paired_rope:
            _permute(update, heads, role, draft)
        _place(draft, family, heads, role, layer, update, parts)
    add_parts(draft, parts)
    if any(_role(stem)[0] in ("q", "k") for stem in stems):
        order = "put into transformers' order" if family.paired_rope else "already in transformers' order"
        draft.notes.append(f"{family.name}: rows of q and k are {order}")


def _role(stem: str) -> tuple[str, str]:
    match = _STEM.fullmatch(stem)
    if match:
        return _ROLES.get(match["role"], ""), match["layer"]
    return {"output": "head", "tok_embeddings": "table"}.get(stem, ""), ""


def _family(ask: Ask, draft: Draft) -> Family:
    found = family_by_type(ask.base.get("model_type"))
    if found is not None:
        return found
    guess = family_by_tree(draft.tree) if draft.tree is not None else None
    # Llama and Qwen share their names and differ in the order of rows
    if guess is not None and guess.roles is not FAMILIES[0].roles:
        return guess
    raise CheckpointError(
        "the model's family is not known",
        where=draft.where,
        got=f"model_type {ask.base.get('model_type')!r}",
        expected="one of " + ", ".join(name for family in FAMILIES[:3] for name in family.types),
        hint="give the base: --model DIR; its config.json says the family and the heads, and is enough.",
    )


def halves(rows: Tensor, heads: int) -> Tensor:
    """Put rows from the order of neighboring pairs into the order of halves, head by head.

    Args:
        rows: shape (heads * size, ...), in torchtune's order.
        heads: number of heads.

    Returns:
        The same rows in transformers' order.

    Source:
        torchtune/models/convert_weights.py, ``tune_to_hf``.

    Example:
        >>> halves(torch.arange(4), 1).tolist()
        [0, 2, 1, 3]
    """
    order = torch.arange(rows.shape[0]).view(heads, -1, 2).transpose(1, 2).reshape(-1)
    return rows[order]


def _permute(update: Update, heads: Heads | None, role: str, draft: Draft) -> None:
    if heads is None:
        raise CheckpointError(
            "the number of heads is not known",
            where=draft.where,
            got="no num_attention_heads and hidden_size",
            expected="the head layout, by which rows of q and k are put into transformers' order",
            hint="give the base: --model DIR; its config.json is enough.",
        )
    number = heads.queries if role == "q" else heads.groups
    if update.lora_B.shape[0] != number * heads.size:
        draft.problems.append(
            f"'{update.origin}': B has {update.lora_B.shape[0]} rows, the model {number} heads of {heads.size}"
        )
        return
    update.lora_B = halves(update.lora_B, number)
    if update.magnitude is not None:
        update.magnitude = halves(update.magnitude, number)


def _place(
    draft: Draft,
    family: Family,
    heads: Heads | None,
    role: str,
    layer: str,
    update: Update,
    parts: dict[str, list[Part]],
) -> None:
    path = family.path(role, layer, draft.tree) if role else None
    if path is not None:
        update.table = role == "table"
        draft.add(path, update)
        return
    fused = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.get(role, "")
    path = family.path(fused, layer, draft.tree) if fused else None
    rows = None
    if path is not None and fused == "qkv" and heads is not None:
        rows, out = heads.in_a_row()["qkv".index(role)], sum(heads.widths())
    elif path is not None and fused == "gate_up":
        width = update.lora_B.shape[0]
        rows, out = torch.arange(width) + (width if role == "up" else 0), 2 * width
    if path is None or rows is None:
        draft.problems.append(f"'{update.origin}': {family.name} has no such module")
        return
    parts.setdefault(path, []).append(Part(update=update, rows=rows, out=out))


TORCHTUNE = Format(name="torchtune", title="torchtune", detect=_detect, read=_read)
"""torchtune's own adapter files; its exports in PEFT's layout are read as PEFT."""
