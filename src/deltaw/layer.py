"""Mechanism 1: a module becomes a LoRA layer by changing its class, in place.

The new class is a cached subclass of the module's own class; its forward is the base's forward plus the active
adapters' terms. The module stays the same object, at the same path, with the same state-dict keys, ties, dtypes and
ancestry; a quantized layer keeps its own forward, because that is what is called. Overriding ``forward`` happens in
one function, ``lora_class``, and nowhere else.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import ModelError, StateError, TargetError
from deltaw.factors import Pair, cut
from deltaw.functional import add_term
from deltaw.layers import KINDS, Kind, kind_of
from deltaw.layers.bias import add_bias
from deltaw.layers.readers import READERS, reader_of
from deltaw.layers.readers import Reader as ReaderKind
from deltaw.mixed import mixed
from deltaw.record import Record
from deltaw.sites import BaseView
from deltaw.step import Frozen, can_fuse, lora_step
from deltaw.tokens import TokenRows, look_up, read_out
from deltaw.tree import CONTAINER, set_plain
from deltaw.weight import LoRAWeight, Term
from deltaw.worn import Adapters, FullCopy, Reader

__all__ = [
    "container_of",
    "device_of",
    "is_lora",
    "is_shadowed",
    "lora_class",
    "put_back",
    "put_on",
    "refuse_shadowed",
    "take_off",
]

_BASE = "_deltaw_base"
_RAW = ".weight"
_PLAIN = (Tensor, nn.Parameter)
_CLASSES: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


def _add(
    module: nn.Module, kind: Kind, out: Tensor, x: Tensor, pair: Pair, weight: float | Tensor, start: int = 0
) -> Tensor:
    """Add one update's term to an output, whose first feature is the weight's row ``start``."""
    part, tensors, rows = pair
    update = part.update
    lora_A, lora_B = update.factors(tensors)
    term = kind.up(module, kind.down(module, x, lora_A, out.dtype), lora_B)
    if "start_A" in tensors:
        # two products and not one of joined factors: while both are equal, their difference is exactly zero
        term = term - kind.up(module, kind.down(module, x, tensors["start_A"], out.dtype), tensors["start_B"])
    # a compiled graph gets its weight as a tensor, which no operation takes for a factor
    factor, own = (1.0, weight) if isinstance(weight, Tensor) else (weight, None)
    view = BaseView(kind, module, rows if rows is None else rows + start)
    out = update.apply(out, term if own is None else term * own, part.scaling * factor, tensors, rows, view)
    if update.shift is None:
        return out
    shift = kind.spread(module, update.shift(tensors))
    shift = shift if rows is None else shift.expand(*out.shape[:-1], len(rows))
    return add_term(out, shift if own is None else shift * own, part.scaling * factor, rows)


def _project(module: nn.Module, kind: Kind, worn: list[tuple[Any, float]]) -> Callable[..., Tensor]:
    """The terms of all adapters on some rows of a fused projection."""

    def project(out: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        for entry, weight in worn:
            for pair in getattr(entry, "parts", tuple)():
                own = cut(pair, start, stop, kind.sizes(module)[1])
                if own is not None:
                    out = _add(module, kind, out, x, own, weight, start)
        return out

    return project


def _besides(module: nn.Module, out: Tensor, x: Tensor, tokens: TokenRows) -> Tensor:
    """Put trained rows in the place of the table's: what was looked up, or the scores of a tied head."""
    if not isinstance(module, nn.Embedding):
        return read_out(out, x, tokens, module._parameters["weight"])  # type: ignore[arg-type]
    scale = getattr(module, "embed_scale", None)
    return look_up(out, x, tokens, module.padding_idx, module.scale_grad_by_freq, scale)


def _steps(kind: Kind | None, container: Any, entry: Any) -> bool:
    """Whether an adapter's term here is one plain product after another."""
    return kind is not None and kind.product is not None and getattr(entry, "plain", False) and not container.raw


def _together(
    module: nn.Module, base: Callable[..., Any], kind: Kind, worn: list[tuple[Any, Any]], x: Any
) -> Tensor | None:
    """The base's output with the first adapter's term in it, where one step does both products."""
    container: Any = module._modules[CONTAINER]
    entry, weight = worn[0]
    if not _steps(kind, container, entry) or entry.bias is not None or entry.tokens is not None:
        return None
    assert kind.product is not None
    if type(x) not in _PLAIN or (found := kind.product(module, base)) is None:
        return None
    frozen = Frozen(*found)
    trained = frozen.weight.requires_grad or (frozen.bias is not None and frozen.bias.requires_grad)
    if trained or torch.is_autocast_enabled(x.device.type) or not can_fuse(frozen.weight, x):
        return None
    return lora_step(x, entry.lora_A, entry.lora_B, entry.part.scaling * weight, entry.mask(), frozen)


