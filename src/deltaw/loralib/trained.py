"""What is trained and what is stored: by a parameter's own name, never by a substring of the path to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from deltaw.errors import ConfigError, TargetError, TieError
from deltaw.loralib.base import NOTE, Adapted, LoRALayer
from deltaw.ties import storage_key

__all__ = ["lora_state_dict", "mark_only_lora_as_trainable", "refuse_nothing"]

_BIAS = ("none", "all", "lora_only")


class _Entry(NamedTuple):
    """A parameter as both functions see it."""

    key: str
    module: nn.Module
    leaf: str
    parameter: nn.Parameter
    core: bool

    @property
    def factor(self) -> bool:
        """Whether it is named as a factor: on a layer of this face, or on one that the caller wrote."""
        return self.leaf.startswith("lora_") and not self.core

    def is_bias(self, which: str) -> bool:
        """Whether it is a bias that is chosen: by its own name, or as that of a layer with factors."""
        if which == "lora_only":
            return self.leaf == "bias" and isinstance(self.module, LoRALayer) and _has_factors(self.module)
        own = self.leaf == "bias" or self.leaf.startswith("bias_") or self.leaf.endswith("_bias")
        return which == "all" and own and not self.core


def _has_factors(module: nn.Module) -> bool:
    return any(leaf.startswith("lora_") for leaf in module._parameters)


def _entries(model: nn.Module) -> Iterator[_Entry]:
    """Every parameter under every name; ``core`` marks those of adapters that ``deltaw.attach`` made."""
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if getattr(module, "_deltaw_container", False):
            inside += (prefix,)
        core = prefix.startswith(inside) if inside else False
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield _Entry(f"{prefix}{leaf}", module, leaf, parameter, core)


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a state dict holds and that are named as factors are, under every name."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in module._buffers.items():
            if leaf.startswith("lora_") and buffer is not None and leaf not in module._non_persistent_buffers_set:
                yield f"{path}.{leaf}" if path else leaf, buffer.detach()


def _check_bias(bias: str) -> None:
    if bias not in _BIAS:
        raise ConfigError(
            "unknown value of bias",
            where="bias",
            got=repr(bias),
            expected=" or ".join(map(repr, _BIAS)),
            hint="use the same value for mark_only_lora_as_trainable and lora_state_dict.",
        )


def refuse_nothing(model: nn.Module) -> TargetError:
    """The error for a model without a LoRA layer.

    Args:
        model: the model.

    Returns:
        The error, to be raised.
    """
    return TargetError(
        "the model has no LoRA layer",
        where=type(model).__name__,
        got="no layer with factors",
        expected="at least one layer of deltaw.loralib with r > 0",
        hint='replace layers by lora.Linear and the like, or lora.attach(model, ["q_proj"], r=8, lora_alpha=16).',
    )


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Train the factors of LoRA layers and the biases asked for, and nothing else.

    A parameter is a factor or a bias by its own name (``lora_...``, ``bias``), whatever the path to it contains; layers
    that you wrote count too. Adapters that ``deltaw.attach`` made stay as they are.

    Args:
        model: the model.
        bias: ``none``; ``all`` for every bias; ``lora_only`` for those of layers with factors.

    Raises:
        ConfigError: if ``bias`` is none of the three.
        TargetError: if nothing would be trained.
        TieError: if a weight that ``eval()`` merges into is shared with another module.
    """
    _check_bias(bias)
    entries = list(_entries(model))
    if not any(entry.factor or entry.core or entry.is_bias(bias) for entry in entries):
        raise refuse_nothing(model)
    _refuse_ties(entries)
    for entry in entries:
        if not entry.core:
            entry.parameter.requires_grad = entry.factor or entry.is_bias(bias)


def _refuse_ties(entries: list[_Entry]) -> None:
    """Refuse weights whose merge would also change another module."""
    users: dict[tuple[int, ...], _Entry] = {}
    for entry in entries:
        other = users.setdefault(storage_key(entry.parameter), entry)
        if other.module is entry.module or not entry.parameter.numel():
            continue
        layer = next((e for e in (entry, other) if _merges(e)), None)
        if layer is not None:
            raise TieError(
                "eval() would merge the update into a weight that another module reads too",
                where=f"parameters '{other.key}' and '{entry.key}'",
                got=f"one weight, and an update on '{layer.key.rpartition('.')[0]}' alone",
                expected="a weight with one user, or merge_weights=False",
                hint="make the layer with merge_weights=False, or untie the weights.",
            )


def _merges(entry: _Entry) -> bool:
    module = entry.module
    return isinstance(module, Adapted) and module.adapted and module.merge_weights and entry.leaf == "weight"


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, Tensor]:
    """The trained part of a state dict: factors and the biases asked for, under the model's own names.

    Every layer's rank and alpha are noted in the dictionary's metadata, where torch keeps its versions: torch.save
    carries them along, and a layer with other settings refuses to load it.

    Args:
        model: the model, merged or not.
        bias: as for ``mark_only_lora_as_trainable``.

    Returns:
        name -> tensor, sharing memory with the model; load it with ``strict=False`` after the base's weights.

    Raises:
        ConfigError: if ``bias`` is none of the three.
        TargetError: if there is nothing to store.

    Example:
        >>> from deltaw.loralib import Linear
        >>> list(lora_state_dict(nn.Sequential(Linear(4, 4, r=2))))
        ['0.lora_A', '0.lora_B']
    """
    _check_bias(bias)
    found: OrderedDict[str, Tensor] = OrderedDict()
    notes: dict[str, Any] = OrderedDict()
    for entry in _entries(model):
        if entry.factor or entry.core or entry.is_bias(bias):
            found[entry.key] = entry.parameter.detach()
        if entry.factor and isinstance(entry.module, Adapted):
            notes[entry.key.rpartition(".")[0]] = {"version": entry.module._version, NOTE: entry.module.settings()}
    if not found:
        raise refuse_nothing(model)
    found.update(_buffers(model))
    found._metadata = notes  # type: ignore[attr-defined]
    return found
