"""Slices of fused projections: which output rows belong to q, k, v, gate or up.

Three layouts exist. *Blocked*: all of q, then all of k, then all of v (GPT-2's c_attn, Phi-3's qkv_proj). *Per head*:
each head's q, k, v together (BLOOM, GPT-NeoX). *Halves*: gate, then up. The layout follows from the module's name and
its model's config; anything else is written as explicit rows, ``name[0:64,128:192]``.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from deltaw.errors import TargetError, nearest

__all__ = ["Ranges", "rows_of", "split_pattern"]

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of output rows."""

_BLOCKED = {"c_attn", "qkv_proj", "qkv", "Wqkv", "in_proj_qkv", "query_key_value"}
_HALVES = {"gate_up_proj"}
_PER_HEAD = {"bloom", "gpt_neox"}
_EXPLICIT = re.compile(r"(\d+):(\d+)")


def split_pattern(pattern: str) -> tuple[str, tuple[str, ...]]:
    """Separate a pattern from its slices.

    Args:
        pattern: such as ``"c_attn[q,v]"``.

    Returns:
        The module pattern and the slice names, empty where there are none.

    Example:
        >>> split_pattern("attn.c_attn[q, v]"), split_pattern("q_proj")
        (('attn.c_attn', ('q', 'v')), ('q_proj', ()))
    """
    if pattern.startswith("re:") or not pattern.endswith("]") or "[" not in pattern:
        return pattern, ()
    head, _, inner = pattern[:-1].partition("[")
    names = tuple(part.strip() for part in inner.split(","))
    # a glob's character class, such as layers.[0-3].q_proj[ab], has one part and is no list of slice names
    return (head, names) if head else (pattern, ())


def _refuse(path: str, got: str, expected: str, hint: str) -> TargetError:
    return TargetError(
        "cannot tell which rows a slice means", where=f"module '{path}'", got=got, expected=expected, hint=hint
    )


def _head_sizes(config: Any, width: int) -> tuple[int, int, int]:
    """(query, key, value) rows of a blocked projection, from the model's config where it has grouped heads."""
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads and groups and heads != groups:
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return heads * size, groups * size, groups * size
    return width // 3, width // 3, width // 3


def _named(path: str, width: int, config: Any) -> dict[str, Ranges]:
    """All slices of a module that can be told by its name."""
    name = path.rpartition(".")[2]
    if name in _HALVES:
        return {"gate": ((0, width // 2),), "up": ((width // 2, width),)}
    if name not in _BLOCKED:
        return {}
    model_type = getattr(config, "model_type", None)
    if name == "query_key_value":
        if model_type not in _PER_HEAD:
            return {}
        heads = config.num_attention_heads
        size = width // heads // 3
        return {
            part: tuple(((3 * head + i) * size, (3 * head + i + 1) * size) for head in range(heads))
            for i, part in enumerate("qkv")
        }
    query, key, value = _head_sizes(config, width)
    if query + key + value != width:
        return {}
    return {"q": ((0, query),), "k": ((query, query + key),), "v": ((query + key, width),)}


def _config_of(model: nn.Module, path: str) -> Any:
    """The configuration nearest to a module: a part of a larger model knows its own heads best."""
    found, module = getattr(model, "config", None), model
    for name in path.split(".")[:-1]:
        if not hasattr(module, name):
            break
        module = getattr(module, name)
        found = getattr(module, "config", None) or found
    return found


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def rows_of(path: str, part: str, width: int, model: nn.Module) -> Ranges:
    """Rows of the output that a slice names.

    Args:
        path: module path of the fused projection.
        part: slice name (q, k, v, gate, up) or explicit rows such as ``"0:64"``.
        width: number of output features.
        model: the model, whose ``config`` (the nearest one above the module) tells grouped heads and layout.

    Returns:
        Half-open ranges, ascending.

    Raises:
        TargetError: if the module's layout is not known, or the rows do not exist.

    Example:
        >>> rows_of("h.0.attn.c_attn", "v", 12, nn.Module())
        ((8, 12),)
    """
    explicit = _EXPLICIT.fullmatch(part)
    if explicit:
        start, stop = int(explicit[1]), int(explicit[2])
        if not 0 <= start < stop <= width:
            raise _refuse(path, f"[{part}]", f"rows within 0:{width}", "give start:stop with start < stop.")
        return ((start, stop),)
    known = _named(path, width, _config_of(model, path))
    if isinstance(_module_at(model, path), nn.MultiheadAttention):
        third = width // 3
        known = {name: ((i * third, (i + 1) * third),) for i, name in enumerate("qkv")}
    if part not in known:
        expected = ", ".join(known) if known else "explicit rows, since this layout is not known by name"
        hint = f"nearest: {nearest(part, known, 1)}." if known else f"write rows, as in '{path}[0:{width // 3}]'."
        raise _refuse(path, f"[{part}]", expected, hint)
    return known[part]