def _terms(module: nn.Module, kind: Kind | None, worn: list[tuple[Any, Any]], out: Tensor, x: Tensor) -> Tensor:
    """An output with everything that the active adapters have to say."""
    container: Any = module._modules[CONTAINER]
    # torch's own linear keeps no hand on its output; what a subclass does with its own is not known
    fresh = getattr(type(module), _BASE).forward is nn.Linear.forward
    for entry, weight in worn:
        if isinstance(entry, Reader):
            continue
        if entry.tokens is not None:
            out = _besides(module, out, x, entry.tokens)
        if _steps(kind, container, entry) and can_fuse(out, x):
            factor = entry.part.scaling * weight
            out = lora_step(x, entry.lora_A, entry.lora_B, factor, entry.mask(), out, fresh)
        elif kind is not None and not container.raw and hasattr(entry, "parts"):
            term_input = entry.dropped(x)
            for pair in entry.parts():
                out = _add(module, kind, out, term_input, pair, weight)
        if entry.bias is not None:
            out = add_bias(module, out, entry.bias)
    return kind.bounded(module, out) if kind is not None and kind.bounded is not None else out


def _forward(module: nn.Module, base: Callable[..., Any], kind: Kind | None, args: Any, kwargs: Any) -> Any:
    """The forward of every LoRA layer."""
    container: Any = module._modules[CONTAINER]
    worn = container.worn()
    if not worn:
        return base(module, *args, **kwargs)
    route = container.record.route()
    if isinstance(worn[0][0], FullCopy) and route is None:
        return worn[0][0].module(*args, **kwargs)
    if kind is not None and kind.forward is not None:
        if route is not None:  # in a compiled graph; no adapter that is routed is here
            return base(module, *args, **kwargs)
        return kind.forward(module, _project(module, kind, worn), args, kwargs)
    x = args[0] if args else next(iter(kwargs.values()))
    if route is None and kind is not None and (out := _together(module, base, kind, worn, x)) is not None:
        return _terms(module, kind, worn[1:], out, x)
    out = kind.plain(module, x) if kind is not None and kind.plain is not None else None
    out = base(module, *args, **kwargs) if out is None else out
    if not isinstance(out, Tensor):
        if all(isinstance(entry, Reader) for entry, _ in worn):
            return out
        raise ModelError(
            "this layer's output is not a tensor, so no term can be added to it",
            where=f"module '{container.path}'",
            got=type(out).__name__,
            expected="a tensor",
            hint="exclude this module.",
        )
    if route is not None:
        return mixed(module, kind, route, out, args or tuple(kwargs.values()), _terms, base is nn.Linear.forward)
    return _terms(module, kind, worn, out, x)


def _read(module: nn.Module) -> Any:
    """The weight of a module that others read: with the active adapters in it, never as one dense tensor."""
    container: Any = module._modules.get(CONTAINER)
    kind, base = kind_of(module), module._parameters["weight"]
    assert kind is not None and base is not None
    terms = []
    for entry, weight in () if container is None else container.worn():
        for pair in getattr(entry, "parts", tuple)():
            lora_A, lora_B = pair.factors
            left, right = (lora_A.t(), lora_B.t()) if kind.transposed else (lora_B, lora_A)
            terms.append(Term(left, right, pair.part.scaling * weight))
    return LoRAWeight(base, tuple(terms)) if terms else base


def _write(module: nn.Module, value: Any) -> None:
    module.register_parameter("weight", value)


