"""attach and detach: layers of a model that exists become LoRA layers over its very parameters, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltaw.config import LoRAConfig, Pattern
from deltaw.errors import TargetError
from deltaw.loralib.base import Adapted, check_settings
from deltaw.loralib.conv import Conv1d, Conv2d, Conv3d
from deltaw.loralib.embedding import Embedding
from deltaw.loralib.linear import Linear, MergedLinear
from deltaw.loralib.take import refuse_base
from deltaw.loralib.trained import refuse_nothing
from deltaw.reports import count, plural
from deltaw.targets import plan
from deltaw.tree import require_model

__all__ = ["AttachReport", "DetachReport", "attach", "detach"]

_CONVS = {1: Conv1d, 2: Conv2d, 3: Conv3d}


@dataclass(frozen=True, kw_only=True)
class AttachReport:
    """What ``attach`` did.

    Args:
        paths: layers that were replaced.
        parameters: number of values in their factors.
    """

    paths: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        """One line."""
        return f"{plural(len(self.paths), 'layer')} with factors, {count(self.parameters)} values in them"


@dataclass(frozen=True, kw_only=True)
class DetachReport:
    """What ``detach`` did.

    Args:
        paths: layers that are plain again.
        merged: whether the update stays in the weights.
    """

    paths: tuple[str, ...]
    merged: bool

    def __str__(self) -> str:
        """One line."""
        return (
            f"{plural(len(self.paths), 'plain layer')}, the update {'in' if self.merged else 'taken off'} the weights"
        )


def attach(
    model: nn.Module,
    targets: Sequence[Pattern] | Pattern,
    *,
    r: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    merge_weights: bool = True,
    enable_lora: Sequence[bool] | None = None,
) -> AttachReport:
    """Replace layers of a model by LoRA layers over their very parameters: no pre-trained weight is lost or copied.

    Nothing is replaced unless everything can be. Train with ``mark_only_lora_as_trainable`` afterwards.

    Args:
        model: any model.
        targets: what to adapt, in deltaw's pattern language: dotted suffixes, globs, ``re:...``, ``all-linear``, types.
        r: rank of the updates.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability in [0, 1) of dropping entries of the updates' inputs; embeddings have none.
        merge_weights: ``eval()`` adds the updates to the weights, ``train()`` takes them off again.
        enable_lora: the targets are fused projections; one bool for each of them.

    Returns:
        A report.

    Raises:
        ConfigError: if a setting is out of range.
        TargetError: if a pattern matches nothing, or something that cannot be replaced.
        TieError: if a target's weight is shared with another module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> print(attach(net, ["1"], r=2, lora_alpha=4))
        1 layer with factors, 12 values in them
    """
    root = require_model(model)
    check_settings("attach", r, lora_alpha, lora_dropout)
    made = plan(root, LoRAConfig(targets=targets, rank=max(r, 1), alpha=lora_alpha, dropout=lora_dropout))
    for path, reader in made.readers:
        if isinstance(reader, nn.MultiheadAttention) or not merge_weights:
            raise _bypassed(path, reader, merge_weights)
    settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "merge_weights": merge_weights}
    layers: dict[str, Adapted] = {}
    try:
        for site in made.sites:
            if not site.path or site.raw or site.parts[0].name:
                raise _refuse_site(site.path, site.pattern)
            layers[site.path] = _layer(site.module, settings, enable_lora)
    except BaseException:
        for layer in layers.values():
            layer.take_off()
            layer.weight.requires_grad = layer.was_trained
        raise
    for site in made.sites:
        _put(root, site.module, layers[site.path])
    values = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers.values() if layer.adapted)
    return AttachReport(paths=tuple(layers), parameters=values)


def _layer(base: nn.Module, settings: dict[str, Any], enable: Sequence[bool] | None) -> Adapted:
    """The layer for a base."""
    if isinstance(base, nn.MultiheadAttention):
        raise refuse_base(base, "a Linear, transformers' Conv1D, an Embedding or a convolution")
    if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer: Adapted = _CONVS[len(base.kernel_size)].from_base(base, **settings)
    elif isinstance(base, nn.Embedding):
        layer = Embedding.from_base(base, **{key: value for key, value in settings.items() if key != "lora_dropout"})
    elif enable is not None:
        return MergedLinear.from_base(base, enable_lora=enable, **settings)
    else:
        layer = Linear.from_base(base, **settings)
    if enable is not None:
        raise TargetError(
            "this layer has no projections to enable", where=type(base).__name__, got=f"enable_lora={list(enable)!r}",
            expected="a linear layer", hint="attach to it in a call of its own, without enable_lora.",
        )  # fmt: skip
    return layer


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's place, under all of its names."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def detach(model: nn.Module, *, merged: bool = False) -> DetachReport:
    """Give the plain layers back, over the same parameters.

    Args:
        model: a model with LoRA layers.
        merged: leave the updates in the weights, rounded once, for a plain model that does the adapted one's work;
            otherwise the weights are the base's, bit for bit.

    Returns:
        A report.

    Raises:
        TargetError: if the model has no LoRA layer, or is one itself.
        StateError: if a merged weight was changed by others, or a sum would not be finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2)); weight = net[0].weight
        >>> _ = attach(net, ["0"], r=2, lora_alpha=4); print(detach(net))
        1 plain layer, the update taken off the weights
        >>> type(net[0]) is nn.Linear, net[0].weight is weight
        (True, True)
    """
    root = require_model(model)
    layers = {path: module for path, module in root.named_modules() if isinstance(module, Adapted)}
    if not layers:
        raise refuse_nothing(root)
    if "" in layers:
        raise _refuse_site("", type(root).__name__)
    for layer in layers.values():
        if merged and not layer.merged:
            layer.fold_in()
        elif not merged:
            layer.take_off()
    for layer in layers.values():
        _put(root, layer, _plain(layer))
    return DetachReport(paths=tuple(layers), merged=merged)


def _plain(layer: Adapted) -> nn.Module:
    """The plain module of a layer: the one it was made from, or a new one of torch's class."""
    plain = layer.home[0] if layer.home else layer.plain()
    for name in ("weight", "bias"):
        if name in plain._parameters:
            plain._parameters[name] = layer._parameters[name]
    if not layer.home and getattr(layer, "fan_in_fan_out", False):
        with torch.no_grad():
            plain._parameters["weight"] = nn.Parameter(layer.weight.t().contiguous())
    plain._parameters["weight"].requires_grad = layer.was_trained  # type: ignore[union-attr]
    return plain.train(layer.training)


def _refuse_site(path: str, pattern: str) -> TargetError:
    return TargetError(
        "this cannot be replaced by a LoRA layer or a plain one" if path else "the model itself cannot be replaced",
        where=f"module '{path}'",
        got=f"target {pattern!r}" if path else pattern,
        expected="a whole layer inside a model",
        hint="name the whole module; for one layer use lora.Linear.from_base and the like."
        if path
        else "put the layer into an nn.Sequential, or use lora.Linear.from_base and the like.",
    )


def _bypassed(path: str, reader: nn.Module, merge_weights: bool) -> TargetError:
    return TargetError(
        "an update here would be bypassed: the parent reads its children's weights itself",
        where=f"module '{path}'",
        got=type(reader).__name__ + ("" if merge_weights else " with merge_weights=False"),
        expected="modules whose own forward is called",
        hint="deltaw.attach adapts such modules, attention included; see docs/loralib.md.",
    )
