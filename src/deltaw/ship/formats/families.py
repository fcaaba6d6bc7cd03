"""How transformers names and lays out the modules of decoder families, for formats with names of their own.

litgpt and torchtune use one set of names for all models; what a name means in transformers depends on the family. A
family says, for each role, the module's path, and whether several roles share one fused weight and how its rows lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltaw.ship.formats.tree import Tree

__all__ = ["FAMILIES", "Family", "Heads", "family_by_tree", "family_by_type", "heads_of"]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The head layout of an attention.

    Args:
        queries: number of query heads.
        groups: number of key and value heads.
        size: width of one head.
    """

    queries: int
    groups: int
    size: int

    def widths(self) -> tuple[int, int, int]:
        """Rows of q, k and v.

        Returns:
            Three numbers of rows.
        """
        return self.queries * self.size, self.groups * self.size, self.groups * self.size

    def interleaved(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of q, k and v where the weight holds, group by group, its queries, its key and its value.

        Returns:
            Three indices.

        Example:
            >>> [rows.tolist() for rows in Heads(queries=2, groups=1, size=1).interleaved()]
            [[0, 1], [2], [3]]
        """
        share = self.queries // self.groups
        place = torch.arange((share + 2) * self.size * self.groups)
        slot = (place // self.size) % (share + 2)
        return place[slot < share], place[slot == share], place[slot == share + 1]

    def in_a_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of q, k and v where the weight holds all queries, then all keys, then all values.

        Returns:
            Three indices.
        """
        q, k, v = self.widths()
        return torch.arange(q), torch.arange(q, q + k), torch.arange(q + k, q + k + v)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of decoders.

    Args:
        name: for messages.
        types: values of ``model_type`` in transformers.
        roles: role -> path with ``{}`` for the layer, ``|`` between the names of several versions; roles are q, k, v, qkv, o, gate, up, gate_up, down, head, table.
        interleaved: a fused qkv holds each group's queries, key and value together.
        paired_rope: torchtune turns pairs of neighbors where transformers turns halves, so q and k rows are permuted.
    """

    name: str
    types: tuple[str, ...]
    roles: Mapping[str, str]
    interleaved: bool = False
    paired_rope: bool = False
    anchors: tuple[str, ...] = field(default=("o",))

    def path(self, role: str, layer: str, tree: Tree | None) -> str | None:
        """The module that plays a role.

        Args:
            role: one of the roles.
            layer: the layer's number; not used by head and table.
            tree: the base's modules, which choose between names of different versions of transformers, or None.

        Returns:
            The path, or None where the family has no such module.
        """
        if role not in self.roles:
            return None
        names = [name.format(layer) for name in self.roles[role].split("|")]
        return next((name for name in names if tree is not None and name in tree), names[0])


_ATTENTION = "model.layers.{}.self_attn"
_SPLIT = {"q": f"{_ATTENTION}.q_proj", "k": f"{_ATTENTION}.k_proj", "v": f"{_ATTENTION}.v_proj"}
_ENDS = {"head": "lm_head", "table": "model.embed_tokens"}
_LLAMA = {
    **_SPLIT,
    **_ENDS,
    "o": f"{_ATTENTION}.o_proj",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}
FAMILIES: tuple[Family, ...] = (
    Family(
        name="Llama", types=("llama", "mistral", "gemma", "gemma2"), roles=_LLAMA, paired_rope=True,
        anchors=("q", "o", "gate"),
    ),
    Family(
        name="Qwen", types=("qwen2", "qwen3", "gemma3_text", "olmo2", "stablelm"), roles=_LLAMA,
        anchors=("q", "o", "gate"),
    ),
    Family(
        name="Phi-3",
        types=("phi3",),
        roles={
            **_ENDS,
            "qkv": f"{_ATTENTION}.qkv_proj",
            "o": f"{_ATTENTION}.o_proj",
            "gate_up": "model.layers.{}.mlp.gate_up_proj",
            "down": "model.layers.{}.mlp.down_proj",
        },
        anchors=("qkv",),
    ),
    Family(
        name="Phi",
        types=("phi",),
        roles={
            **_SPLIT,
            **_ENDS,
            "o": f"{_ATTENTION}.dense",
            "up": "model.layers.{}.mlp.fc1",
            "down": "model.layers.{}.mlp.fc2",
        },
    ),
    Family(
        name="GPT-NeoX",
        types=("gpt_neox",),
        roles={
            "qkv": "gpt_neox.layers.{}.attention.query_key_value",
            "o": "gpt_neox.layers.{}.attention.dense",
            "up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
            "down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
            "head": "embed_out|lm_head",
            "table": "gpt_neox.embed_in",
        },
        interleaved=True,
    ),
    Family(
        name="Falcon",
        types=("falcon",),
        roles={
            "qkv": "transformer.h.{}.self_attention.query_key_value",
            "o": "transformer.h.{}.self_attention.dense",
            "up": "transformer.h.{}.mlp.dense_h_to_4h",
            "down": "transformer.h.{}.mlp.dense_4h_to_h",
            "head": "lm_head",
            "table": "transformer.word_embeddings",
        },
        interleaved=True,
    ),
)  # fmt: skip
"""Families by how transformers names them; the first one that fits a tree wins."""


def family_by_type(model_type: object) -> Family | None:
    """The family of a transformers configuration.

    Args:
        model_type: its ``model_type``.

    Returns:
        The family, or None where it is not one of these.

    Example:
        >>> family_by_type("pythia"), family_by_type("gpt_neox").name
        (None, 'GPT-NeoX')
    """
    return next((family for family in FAMILIES if model_type in family.types), None)


def family_by_tree(tree: Tree) -> Family | None:
    """The family whose names a tree has.

    Args:
        tree: the base's modules.

    Returns:
        The family, or None where none fits.
    """
    for family in FAMILIES:
        if all(family.roles[role].format(0) in tree for role in family.anchors):
            return family
    return None


def heads_of(base: Mapping[str, Any]) -> Heads | None:
    """The head layout that a transformers configuration states.

    Args:
        base: the configuration.

    Returns:
        The layout, or None where it does not say.
    """
    queries, width = base.get("num_attention_heads"), base.get("hidden_size")
    if not isinstance(queries, int) or queries < 1:
        return None
    groups = base.get("num_key_value_heads")
    if base.get("model_type") == "falcon":
        groups = base.get("num_kv_heads") if base.get("new_decoder_architecture") else None
        groups = groups or (1 if base.get("multi_query") else queries)
    groups = groups if isinstance(groups, int) and groups > 0 else queries
    size = base.get("head_dim")
    if not isinstance(size, int):
        if not isinstance(width, int):
            return None
        size = width // queries
    return Heads(queries=queries, groups=groups, size=size) if queries % groups == 0 else None