def lora_class(base: type[nn.Module], kind: Kind | ReaderKind | None, raw: bool = False) -> type[nn.Module]:
    """The LoRA subclass of a module class; the same object on every call.

    Args:
        base: class of the module to adapt.
        kind: its kind, or the reader that it is, or None where only copies and biases are worn.
        raw: the weight's attribute is adapted instead of the forward.

    Returns:
        A subclass of ``base``.

    Example:
        >>> lora_class(nn.Linear, KINDS["Linear"]).__mro__[1] is nn.Linear
        True
    """
    name = (kind.name if kind is not None else "") + (_RAW if raw else "")
    if (base, name) not in _CLASSES:
        base_forward = base.forward
        site_kind = kind if isinstance(kind, Kind) else None

        @functools.wraps(base_forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return _forward(self, base_forward, site_kind, args, kwargs)

        def reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
            # the class is made at run time, so a pickle names its base and makes it again
            reduced: Any = object.__reduce_ex__(self, max(int(protocol), 2))
            return (_rebuild, (base, name), *reduced[2:])

        members = {} if kind is None else dict(kind.members)
        if raw and isinstance(kind, Kind):
            members[kind.parameter] = property(_read, _write)
        members |= {"forward": forward, "__reduce_ex__": reduce_ex, _BASE: base, "__module__": base.__module__}
        members["__doc__"] = f"{base.__name__} with low-rank adapters."
        _CLASSES[base, name] = type(f"LoRA{base.__name__}", (base,), members)
    return _CLASSES[base, name]


def _rebuild(base: type[nn.Module], kind: str) -> nn.Module:
    plain = kind.removesuffix(_RAW)
    cls = lora_class(base, KINDS.get(plain) or READERS.get(plain), kind != plain)
    return cls.__new__(cls)


def is_lora(module: nn.Module) -> bool:
    """Whether a module's class is exactly one of ours, not a further subclass made by another library.

    Args:
        module: any module.

    Returns:
        True for a LoRA layer.
    """
    return _BASE in type(module).__dict__


def container_of(module: nn.Module) -> Adapters:
    """The adapters of a LoRA layer.

    Args:
        module: a LoRA layer.

    Returns:
        Its container.
    """
    container = module._modules[CONTAINER]
    assert isinstance(container, Adapters)
    return container


def refuse_shadowed(path: str, module: nn.Module) -> None:
    """Refuse a module whose instance carries a forward of its own that would hide the class's.

    Args:
        path: module path.
        module: the module.

    Raises:
        TargetError: if the forward is shadowed and not by accelerate's hook, which is handled.
    """
    if is_shadowed(module):
        raise TargetError(
            "this module carries a forward of its own that would hide the adapter",
            where=f"module '{path}'",
            got="an instance attribute 'forward'",
            expected="the forward of its class",
            hint="attach before patching forward, or delete the instance attribute.",
        )
    if hasattr(module, CONTAINER) and not is_lora(module):
        raise TargetError(
            f"this module has an attribute {CONTAINER!r} already",
            where=f"module '{path}'",
            got=type(getattr(module, CONTAINER)).__name__,
            expected=f"no attribute {CONTAINER!r}",
            hint="exclude this module, or rename the attribute.",
        )


def is_shadowed(module: nn.Module) -> bool:
    """Whether a module's instance carries a forward that hides its class's.

    accelerate's wrapper does not count, since it calls what is kept beside it; nor does a class's own forward, which
    accelerate leaves on the instance when it takes its wrapper off.

    Args:
        module: any module.

    Returns:
        True if the class's forward would not be called.

    Example:
        >>> layer = nn.Linear(1, 1); layer.forward = lambda x: x; is_shadowed(layer), is_shadowed(nn.Linear(1, 1))
        (True, False)
    """
    return "forward" in module.__dict__ and "_old_forward" not in module.__dict__ and not _is_own(module, "forward")


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether an instance attribute is nothing but the forward of one of the module's classes."""
    method = module.__dict__.get(name)
    own = [cls.__dict__["forward"] for cls in (*type(module).__mro__, *_CLASSES.values()) if "forward" in cls.__dict__]
    return isinstance(method, types.MethodType) and method.__self__ is module and method.__func__ in own


def _rehook(module: nn.Module) -> None:
    """Point what accelerate left on the instance, around or instead of the class's forward, at the present class's."""
    for name in ("_old_forward", "forward"):
        if name in module.__dict__ and (name == "_old_forward" or _is_own(module, name)):
            module.__dict__[name] = types.MethodType(type(module).forward, module)


def put_on(path: str, module: nn.Module, record: Record, raw: bool = False) -> Adapters:
    """Make a module a LoRA layer, if it is not one yet.

    Args:
        path: module path.
        module: the module; its class changes in place.
        record: the model's record.
        raw: the weight's attribute is adapted instead of the forward.

    Returns:
        The container for its adapters.
    """
    if is_lora(module):
        return container_of(module)
    container = Adapters(record, path, raw)
    set_plain(container, training=module.training)
    _wear(module, container)
    record.modules[path] = module
    return container


def _wear(module: nn.Module, container: Adapters) -> None:
    """Hang a container under a module, and change the module's class."""
    module._modules[CONTAINER] = container
    module.__class__ = lora_class(type(module), kind_of(module) or reader_of(module), container.raw)
    _rehook(module)


def take_off(path: str, module: nn.Module) -> Adapters:
    """Give a LoRA layer its base class back.

    Args:
        path: module path, for messages.
        module: a LoRA layer.

    Returns:
        The container that was taken off.

    Raises:
        StateError: if another library changed the class since.
    """
    if not is_lora(module):
        raise StateError(
            "the class of an adapted module was changed by another library",
            where=f"module '{path}'",
            got=type(module).__name__,
            expected="the class that attach gave it",
            hint="undo the wrapping (FSDP, parametrize, ...) first.",
        )
    container = container_of(module)
    module.__class__ = getattr(type(module), _BASE)
    del module._modules[CONTAINER]
    _rehook(module)
    return container


def put_back(module: nn.Module, container: Adapters) -> None:
    """Make a module that ``take_off`` undid a LoRA layer again, with the same adapters.

    Args:
        module: the plain module.
        container: what ``take_off`` returned; it follows the module to its device and mode.
    """
    _wear(module, container.to(device_of(module)).train(module.training))


def device_of(module: nn.Module) -> torch.device:
    """Where an adapter of a module must live.

    Args:
        module: the base module.

    Returns:
        The device of its weight; an offloaded weight's execution device.
    """
    weight = next((p for p in module._parameters.values() if p is not None), None)
    weight = next(module.parameters(), None) if weight is None else weight
    device = torch.device("cpu") if weight is None else weight.device
    hook = module.__dict__.get("_hf_hook")
    execution = getattr(hook, "execution_device", None)
    return torch.device(execution) if device.type == "meta" and execution is not None else device
