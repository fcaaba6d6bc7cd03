"""The base model's own modules, seen through compilation, wrappers and adapters that are already there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deltaw.errors import ModelError

__all__ = [
    "BASELINE", "CONTAINER", "base_modules", "base_state", "called_parts", "is_worn", "parent_of",
    "require_model", "set_plain", "unwrap",
]  # fmt: skip

CONTAINER = "lora"
"""Name of the child that holds a module's adapters."""

BASELINE = "baseline"
"""Name of the child that holds what one of the paper's baselines puts beside a module."""

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "_FabricModule": "_forward_module"}
"""Class of a wrapper -> the child that it wraps."""


def unwrap(model: nn.Module) -> nn.Module:
    """The user's model inside ``torch.compile``, data-parallel wrappers and Lightning Fabric's.

    Args:
        model: any module.

    Returns:
        The innermost model; ``model`` itself where nothing wraps it.
    """
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None:
            inner = model._modules.get(_WRAPPERS.get(type(model).__name__, ""))
        if inner is None:
            return model
        model = inner


def require_model(model: object) -> nn.Module:
    """Refuse anything but a module.

    Args:
        model: what a user passed.

    Returns:
        The model, unwrapped.

    Raises:
        ModelError: if it is not an ``nn.Module``, or a scripted one.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "this is not a model that can be adapted",
            where="argument 'model'",
            got=type(model).__name__,
            expected="a torch.nn.Module, not scripted",
            hint="pass the model object itself.",
        )
    return unwrap(model)


def base_modules(
    model: nn.Module, prefix: str = "", seen: dict[int, list[str]] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Walk the base's modules once each, leaving out adapters.

    Args:
        model: where to start.
        prefix: path of ``model``.
        seen: filled with id(module) -> all its paths, where given.

    Yields:
        (path, module), parents first.
    """
    seen = {} if seen is None else seen
    # a stack and no recursion: every verb walks the whole model, and nested generators pass each module up every level
    waiting = [(prefix, model)]
    while waiting:
        path, module = waiting.pop()
        paths = seen.setdefault(id(module), [])
        paths.append(path)
        if len(paths) > 1:
            continue
        yield path, module
        if module._modules:
            lead = f"{path}." if path else ""
            waiting += [
                (lead + name, child)
                for name, child in reversed(module._modules.items())
                if child is not None and not getattr(type(child), "_deltaw_container", False)
            ]


def is_worn(name: str) -> bool:
    """Say whether a parameter's name is that of something worn, and not of the base.

    Args:
        name: as ``named_parameters`` gives it.

    Returns:
        True for adapters' tensors and baselines' pieces.

    Example:
        >>> is_worn("h.0.mlp.baseline.up"), is_worn("lm_head.weight")
        (True, False)
    """
    return not {CONTAINER, BASELINE}.isdisjoint(name.split("."))


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a base module, without the adapters that it or its parts wear.

    Args:
        module: any module.

    Returns:
        key -> tensor.
    """
    worn = module.named_modules(remove_duplicate=False)
    hidden = tuple(f"{path}." for path, part in worn if getattr(part, "_deltaw_container", False))
    return {key: value for key, value in module.state_dict().items() if not key.startswith(hidden)}


def called_parts(path: str, module: nn.Module) -> list[str]:
    """Paths of the modules whose own forward runs when a module is used.

    ``nn.Sequential`` and lists only hand on to their children, and iterate over them: adapters sit on the children.

    Args:
        path: the module's path.
        module: the module.

    Returns:
        The path itself, or those of its parts that hold parameters or buffers.

    Example:
        >>> called_parts("head", nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        ['head.0', 'head.2']
    """
    handing_on = type(module).forward in (nn.Sequential.forward, nn.Module.forward)
    if not handing_on or module._parameters or module._buffers:
        return [path]
    children = [(f"{path}.{name}", child) for name, child in module.named_children()]
    return [part for inner, child in children if child.state_dict() for part in called_parts(inner, child)]


def set_plain(module: nn.Module, **attributes: object) -> None:
    """Set attributes that are no tensor and no module, as a module's own ``__init__`` does for many sites.

    ``nn.Module.__setattr__`` asks each value first whether it is one; here that would be most of the time of an attach.

    Args:
        module: a new module.
        **attributes: name -> value.

    Example:
        >>> layer = nn.Identity(); set_plain(layer, rank=2); layer.rank
        2
    """
    module.__dict__.update(attributes)


def parent_of(model: nn.Module, path: str) -> nn.Module | None:
    """The module that holds another.

    Args:
        model: the root.
        path: path of the child.

    Returns:
        The parent, or None for the root itself.
    """
    return model.get_submodule(path.rpartition(".")[0]) if path else None
