"""nn.MultiheadAttention: its forward multiplies the weights of both projections itself, so it is done again here.

The input projection is one fused weight (3 E, E) whose thirds make queries, keys and values; it is the site of this
kind. The output projection is a Linear of its own, and is called as one here, so that an adapter on it is heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.errors import ModelError
from deltaw.functional import linear_down
from deltaw.layers.kind import Kind

__all__ = ["ATTENTION"]

Project = Callable[[Tensor, Tensor, int, int], Tensor]
"""(base projection, its input, first and last output row) -> projection with the adapters' terms."""


def _down(module: Any, x: Tensor, lora_A: Tensor, dtype: torch.dtype) -> Tensor:
    return linear_down(x, lora_A)


def _matches(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim


def _projected(module: Any, query: Tensor, key: Tensor, value: Tensor, project: Project) -> list[Tensor]:
    """Queries, keys and values; inputs that are one tensor are projected in one product."""
    width: int = module.embed_dim
    runs: list[tuple[Tensor, int, int]] = [(query, 0, 1)]
    for i, x in ((1, key), (2, value)):
        last_x, first, _ = runs[-1]
        if x is last_x:
            runs[-1] = (x, first, i + 1)
        else:
            runs.append((x, i, i + 1))
    out: list[Tensor] = []
    for x, first, last in runs:
        start, stop = first * width, last * width
        bias = None if module.in_proj_bias is None else module.in_proj_bias[start:stop]
        base = F.linear(x, module.in_proj_weight[start:stop], bias)
        out += project(base, x, start, stop).chunk(last - first, dim=-1)
    return out


def _masks(
    module: Any, query: Tensor, attn_mask: Tensor | None, padding: Tensor | None, extra: int
) -> tuple[Tensor | None, Tensor | None]:
    """Both masks as additive tensors, widened for the positions that the module itself adds."""
    padding = F._canonical_mask(padding, "key_padding_mask", F._none_or_dtype(attn_mask), "attn_mask", query.dtype)
    attn_mask = F._canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, check_other=False)
    if extra:
        attn_mask = None if attn_mask is None else F.pad(attn_mask, (0, extra))
        padding = None if padding is None else F.pad(padding, (0, extra))
    return attn_mask, padding


def _heads(module: Any, x: Tensor) -> Tensor:
    """(length, batch, E) -> (batch, heads, length, E / heads)."""
    length, batch = x.shape[:2]
    return x.reshape(length, batch, module.num_heads, module.head_dim).permute(1, 2, 0, 3)


def _extended(module: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the trained and the zero position that some modules add."""
    if module.bias_k is not None:
        key = torch.cat([key, module.bias_k.expand(1, key.shape[1], -1).to(key.dtype)])
        value = torch.cat([value, module.bias_v.expand(1, value.shape[1], -1).to(value.dtype)])
    if module.add_zero_attn:
        key, value = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (key, value))
    return key, value


def _attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, weighted: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of heads; with the weights where they are asked for."""
    dropped = module.dropout if module.training else 0.0
    if not weighted:
        return F.scaled_dot_product_attention(q, k, v, mask, dropped, causal), None
    scores = (q * math.sqrt(1.0 / module.head_dim)) @ k.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    kept = F.dropout(weights, p=dropped) if dropped else weights
    return kept @ v, kept


def _forward(module: Any, project: Project, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``nn.MultiheadAttention.forward`` computes, with adapters on its projections."""
    given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
    query, key, value = given["query"], given["key"], given["value"]
    attn_mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    weighted, causal = given.get("need_weights", True), given.get("is_causal", False)
    _check(module, query, attn_mask, causal)
    batched = query.dim() == 3
    swap = module.batch_first and batched
    # identical inputs stay identical, so that they are projected once
    seen: dict[int, Tensor] = {}
    for x in (query, key, value):
        seen.setdefault(id(x), x.transpose(0, 1) if swap else x if batched else x.unsqueeze(1))
    query, key, value = (seen[id(x)] for x in (query, key, value))
    padding = padding.unsqueeze(0) if padding is not None and not batched else padding
    extra = int(module.bias_k is not None) + int(module.add_zero_attn)
    hint = causal and padding is None and not weighted
    attn_mask, padding = _masks(module, query, None if hint else attn_mask, padding, extra)
    q, k, v = _projected(module, query, key, value, project)
    k, v = _extended(module, k, v)
    q, k, v = (_heads(module, x) for x in (q, k, v))
    mask = None if attn_mask is None else attn_mask.reshape(-1, *attn_mask.shape[-2:])
    if mask is not None:
        mask = mask if len(mask) == 1 else mask.reshape(q.shape[0], module.num_heads, *mask.shape[-2:])
    if padding is not None:
        wide = padding[:, None, None, :]
        mask = wide if mask is None else mask + wide
    out, weights = _attend(module, q, k, v, mask, hint, weighted)
    out = module.out_proj(out.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], module.embed_dim))
    out = out.transpose(0, 1) if swap else out if batched else out.squeeze(1)
    if weights is not None:
        weights = weights.mean(dim=1) if given.get("average_attn_weights", True) else weights
        weights = weights if batched else weights.squeeze(0)
    return out, weights


_ARGUMENTS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


def _check(module: Any, query: Tensor, attn_mask: Tensor | None, causal: bool) -> None:
    """Refuse what the base module refuses or what cannot be done again here."""
    got = None
    if query.is_nested:
        got, expected, hint = "a nested tensor", "a padded tensor", "pad the inputs, or disable the adapter."
    elif causal and attn_mask is None:
        got, expected, hint = "is_causal without attn_mask", "a mask beside the hint", "pass attn_mask as well."
    if got is not None:
        raise ModelError(
            "attention with an adapter cannot run this input",
            where=f"{type(module).__mro__[1].__name__}.forward",
            got=got,
            expected=expected,
            hint=hint,
        )


ATTENTION = Kind(
    name="Attention",
    matches=_matches,
    sizes=lambda module: (module.embed_dim, 3 * module.embed_dim),
    transposed=False,
    suffixes=(".lora_A.weight", ".lora_B.weight"),
    down=_down,
    parameter="in_proj_weight",
    bias="in_proj_bias",
    droppable=False,
    readable=False,
    forward=_forward,
    parts=("out_proj",),
)
