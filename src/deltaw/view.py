"""The model as one plan sees it: a single walk over its own modules, and what each of them is."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from deltaw.config import Pattern
from deltaw.layers import Kind, kind_of
from deltaw.patterns import Matcher
from deltaw.ties import User, users_of_weights
from deltaw.tree import base_modules

__all__ = ["View"]

_REFUSAL = "deltaw_refusal"
"""Property of a layer's class: why it cannot wear an adapter, or None."""


@dataclass
class View:
    """A model's modules at one moment; it is made for one plan and not kept.

    Args:
        model: the model, unwrapped.
        modules: path -> module, under its first name.
        paths: id of a module -> all of its paths.
        kinds: path -> kind of the module, None where it cannot be adapted.
        users: storage of a weight -> the modules that hold it.
        refusals: path -> why a layer wears no adapter, for those that bring a low-rank update of their own.
    """

    model: nn.Module
    modules: dict[str, nn.Module] = field(init=False)
    paths: dict[int, list[str]] = field(init=False, default_factory=dict)
    kinds: dict[str, Kind | None] = field(init=False)
    users: dict[tuple[int, ...], list[User]] = field(init=False)
    refusals: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(base_modules(self.model, seen=self.paths))
        self.kinds = {path: kind_of(module) for path, module in self.modules.items()}
        self.users = users_of_weights(self.modules.items())
        own = [(path, module) for path, module in self.modules.items() if hasattr(type(module), _REFUSAL)]
        self.refusals = {path: why for path, module in own if (why := getattr(module, _REFUSAL)) is not None}

    def parent(self, path: str) -> nn.Module | None:
        """The module that holds another; None for the model itself."""
        return self.modules[path.rpartition(".")[0]] if path else None

    def find(self, pattern: Pattern) -> list[str]:
        """First paths of the modules that a pattern matches, under any of their names."""
        matcher = Matcher(pattern)
        if not isinstance(pattern, str) or len(self.paths) == len(self.modules) == sum(map(len, self.paths.values())):
            return [path for path, module in self.modules.items() if matcher.matches(path, module)]
        return [p for p, m in self.modules.items() if any(matcher.matches(q, m) for q in self.paths[id(m)])]

    def total(self) -> int:
        """Number of the base's parameters, shared ones once."""
        parameters = {id(p): p for m in self.modules.values() for p in m._parameters.values() if p is not None}
        return sum(p.numel() for p in parameters.values())

    def adaptable(self) -> list[str]:
        """Paths of everything that has a kind."""
        return [path for path, kind in self.kinds.items() if kind is not None]
