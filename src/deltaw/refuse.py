"""What attach refuses before it touches anything: names, orders, and models whose adapters would go unheard."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import ModelError, StateError
from deltaw.initialize import INITIALIZATIONS
from deltaw.layer import container_of, device_of, is_lora
from deltaw.layers import kind_of
from deltaw.record import Record
from deltaw.routing import Names, Route
from deltaw.sites import Plan
from deltaw.tree import base_modules
from deltaw.variants import variant_of
from deltaw.worn import Adapters, Reader

__all__ = [
    "is_sharded",
    "refuse_foreign",
    "refuse_meta",
    "refuse_name",
    "refuse_order",
    "refuse_two_ways",
    "seat",
]


def refuse_name(record: Record | None, name: str) -> None:
    """Refuse a name that is taken or cannot be a module's.

    Args:
        record: the model's record, if any.
        name: name of the new adapter.

    Raises:
        StateError: if the name cannot be used.
    """
    fit = isinstance(name, str) and re.fullmatch(r"[\w-]+", name) is not None
    reserved = not fit or hasattr(Adapters, name) or hasattr(Adapters(Record(), ""), name)
    taken = record is not None and name in record.adapters
    if reserved or taken:
        raise StateError(
            "this name is taken" if taken else "this cannot be the name of an adapter",
            where=f"adapter {name!r}",
            got=repr(name),
            expected="a new name of letters, digits, _ and - that is no attribute of a module",
            hint="choose another name, or detach the old adapter first." if taken else "try 'default' or 'sql'.",
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model or a part of it.

    Args:
        model: any model.

    Returns:
        True if it was.
    """
    return _has_sharded(base_modules(model))


def _has_sharded(modules: Iterable[tuple[str, nn.Module]]) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for _, module in modules)


def refuse_order(modules: Sequence[tuple[str, nn.Module]], given: nn.Module) -> None:
    """Refuse models that are already sharded, compiled or wrapped: what is attached then would go unseen.

    Args:
        modules: (path, module) of the whole model, unwrapped; the model itself first.
        given: what the user passed.

    Raises:
        StateError: if the order is wrong.
    """
    model = modules[0][1]
    sharded = _has_sharded(modules)
    compiled = given is not model and "_orig_mod" in given._modules
    compiled = compiled or any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for _, m in modules)
    wrapped = next((name for name in _PARALLEL if given is not model and _has_wrapper(given, name)), None)
    if sharded or compiled or wrapped:
        done = "sharded" if sharded else "compiled" if compiled else "wrapped for data parallelism"
        call = "fully_shard" if sharded else "torch.compile" if compiled else str(wrapped)
        raise StateError(
            f"adapters must be attached before the model is {done}",
            where=type(given).__name__,
            got=f"{call} was applied",
            expected="the plain model",
            hint=f"order: load, attach, then {call.removeprefix('torch.')}.",
        )


_PARALLEL = ("DistributedDataParallel",)
"""Wrappers that note a model's parameters when they are made: later ones would keep each process's own gradients."""


def _has_wrapper(given: nn.Module, name: str) -> bool:
    """Whether a class name stands among a model's wrappers."""
    module: nn.Module | None = given
    while module is not None:
        if type(module).__name__ == name:
            return True
        module = next(
            (module._modules[key] for key in ("_orig_mod", "_forward_module") if key in module._modules), None
        )
    return False


def refuse_foreign(modules: Iterable[tuple[str, nn.Module]], record: Record | None) -> None:
    """Refuse a model of which another model's adapters are a part: its layers would not listen to this one's verbs.

    Args:
        modules: (path, module) of the whole model, unwrapped.
        record: its record, if any.

    Raises:
        StateError: if a layer listens to another record.
    """
    for path, module in modules:
        if is_lora(module) and container_of(module).record is not record:
            raise StateError(
                "this model is part of another model that wears adapters, or has such a part",
                where=f"module '{path}'",
                got="adapters of another model",
                expected="one model for all verbs",
                hint="attach to the same model object as before, or detach there first.",
            )


