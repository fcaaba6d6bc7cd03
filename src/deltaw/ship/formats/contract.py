"""What an importer is, what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deltaw.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from deltaw.ship.formats.draft import Draft
    from deltaw.ship.formats.tree import Tree

__all__ = ["QKV", "Ask", "Format", "Source", "need_alpha", "parse_enable", "stated_alpha"]

QKV = ("q", "k", "v")
"""Parts of a fused attention projection, in the order every format stores them in."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file as it was read: nothing in it has been interpreted.

    Args:
        tensors: key -> tensor, on the CPU, wrappers taken off.
        config: what stood beside it (``adapter_config.json``, the YAML files of litgpt), or nothing.
        metadata: safetensors metadata.
        stated: what a pickled state dict says of its modules beside their tensors, path -> notes.
        path: the file that holds the tensors.
        notes: what reading it left aside.
    """

    tensors: Mapping[str, Tensor]
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the user said that a file cannot say.

    Args:
        tree: names and sizes of the base's modules, or None.
        base: the base's transformers configuration, or nothing.
        base_name: what to write as the adapter's base, or None.
        alpha: LoRA's alpha, for files that do not store it.
        enable: which parts of a fused projection were trained, for files that do not store it.
        part: the component of a pipeline to take ("unet", "text_encoder", ...), or None for all.
        lora_only: leave everything aside that is not part of a low-rank update.
    """

    tree: Tree | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    base_name: str | None = None
    alpha: float | None = None
    enable: tuple[bool, ...] | None = None
    part: str | None = None
    lora_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Format:
    """One importer.

    Args:
        name: what ``--from`` calls it.
        title: who writes it, in a few words.
        detect: (tensors, config) -> why this is the format, or None.
        read: (source, what was asked, draft) -> fills the draft.
    """

    name: str
    title: str
    detect: Callable[[Mapping[str, Tensor], Mapping[str, Any]], str | None]
    read: Callable[[Source, Ask, Draft], None]


def parse_enable(text: str) -> tuple[bool, ...]:
    """Read which parts of a fused projection were trained.

    Args:
        text: names out of q, k, v (``q,v``), or one 0 or 1 per part (``1,0,1``).

    Returns:
        One bool per part.

    Raises:
        ConfigError: if it is neither.

    Example:
        >>> parse_enable("q,v"), parse_enable("1,0")
        ((True, False, True), (True, False))
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words and set(words) <= set(QKV) and len(set(words)) == len(words):
        return tuple(part in words for part in QKV)
    truth = {"1": True, "true": True, "0": False, "false": False}
    if words and all(word in truth for word in words) and any(truth[word] for word in words):
        return tuple(truth[word] for word in words)
    raise ConfigError(
        "the trained parts of a fused projection cannot be read",
        where="--enable",
        got=repr(text),
        expected="names out of q, k and v, or one 0 or 1 per part with at least one 1",
        hint="for example --enable q,v, or --enable 1,0,1.",
    )


def need_alpha(ask: Ask, draft: Draft, title: str) -> float:
    """Alpha as the user gave it, for a format that does not store it.

    Args:
        ask: what the user said.
        draft: marks the option as used.
        title: who wrote the file.

    Returns:
        Alpha.

    Raises:
        CheckpointError: if it was not given.
    """
    draft.used.add("alpha")
    if ask.alpha is None:
        raise CheckpointError(
            "the file does not say its alpha",
            where=draft.where,
            got=f"tensors of {title}, which stores no alpha",
            expected="the alpha it was trained with; the update is scaled by alpha / rank",
            hint="give it: --alpha NUMBER (alpha=NUMBER in Python); it stands in the training command or script.",
        )
    return ask.alpha


def stated_alpha(source: Source, ask: Ask, draft: Draft, title: str) -> float:
    """Alpha as a configuration beside the tensors states it, else as the user gave it.

    Args:
        source: the file and what stands beside it.
        ask: what the user said.
        draft: marks the option as used.
        title: who wrote the file.

    Returns:
        Alpha.

    Raises:
        CheckpointError: if neither says it.
    """
    stated = source.config.get("lora_alpha")
    if isinstance(stated, int | float) and not isinstance(stated, bool) and stated > 0:
        return float(stated)
    return need_alpha(ask, draft, title)
