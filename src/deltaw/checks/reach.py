"""Adapters that the forward or the backward does not reach."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deltaw.checks.finding import Problem, View
from deltaw.functional import all_finite
from deltaw.layer import is_lora, is_shadowed
from deltaw.tree import base_modules

__all__ = ["changed", "untrained", "vanished"]


def untrained(view: View) -> Iterator[Problem]:
    """After a backward: adapters without a gradient were bypassed, or their block was recomputed without one.

    Args:
        view: what to look at.

    Yields:
        A finding for each parameter.
    """
    if not view.judged():
        return
    active = view.active()
    for where, name, parameter in view.trained():
        if parameter.grad is None and name in active:
            yield Problem(
                "untrained",
                where,
                "no gradient after a backward",
                "its module was bypassed (weight read directly), did not run, or ran under reentrant checkpointing; "
                "use use_reentrant=False, or exclude the module.",
            )


def vanished(view: View) -> Iterator[Problem]:
    """Gradients that are there and say nothing: zero in a whole adapter, or not finite.

    Args:
        view: what to look at.

    Yields:
        A finding for each adapter, or for each gradient that is not finite.
    """
    silent: dict[str, bool] = {}
    for where, name, parameter in view.trained():
        if parameter.grad is None or parameter.grad.is_meta:
            continue
        silent[name] = silent.get(name, True) and not bool(torch.any(parameter.grad != 0))
        if not all_finite(parameter.grad):
            yield Problem(
                "gradient not finite",
                where,
                "NaN or infinity in its gradient",
                "skip this step and lower the learning rate; in float16 use torch.amp.GradScaler, or bfloat16.",
            )
    for name, nothing in silent.items():
        if nothing:
            yield Problem(
                "vanished",
                name,
                "every gradient is exactly zero",
                "the loss does not depend on it, or float16 gradients underflowed: use torch.amp.GradScaler, or "
                "bfloat16; and see that some label counts.",
            )


def changed(view: View) -> Iterator[Problem]:
    """Modules that were replaced, re-classed or given a forward of their own since the attach.

    Args:
        view: what to look at.

    Yields:
        A finding for each module.
    """
    present = dict(base_modules(view.root))
    for path, module in view.record.modules.items():
        if present.get(path) is not module:
            yield Problem(
                "replaced",
                path,
                "another module stands here since the attach",
                "detach before replacing modules, then attach again.",
            )
        elif not is_lora(module) and not any("_deltaw_base" in cls.__dict__ for cls in type(module).__mro__):
            yield Problem(
                "bypassed",
                path,
                f"its class is {type(module).__name__} now",
                "attach after the library that changes classes, or detach first.",
            )
        if is_shadowed(module):
            yield Problem(
                "shadowed",
                path,
                "an instance attribute 'forward' hides the adapter",
                "delete the attribute, or patch before attach.",
            )
