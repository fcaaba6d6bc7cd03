"""Shared weights of which not every user is adapted alike, and twins that share no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from deltaw.checks.finding import Entry, Problem, View
from deltaw.ties import User, storage_key, users_of_weights
from deltaw.tree import base_modules
from deltaw.worn import Twin

__all__ = ["tied", "untied"]


def tied(view: View) -> Iterator[Problem]:
    """Weights with several users, of which an adapter changes some: the others compute with another weight.

    Args:
        view: what to look at.

    Yields:
        A finding for each adapter and weight; it may be meant where ``ties="separate"`` asked for it.
    """
    changed = {
        (id(entry.base), entry.name)
        for entry in view.entries()
        if hasattr(entry.module, "parts") or getattr(entry.module, "tokens", None) is not None
    }
    for users in _shared(view):
        for name in view.record.adapters:
            on = [user.path for user in users if (id(user.module), name) in changed]
            off = [user.path for user in users if (id(user.module), name) not in changed]
            if on and off:
                yield Problem(
                    "tied",
                    on[0],
                    f"adapter {name!r} changes it, and not {', '.join(map(repr, off))}, which shares its weight",
                    'attach with ties="share" to adapt both, or untie the weights before attach.',
                    meant=view.record.adapters[name].config.ties == "separate",
                )


def _shared(view: View) -> Iterator[list[User]]:
    for users in users_of_weights(base_modules(view.root)).values():
        if len(users) > 1:
            yield users


def untied(view: View) -> Iterator[Problem]:
    """Twins of an update whose modules no longer share a weight.

    Args:
        view: what to look at.

    Yields:
        A finding for each twin.
    """
    homes: dict[int, Entry] = {id(entry.module): entry for entry in view.entries()}
    for entry in view.entries():
        if not isinstance(entry.module, Twin):
            continue
        home = homes.get(id(entry.module.primary[0]))
        keys = [_key(entry.base), None if home is None else _key(home.base)]
        if home is None or keys[0] is None or keys[0] != keys[1]:
            other = "the adapter's first module" if home is None else f"'{home.path}'"
            yield Problem(
                "untied",
                entry.path,
                f"one update serves it and {other}, but they no longer share a weight",
                f"tie them again, {entry.path}.weight = {home.path if home else '...'}.weight, or detach first.",
            )


def _key(module: nn.Module) -> tuple[int, ...] | None:
    weight: Any = module._parameters.get("weight")
    return storage_key(weight) if isinstance(weight, Tensor) else None
