"""What is trained and should not be, and what should be and is not."""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.checks.finding import Problem, View
from deltaw.tree import base_modules

__all__ = ["base_trains", "inactive", "unoptimized"]


def base_trains(view: View) -> Iterator[Problem]:
    """Base parameters that require gradients.

    Args:
        view: what to look at.

    Yields:
        A finding for each parameter.
    """
    for path, module in base_modules(view.root):
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                yield Problem(
                    "base trains",
                    f"{path}.{key}" if path else key,
                    "a base parameter requires gradients",
                    "call requires_grad_(False) on it; use train_also to train a module in full.",
                )


def inactive(view: View) -> Iterator[Problem]:
    """In training: adapters that are trainable, without a gradient, and not in force.

    Args:
        view: what to look at.

    Yields:
        A finding for each adapter; beside an active adapter that trains it may be meant.
    """
    if not view.root.training:
        return
    active = view.active()
    names: dict[str, bool] = {}
    for _, name, parameter in view.trained():
        names[name] = names.get(name, True) and parameter.grad is None
    others = any(name in active for name in names)
    for name, untouched in names.items():
        if untouched and name not in active:
            yield Problem(
                "inactive",
                name,
                "trainable, but not in force while the model is in training mode",
                f"deltaw.activate(model, {name!r}) to train it, or deltaw.freeze(model, {name!r}).",
                meant=others,
            )


def unoptimized(view: View) -> Iterator[Problem]:
    """Trainable parameters of active adapters that the optimizer does not hold.

    Args:
        view: what to look at; without an optimizer nothing is found.

    Yields:
        A finding for each adapter.
    """
    if view.optimizer is None:
        return
    held = {id(parameter) for group in view.optimizer.param_groups for parameter in group["params"]}
    active = view.active()
    absent: dict[str, list[str]] = {}
    for where, name, parameter in view.trained():
        if name in active and id(parameter) not in held:
            absent.setdefault(name, []).append(where)
    for name, places in absent.items():
        yield Problem(
            "not in the optimizer",
            name,
            f"{len(places)} trainable tensors, first '{places[0]}'",
            "make the optimizer after attach or load: AdamW([p for _, p in deltaw.trainable(model)]).",
        )
