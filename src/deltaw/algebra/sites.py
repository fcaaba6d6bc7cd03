"""Which weights of a checkpoint a LoRA can adapt, and how each lies in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltaw.errors import ConfigError
from deltaw.layers import KINDS, kind_of

__all__ = ["WeightSite", "sites_by_model", "sites_by_name", "tied_paths"]

_HELD = ("Linear", "Conv1D", "Embedding")
_TRANSPOSED_TYPES = ("gpt2", "imagegpt", "decision_transformer", "openai-gpt")
_TRANSPOSED = ("c_attn", "c_proj", "c_fc", "q_attn")
"""Names under which transformers' Conv1D stores a weight as (in, out)."""
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WeightSite:
    """One weight of a checkpoint.

    Args:
        path: module path.
        suffixes: key endings of A and B.
        transposed: the weight is stored as (in, out).
        kind: name of the kind of module.
    """

    path: str
    suffixes: tuple[str, str]
    transposed: bool
    kind: str

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or a difference of weights, as (O, I).

        Args:
            weight: as stored.

        Returns:
            A view.
        """
        return weight.t() if self.transposed else weight


def sites_by_model(model: nn.Module, keys: Mapping[str, str]) -> dict[str, WeightSite]:
    """Sites told by the modules themselves.

    Args:
        model: a model of this shape; its weights are not read, so that the meta device will do.
        keys: key of the checkpoint -> key of the model.

    Returns:
        Key of the checkpoint -> site, for weights of linear maps and embeddings.
    """
    modules = dict(model.named_modules())
    # an attention's fused kernel reads its output projection by itself, and PEFT has one rank for the two
    inner = {f"{path}.out_proj" for path, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    found = {}
    for key, name in keys.items():
        path, _, leaf = name.rpartition(".")
        kind = kind_of(modules[path]) if path in modules else None
        weight = modules[path]._parameters.get("weight") if path in modules else None
        if kind is not None and kind.name in _HELD and leaf == "weight" and weight is not None and path not in inner:
            found[key] = WeightSite(path=path, suffixes=kind.suffixes, transposed=kind.transposed, kind=kind.name)
    return found


def tied_paths(model: nn.Module, path: str) -> list[str]:
    """Other modules that hold the same weight.

    Args:
        model: a model of this shape.
        path: the module.

    Returns:
        Their paths.
    """
    own = model.get_submodule(path)._parameters.get("weight")
    return [
        other
        for other, module in model.named_modules()
        if other != path and own is not None and module._parameters.get("weight") is own
    ]


def sites_by_name(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, WeightSite]:
    """Sites told by names and the configuration, where no model is given.

    Args:
        shapes: key -> shape.
        config: the checkpoint's ``config.json``; empty where there is none.

    Returns:
        Key -> site.

    Raises:
        ConfigError: if a name may be a transposed weight and there is no configuration to tell.

    Example:
        >>> found = sites_by_name({"h.0.q.weight": (4, 2), "h.0.norm.weight": (2,)}, {})
        >>> found["h.0.q.weight"].kind, "h.0.norm.weight" in found
        ('Linear', False)
    """
    found = {}
    for key, shape in shapes.items():
        path, _, leaf = key.rpartition(".")
        if leaf != "weight" or len(shape) != 2:
            continue
        name = "Linear"
        if _EMBEDDING.search(path):
            name = "Embedding"
        elif path.rpartition(".")[2] in _TRANSPOSED:
            name = "Conv1D" if _transposed(key, config) else "Linear"
        kind = KINDS[name]
        found[key] = WeightSite(path=path, suffixes=kind.suffixes, transposed=kind.transposed, kind=name)
    return found


def _transposed(key: str, config: Mapping[str, Any]) -> bool:
    if "model_type" not in config:
        raise ConfigError(
            "the layout of a weight cannot be told",
            where=f"'{key}'",
            got="a name that models of the GPT-2 family store as (in, out), and no config.json",
            expected="config.json beside the base's weights, or a model",
            hint="pass model=..., a model of this shape; the meta device will do.",
        )
    return config["model_type"] in _TRANSPOSED_TYPES
