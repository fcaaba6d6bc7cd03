"""The model as patterns see it: its own modules, each once, under all of their names."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from deltaw.config import Pattern
from deltaw.layers import kind_of
from deltaw.patterns import Matcher
from deltaw.tree import base_modules

__all__ = ["View"]


@dataclass
class View:
    """A model's modules.

    Args:
        model: the model, unwrapped.
        modules: path -> module, under its first name.
        paths: id of a module -> all of its paths.
    """

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    paths: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(base_modules(self.model, seen=self.paths))

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
        return [path for path, module in self.modules.items() if kind_of(module) is not None]
