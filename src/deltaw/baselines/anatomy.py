"""Where a model's blocks, sub-layers and inputs are: a small table of families, and one error for all others.

An adapter changes what a sub-layer adds to the residual stream, so the table names, for each family, the two modules
whose output is added to it as it is: in blocks that normalize first those are the sub-layers themselves, in BERT's the
dropouts before the sum and its LayerNorm.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from deltaw.errors import ModelError
from deltaw.tree import base_modules

__all__ = ["FAMILIES", "Anatomy", "Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One shape of block.

    Args:
        name: for messages.
        attention: path, in a block, of what attention adds to the residual stream.
        mlp: the same of the MLP.
        causal: whether the tokens see those before them alone; None where the configuration says it.
    """

    name: str
    attention: str
    mlp: str
    causal: bool | None = True


FAMILIES = (
    Family(name="GPT-2", attention="attn", mlp="mlp"),
    Family(name="Llama", attention="self_attn", mlp="mlp"),
    Family(name="BERT", attention="attention.output.dropout", mlp="output.dropout", causal=None),
)
"""The shapes of block that are known; the first whose paths both exist in every block is a model's."""


class Anatomy:
    """The parts of one model, each looked for when it is asked for.

    Args:
        model: the base, unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @cached_property
    def config(self) -> Any:
        """The text part of the model's configuration; None where it has none."""
        config: Any = getattr(self.model, "config", None)
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @cached_property
    def blocks(self) -> dict[str, nn.Module]:
        """Path -> block, in order: the list of modules that holds most parameters.

        Returns:
            Path -> module.

        Raises:
            ModelError: if there is no list of blocks, or the model has an encoder and a decoder.
        """
        lists = {path: module for path, module in base_modules(self.model) if isinstance(module, nn.ModuleList)}
        if not lists:
            raise self._unknown("list of blocks", "an nn.ModuleList that holds the Transformer's blocks")
        if getattr(self.config, "is_encoder_decoder", False):
            raise self._unknown("single stack of blocks", "an encoder or a decoder, not both in one model")
        sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in lists.items()}
        path = max(sizes, key=lambda name: sizes[name])
        return {f"{path}.{index}" if path else str(index): block for index, block in enumerate(lists[path])}

    @cached_property
    def family(self) -> Family:
        """The shape of the blocks.

        Returns:
            An entry of ``FAMILIES``.

        Raises:
            ModelError: if it is none of the table's.
        """
        for family in FAMILIES:
            if all(_has(block, path) for block in self.blocks.values() for path in (family.attention, family.mlp)):
                return family
        known = "; ".join(f"{family.name}: {family.attention} and {family.mlp}" for family in FAMILIES)
        raise self._unknown("attention and MLP in every block", f"one of these pairs of modules: {known}")

    @property
    def causal(self) -> bool:
        """Whether a position predicts the token after it."""
        said = self.family.causal
        return bool(getattr(self.config, "is_decoder", False)) if said is None else said

    @cached_property
    def body(self) -> tuple[str, nn.Module]:
        """Path and module of what turns token ids into hidden states: the blocks' nearest owner that takes both forms.

        Returns:
            (path, module).

        Raises:
            ModelError: if no owner of the blocks takes ``input_ids`` and ``inputs_embeds``.
        """
        path = next(iter(self.blocks)).rpartition(".")[0]
        for owner in _owners(path):
            module = self.model.get_submodule(owner)
            if {"input_ids", "inputs_embeds"} <= set(inspect.signature(module.forward).parameters):
                return owner, module
        raise self._unknown("body", "an owner of the blocks whose forward takes input_ids and inputs_embeds")

    @cached_property
    def embedding(self) -> nn.Module:
        """The table of token embeddings.

        Returns:
            A module with a weight.

        Raises:
            ModelError: if the model does not say which module it is.
        """
        table = getattr(self.body[1], "get_input_embeddings", lambda: None)()
        if not isinstance(table, nn.Module) or getattr(table, "weight", None) is None:
            raise self._unknown("table of token embeddings", "a model whose get_input_embeddings() returns it")
        return table

    @cached_property
    def width(self) -> int:
        """Size d of the residual stream.

        Returns:
            A number of features.

        Raises:
            ModelError: if the configuration does not say it.
        """
        found = getattr(self.config, "hidden_size", None)
        if not isinstance(found, int):
            raise self._unknown("width", "config.hidden_size")
        return found

    @cached_property
    def positions(self) -> int | None:
        """The longest sequence the model takes, or None where it does not say."""
        found = getattr(self.config, "max_position_embeddings", None)
        table: Any = getattr(getattr(self.body[1], "embeddings", None), "position_embeddings", None)
        # RoBERTa counts its positions from the one after the padding's
        offset = 0 if getattr(table, "padding_idx", None) is None else int(table.padding_idx) + 1
        return found - offset if isinstance(found, int) and found > 0 else None

    def _unknown(self, what: str, expected: str) -> ModelError:
        children = ", ".join(name for name, _ in self.model.named_children())
        return ModelError(
            f"the model has no {what} that is known",
            where=f"{type(self.model).__name__}: {children or 'no children'}",
            got="nothing of that shape",
            expected=expected,
            hint="use a GPT-2-, Llama- or BERT-shaped model of transformers, or --method lora, which takes any.",
        )


def _owners(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True