def seat(record: Record, names: Names) -> Route:
    """Sort a batch by adapter, and refuse to route what has no rows of a batch to tell apart.

    These are attention's own forward and weights that others read; where tokens have adapters of their own, also
    convolutions and full copies of anything but a linear layer or a table.

    Args:
        record: the model's record.
        names: what ``route`` was given.

    Returns:
        The route.

    Raises:
        StateError: naming the module, the name or the place that is wrong, or where there is no row at all.
    """
    given = {} if isinstance(names, Tensor) else dict.fromkeys(_each(names))
    if not (names.numel() if isinstance(names, Tensor) else given):
        raise _unroutable("route(model, [])", "no row", "a name for each row of the batch", "name every row.")
    for name in given:
        record.resolve(name)
    bank = record.bank
    if bank is not None:
        bank.refresh()
    outside = [name for name in record.adapters if bank is None or name not in bank.names]
    slots = () if bank is None else bank.names
    device = next((device_of(module) for module in record.modules.values()), torch.device("cpu"))
    route = Route(names, (*slots, *outside), device, banked=bank is not None and not outside)
    by_token = len(route.shape) == 2
    for path, module in record.modules.items():
        container, kind = container_of(module), kind_of(module)
        worn = [container._modules[name] for name, _ in route if name in container._modules]
        if not worn:
            continue
        alone, tokens = "layers whose batch is the first axis", "layers whose tokens are the second axis"
        hint = "run each adapter's rows by themselves, with active(model, name)."
        if kind is not None and kind.forward is not None:
            raise _unroutable(f"module '{path}'", kind.name, alone, hint)
        if container.raw:
            raise _unroutable(f"module '{path}'", "a weight that others read", "layers that are called", hint)
        if (
            by_token
            and (kind is None or not (kind.product is not None or kind.lookup))
            and not isinstance(worn[0], Reader)
        ):
            raise _unroutable(
                f"module '{path}'", type(module).__bases__[0].__name__, tokens, "give one name for each row."
            )
    return route


def _each(names: Names) -> Iterator[Any]:
    """Every name of a route, in rows or in rows of tokens."""
    for row in names:
        yield from row if isinstance(row, Sequence) and not isinstance(row, str) else (row,)


def _unroutable(where: str, got: str, expected: str, hint: str) -> StateError:
    return StateError("this cannot be routed by rows", where=where, got=got, expected=expected, hint=hint)


def refuse_two_ways(made: Plan) -> None:
    """Refuse to adapt a module's forward where another adapter has its attribute, or the other way round.

    Args:
        made: the plan to carry out.

    Raises:
        StateError: naming the module.
    """
    for site in made.sites:
        if is_lora(site.module) and container_of(site.module)._modules and container_of(site.module).raw != site.raw:
            target = site.path if site.raw else f"{site.path}.weight"
            raise StateError(
                "this module is adapted another way already",
                where=f"module '{site.path}'",
                got="its forward" if site.raw else "its weight as others read it",
                expected="one way for all adapters of a module",
                hint=f"target {target!r}, as the other adapter does, or detach that one first.",
            )


def refuse_meta(made: Plan, loading: bool) -> None:
    """Refuse to copy values that are not there yet, or to load where they would be lost.

    Args:
        made: the plan to carry out.
        loading: whether an adapter's file is to be filled in.

    Raises:
        ModelError: if a module is on the meta device and not merely offloaded.
    """
    update, init = variant_of(made.config.variant), INITIALIZATIONS[made.config.init]
    reading = loading or update.reads or update.shared is not None or bool(init.needs)
    copied = [*made.copies, *made.biases, *((rows.path, rows.module) for rows in made.tokens)]
    copied += [(site.path, site.module) for site in made.sites] if reading else []
    for path, module in copied:
        if any(p.is_meta for p in module.parameters()) and device_of(module).type == "meta":
            raise ModelError(
                "a module on the meta device has no values " + ("to load beside" if loading else "to start from"),
                where=f"module '{path}'",
                got="meta",
                expected="a materialized module",
                hint="load the base's weights first; only low-rank terms can be attached to meta modules.",
            )
