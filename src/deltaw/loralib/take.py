"""Taking a torch layer over: a layer of this face around the very parameters that exist."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from deltaw.errors import TargetError
from deltaw.layer import is_shadowed

__all__ = ["refuse_base", "require_plain", "take"]

Layer = TypeVar("Layer", bound=nn.Module)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refuse_base(base: object, expected: str) -> TargetError:
    """The error for a layer that cannot be taken over.

    Args:
        base: the layer.
        expected: what could have been.

    Returns:
        The error, to be raised.
    """
    name = type(base).__name__
    hint = "deltaw.attach adapts it in place and keeps its class and its forward."
    if isinstance(base, nn.MultiheadAttention):
        hint = "deltaw.attach(model, LoRAConfig(targets=[nn.MultiheadAttention])) adapts it, in its own forward."
    return TargetError("this layer cannot be taken over", where=name, got=name, expected=expected, hint=hint)


def take(cls: type[Layer], base: nn.Module, arguments: dict[str, Any]) -> Layer:
    """Make a layer around the parameters of another.

    Args:
        cls: class of the layer.
        base: the layer that exists.
        arguments: of the constructor.

    Returns:
        The new layer, with the base's parameters, device, dtype and mode; ``base`` itself is left as it is, except that
        its weight is frozen.

    Raises:
        TargetError: if the base has hooks or a forward of its own, or a weight that is no plain parameter.
    """
    weight = require_plain(base)
    if "bias" in base._parameters:
        arguments = {**arguments, "bias": base._parameters["bias"] is not None}
    made: Any = cls(**arguments, device="meta", dtype=weight.dtype)
    for name, parameter in base._parameters.items():
        made._parameters[name] = parameter
    made.home, made.was_trained = [base], weight.requires_grad
    if made.adapted:
        weight.requires_grad = False
        for name in ("lora_A", "lora_B"):
            made._parameters[name] = nn.Parameter(torch.empty_like(made._parameters[name], device=weight.device))
        with torch.no_grad():
            made.reset_factors()
    made.train(base.training)
    return made  # type: ignore[no-any-return]


def require_plain(base: nn.Module) -> nn.Parameter:
    """Refuse a layer with something that a layer made around its parameters would lose.

    Args:
        base: the layer.

    Returns:
        Its weight.

    Raises:
        TargetError: if it has hooks or a forward of its own, or a weight that is no plain parameter.
    """
    weight = base._parameters.get("weight")
    if type(weight) is not nn.Parameter or weight.dtype not in _DTYPES:
        got = f"{type(weight).__name__} of {getattr(weight, 'dtype', 'no dtype')}"
        raise _lost(base, "its weight is no plain floating-point parameter", got)
    if is_shadowed(base) or "_hf_hook" in base.__dict__ or any(base.__dict__.get(name) for name in _HOOKS):
        raise _lost(base, "its hooks or its own forward would be lost", "hooks, or an instance attribute 'forward'")
    return weight


def _lost(base: nn.Module, what: str, got: str) -> TargetError:
    return TargetError(
        f"this layer cannot be taken over: {what}",
        where=type(base).__name__,
        got=got,
        expected="a layer whose forward is its class's, over plain parameters",
        hint="deltaw.attach adapts it in place and keeps all of it.",
    )
