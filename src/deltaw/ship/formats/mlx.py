"""mlx-lm's ``adapters.safetensors``: ``...q_proj.lora_a`` (I, r), ``...q_proj.lora_b`` (r, O), and ``...q_proj.m``.

Both factors lie the other way round than PEFT's. ``lora_parameters.scale`` in ``adapter_config.json`` is the factor
itself, not alpha. Early versions also had ``alpha`` there and applied scale * alpha / rank; today's ignore it, so a
file with both has two meanings and is not guessed.

Source: ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py and utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deltaw.errors import CheckpointError
from deltaw.ship.formats.contract import Ask, Format, Source, need_alpha
from deltaw.ship.formats.draft import Draft, Update

__all__ = ["MLX"]

_KEY = re.compile(r"(?P<stem>.+)\.(?P<part>lora_a|lora_b|m)")
_TABLES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
"""Names of embeddings, for files that are read without a base."""


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    if any(key.endswith(".lora_b") for key in tensors):
        return "keys end in '.lora_a' and '.lora_b'"
    if config.get("fine_tune_type") == "full":
        return "adapter_config.json states fine_tune_type"
    return None


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    if source.config.get("fine_tune_type") == "full":
        raise CheckpointError(
            "the file holds whole weights, no low-rank update",
            where=draft.where,
            got="fine_tune_type 'full' in adapter_config.json",
            expected="'lora' or 'dora'",
            hint="use it as a model with mlx-lm, or train with --fine-tune-type lora.",
        )
    stems: dict[str, dict[str, Tensor]] = {}
    strays = []
    for key, tensor in sorted(source.tensors.items()):
        match = _KEY.fullmatch(key)
        if match:
            stems.setdefault(match["stem"], {})[match["part"]] = tensor
        else:
            strays.append(key)
    draft.strays(strays, [], "is no part of a LoRA in this format")
    found = {stem: draft.pair(stem, parts.get("lora_a"), parts.get("lora_b")) for stem, parts in stems.items()}
    pairs = {stem: pair for stem, pair in found.items() if pair is not None}
    scale = _scale(source, draft, ask, max((lora_a.shape[-1] for lora_a, _ in pairs.values()), default=1))
    for stem, pair in pairs.items():
        if pair[0].dim() != 2 or pair[1].dim() != 2:
            draft.problems.append(f"'{stem}': {tuple(pair[0].shape)} is a stack of experts, which is no module")
            continue
        flipped = (pair[0].t(), pair[1].t())
        if not draft.same_rank(stem, flipped):
            continue
        rank = flipped[0].shape[0]
        alpha = need_alpha(ask, draft, "mlx-lm") if scale is None else scale * rank
        node = draft.node(stem)
        table = node.kind == "embedding" if node is not None and node.kind else stem.endswith(_TABLES)
        draft.add(
            stem,
            Update(
                lora_A=flipped[0],
                lora_B=flipped[1],
                alpha=alpha,
                origin=stem,
                table=table,
                magnitude=stems[stem].get("m"),
            ),
        )
    _say_tables(draft)


def _scale(source: Source, draft: Draft, ask: Ask, rank: int) -> float | None:
    """The factor on B A, or None where alpha is to be asked for."""
    stated = source.config.get("lora_parameters")
    stated = stated if isinstance(stated, Mapping) else {}
    scale, alpha = stated.get("scale"), stated.get("alpha")
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        return None
    if not isinstance(alpha, int | float) or ask.alpha is not None:
        return None if isinstance(alpha, int | float) else float(scale)
    old = scale * alpha / rank
    if old == scale:
        return float(scale)
    raise CheckpointError(
        "the file states both scale and alpha, which versions of mlx-lm read differently",
        where=draft.where,
        got=f"scale {scale:g}, alpha {alpha:g}, rank {rank}",
        expected=f"the factor {scale:g} (mlx-lm as it is now) or {old:g} (its early versions)",
        hint=f"say which by alpha = factor * rank: --alpha {scale * rank:g} or --alpha {old * rank:g}.",
    )


def _say_tables(draft: Draft) -> None:
    unsure = [path for path, update in draft.updates.items() if update.table and not _known(draft, path)]
    if unsure:
        draft.notes.append(f"taken as embeddings by their names: {', '.join(unsure)}")


def _known(draft: Draft, path: str) -> bool:
    node = draft.node(path)
    return node is not None and bool(node.kind)


MLX = Format(name="mlx", title="mlx-lm", detect=_detect, read=_read)
"""mlx-lm's adapters."""
