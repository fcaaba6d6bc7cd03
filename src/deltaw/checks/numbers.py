"""Devices, dtypes and values that are wrong, or that do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deltaw.checks.finding import Problem, View, factors_of
from deltaw.functional import all_finite
from deltaw.tree import base_modules
from deltaw.worn import FullCopy

__all__ = ["broken", "idle", "misplaced", "precision", "stray_copies"]

_NARROW = (torch.float16, torch.bfloat16)


def misplaced(view: View) -> Iterator[Problem]:
    """Adapters on another device than their weight.

    Args:
        view: what to look at.

    Yields:
        A finding for each adapter at each module.
    """
    for entry in view.entries():
        weight: Any = entry.base._parameters.get("weight")
        parameter = next(entry.module.parameters(), None)
        if weight is not None and parameter is not None and weight.device != parameter.device and not weight.is_meta:
            what = f"on {parameter.device}, its weight on {weight.device}"
            yield Problem("misplaced", entry.at(), what, "move the whole model with model.to(device).")


def precision(view: View) -> Iterator[Problem]:
    """Trained tensors in a dtype in which small updates vanish.

    Args:
        view: what to look at.

    Yields:
        A finding for each parameter; a full copy in its base's dtype may be meant.
    """
    for entry in view.entries():
        copied = isinstance(entry.module, FullCopy)
        for key, parameter in entry.module.named_parameters():
            if parameter.requires_grad and parameter.dtype in _NARROW:
                hint = "cast the base before attach, not after: factors are fp32 and cast in the forward."
                if copied:
                    hint = "load the base in float32, or use an optimizer that keeps float32 masters."
                yield Problem("low precision", entry.at(key), f"trained in {parameter.dtype}", hint, meant=copied)


def stray_copies(view: View) -> Iterator[Problem]:
    """Full copies in another dtype than the module they replace: what follows gets another dtype than it was made for.

    Args:
        view: what to look at.

    Yields:
        A finding for each copy.
    """
    for entry in view.entries():
        if not isinstance(entry.module, FullCopy):
            continue
        own = {p.dtype for p in entry.module.parameters() if p.is_floating_point()}
        base = {
            p.dtype
            for _, part in base_modules(entry.base)
            for p in part._parameters.values()
            if p is not None and p.is_floating_point()
        }
        if own and base and own != base:
            what = f"the copy is in {_names(own)}, its base in {_names(base)}"
            yield Problem("mixed dtypes", entry.at(), what, "cast the whole model with model.to(dtype).")


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype) for dtype in dtypes))


def broken(view: View) -> Iterator[Problem]:
    """Values that are not finite.

    Args:
        view: what to look at.

    Yields:
        A finding for each parameter.
    """
    for entry in view.entries():
        for key, parameter in entry.module.named_parameters():
            if not parameter.is_meta and not all_finite(parameter):
                hint = "go back to an earlier checkpoint and lower the learning rate."
                yield Problem("not finite", entry.at(key), "NaN or infinity", hint)


def idle(view: View) -> Iterator[Problem]:
    """Adapters whose every update is zero and that are not being trained.

    Args:
        view: what to look at.

    Yields:
        A finding for each adapter.
    """
    found: dict[str, bool] = {}
    for entry in view.entries():
        pairs = list(factors_of(entry.module))
        # without a low-rank update it may be a bias or a copy, of which zero says nothing
        zero = bool(pairs) and not any(all(not t.is_meta and bool(t.any()) for t in pair) for pair in pairs)
        training = any(parameter.requires_grad for parameter in entry.module.parameters())
        found[entry.name] = found.get(entry.name, True) and zero and not training
    for name, nothing in found.items():
        if nothing:
            yield Problem(
                "does nothing",
                name,
                "every update is zero and none is trained",
                "the file may hold an untrained adapter; check where it was saved.",
            )
