"""Which modules of a model are the paper's W_q, W_k, W_v and W_o, in the words of ``LoRAConfig.targets``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from deltaw.errors import ModelError
from deltaw.layers import kind_of
from deltaw.patterns import Matcher

__all__ = ["DEBERTA", "GPT2", "LLAMA", "ROLES", "roles_of", "targets_for"]

ROLES = ("q", "k", "v", "o")

GPT2 = {"q": "c_attn[q]", "k": "c_attn[k]", "v": "c_attn[v]", "o": "attn.c_proj"}
DEBERTA = {"q": "query_proj", "k": "key_proj", "v": "value_proj", "o": "attention.output.dense"}
LLAMA = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}

_FAMILIES: tuple[Mapping[str, str], ...] = (
    GPT2,
    DEBERTA,
    {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
     "o": "attention.output.dense"},
    LLAMA,
    {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
    {"q": "q_lin", "k": "k_lin", "v": "v_lin", "o": "out_lin"},
    {"q": "query_key_value[q]", "k": "query_key_value[k]", "v": "query_key_value[v]", "o": "attention.dense"},
    {"q": "qkv_proj[q]", "k": "qkv_proj[k]", "v": "qkv_proj[v]", "o": "o_proj"},
)  # fmt: skip
"""GPT-2, DeBERTa, RoBERTa and BERT, Llama and its kin, OPT, DistilBERT, GPT-NeoX, Phi-3."""


def roles_of(model: nn.Module) -> dict[str, str]:
    """Find the attention projections of a model.

    Args:
        model: any model, on any device.

    Returns:
        q, k, v, o -> target.

    Raises:
        ModelError: if the model's names are of no family that is known here.
    """
    modules: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules() if path]
    for family in _FAMILIES:
        matchers = [Matcher(target) for target in family.values()]
        if all(any(matcher.matches(path, module) for path, module in modules) for matcher in matchers):
            return dict(family)
    leaves = sorted({path.rpartition(".")[2] for path, module in modules if kind_of(module) is not None})
    raise ModelError(
        "this model's attention projections are not known by name",
        where=type(model).__name__,
        got="modules named " + ", ".join(map(repr, leaves[:8])) if leaves else "no module that can be adapted",
        expected="; ".join(", ".join(family.values()) for family in _FAMILIES[:4]) + "; ...",
        hint="the analyses of W_q to W_o need one of these families; deltaw plan --target counts any module.",
    )


def targets_for(roles: Mapping[str, str], letters: Sequence[str]) -> tuple[str, ...]:
    """Targets of some projections; slices of one fused weight become one target.

    Args:
        roles: q, k, v, o -> target.
        letters: which.

    Returns:
        Targets.

    Example:
        >>> targets_for({"q": "c_attn[q]", "v": "c_attn[v]", "o": "attn.c_proj"}, "qvo")
        ('c_attn[q,v]', 'attn.c_proj')
    """
    fused: dict[str, list[str]] = {}
    for letter in letters:
        head, _, part = roles[letter].partition("[")
        fused.setdefault(head, []).extend([part.rstrip("]")] if part else [])
    return tuple(head + (f"[{','.join(parts)}]" if parts else "") for head, parts in fused.items())
