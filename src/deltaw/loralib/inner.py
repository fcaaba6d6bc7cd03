"""The torch convolution of a ConvLoRA: made by the class that the caller names, and handed out as ``layer.conv``.

The original holds that convolution as a child. Here a layer *is* its convolution, so that its parameters have torch's
own names; a layer made from another class becomes an object of that class too. ``layer.conv`` is a module of that class
over the layer's very parameters, for code that fills them in through it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from deltaw.errors import StateError, TargetError
from deltaw.loralib.take import require_plain

__all__ = ["BASES", "SAME", "build", "join", "outside", "put"]

BASES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Torch's convolutions, by their number of axes less one."""

SAME = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""What makes a convolution anew."""

_FIXED = ("in_channels", "out_channels", "kernel_size", "groups")
_CLASSES: dict[tuple[type, type], type] = {}
_HELD = ("_parameters", "_buffers", "_modules")
_FORWARDS = {(cls.forward, cls._conv_forward) for cls in BASES}


def build(conv_module: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Make the convolution that a layer is to be.

    Args:
        conv_module: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``, a subclass that keeps their forward, or what makes
            an object of one of these.
        *args: for it.
        **kwargs: for it.

    Returns:
        The convolution.

    Raises:
        TargetError: if it makes something else, or something with hooks or a weight that is no plain parameter.
    """
    if not callable(conv_module) or isinstance(conv_module, nn.Module):
        hint = "give the class itself; Conv2d.from_base(layer, r=8, lora_alpha=16) adapts a convolution that exists."
        raise _refuse(f"an object of {type(conv_module).__name__}", hint)
    if isinstance(conv_module, type):
        _require_convolution(conv_module)
    base = conv_module(*args, **kwargs)
    if conv_module not in BASES:
        _require_convolution(type(base))
        require_plain(base)
    return base


def _require_convolution(cls: type) -> None:
    """Refuse a class whose forward is not that of torch's convolutions."""
    if not issubclass(cls, BASES):
        raise _refuse(
            cls.__name__, "loralib gives no output for its update either; without one, use the module itself."
        )
    if (cls.forward, cls._conv_forward) not in _FORWARDS:
        hint = "loralib calls this forward in evaluation alone; deltaw.attach adapts the layer and keeps its forward."
        raise _refuse(f"{cls.__name__}, with a forward of its own", hint)


def _refuse(got: str, hint: str) -> TargetError:
    expected = "nn.Conv1d, nn.Conv2d, nn.Conv3d, or a class that keeps their forward"
    where = "ConvLoRA(conv_module=...)"
    return TargetError("this module cannot be a convolution with an update", where=where, got=got, expected=expected,
                       hint=hint)  # fmt: skip


def join(front: type, base: type) -> type:
    """The class of a layer over a class of convolutions; the same object on every call.

    Args:
        front: class of the layer.
        base: class of the convolution.

    Returns:
        A subclass of both, named as ``front``.
    """
    if (front, base) not in _CLASSES:

        def reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
            # the class is made at run time, so a pickle names its parts and makes it again
            reduced: Any = object.__reduce_ex__(self, max(int(protocol), 2))
            return (_blank, (front, base), *reduced[2:])

        members = {"__reduce_ex__": reduce_ex, "__module__": front.__module__, "__doc__": front.__doc__}
        _CLASSES[front, base] = type(front.__name__, (front, base), members)
    return _CLASSES[front, base]


def _blank(front: type, base: type) -> Any:
    cls: Any = join(front, base)
    return cls.__new__(cls)


class _Outside:
    """What is done to ``layer.conv`` is done to the layer, or refused."""

    layer: list[Any]
    _parameters: dict[str, nn.Parameter | None]

    def __setattr__(self, name: str, value: Any) -> None:
        new = isinstance(value, nn.Module) or (isinstance(value, nn.Parameter) and name not in self._parameters)
        if new or name == "forward" or name.startswith("__"):
            self._refused()
        if name != "training":
            setattr(self.layer[0], name, value)
        if name in self._parameters:
            self._parameters[name] = value
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        # attributes that were set on it once are the layer's, and it is made anew every time
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if "layer" not in self.__dict__:
                raise
            return getattr(self.layer[0], name)

    def _get_name(self) -> str:
        return type(self).__bases__[1].__name__

    def _refused(self, *args: Any, **kwargs: Any) -> None:
        raise StateError(
            "this would be lost: a layer's conv is made anew whenever it is asked for",
            where=f"{type(self.layer[0]).__name__}.conv",
            got="a hook, a module, a class or a forward for it",
            expected="parameters, values and settings, which are the layer's",
            hint="register it on the layer itself.",
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        if self.layer[0].merged:
            destination[f"{prefix}weight"] = self.layer[0].base_weight()

    def _load_from_state_dict(self, *args: Any) -> None:
        with self.layer[0].unmerged():
            super()._load_from_state_dict(*args)  # type: ignore[misc]


for _name in (
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_buffer", "register_module", "register_parameter", "add_module",
):  # fmt: skip
    setattr(_Outside, _name, _Outside._refused)


def outside(layer: Any) -> nn.Module:
    """The convolution without the update, over the layer's own parameters.

    Args:
        layer: a ConvLoRA.

    Returns:
        A module of the convolution's class; assignments to it and loads into it reach the layer.
    """
    source = _source(layer)
    made: nn.Module = _blank(_Outside, type(source))
    for name, value in vars(source).items():
        if name in _HELD:
            vars(made)[name] = {key: vars(layer)[name][key] for key in value}
        else:
            # hooks are the convolution's own, sizes and whatever else a class has set are the layer's
            vars(made)[name] = copy.copy(value) if isinstance(value, dict) else vars(layer).get(name, value)
    vars(made)["layer"] = [layer]
    return made


def _source(layer: Any) -> nn.Module:
    """A module of the convolution's class, for its attributes."""
    module: nn.Module = layer.home[0] if layer.home else layer.plain()
    return module


def put(layer: Any, module: object) -> None:
    """Take the parameters, stride, padding and dilation of another convolution over, as the layer's own.

    Args:
        layer: a ConvLoRA.
        module: a convolution of the same class and sizes.

    Raises:
        TargetError: if it is another module, or has hooks or a weight that is no plain parameter.
    """
    own = _source(layer)
    known = type(module).__bases__[1] if isinstance(module, _Outside) else type(module)
    if known is not type(own) or any(getattr(module, name) != getattr(layer, name) for name in _FIXED):
        raise TargetError(
            "this cannot take the place of a layer's convolution", where=f"{type(layer).__name__}.conv",
            got=str(module), expected=f"{own}, of whatever stride, padding and dilation",
            hint="make a layer of its sizes, or around it: Conv2d.from_base(layer, r=8, lora_alpha=16).",
        )  # fmt: skip
    assert isinstance(module, nn.Module)
    require_plain(module)
    with layer.unmerged():
        for name, value in vars(module).items():
            if name in _HELD:
                vars(layer)[name].update(value)
            elif not isinstance(value, dict) and name not in ("training", "layer"):
                vars(layer)[name] = value
    if layer.home:
        layer.home = [_source(module.layer[0]) if isinstance(module, _Outside) else module]
