"""What a finding is, and what a search for findings looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltaw.record import Record
from deltaw.tree import CONTAINER

__all__ = ["Entry", "Problem", "View", "factors_of"]


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        kind: short name of the problem.
        where: module path, parameter or adapter name.
        what: what was found.
        hint: what to do.
        meant: it is only worth knowing, since it may be what was wanted.
    """

    kind: str
    where: str
    what: str
    hint: str
    meant: bool = False

    def __str__(self) -> str:
        """Two lines."""
        return f"{self.kind}: '{self.where}': {self.what}\n  hint: {self.hint}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One adapter at one module.

    Args:
        path: path of the base module.
        base: the base module.
        name: the adapter's name.
        module: the module that holds its tensors.
    """

    path: str
    base: nn.Module
    name: str
    module: nn.Module

    def at(self, key: str = "") -> str:
        """Name of a tensor of the entry, as in ``named_parameters()`` of the model.

        Args:
            key: name within the entry; empty for the entry itself.

        Returns:
            The dotted name.
        """
        return ".".join(part for part in (self.path, CONTAINER, self.name, key) if part)


@dataclass(frozen=True, kw_only=True)
class View:
    """What a search looks at.

    Args:
        given: the model as it was passed, wrappers included.
        root: the model itself.
        record: what it wears.
        optimizer: the optimizer in use, or None where it was not given.
        across_ranks: whether all processes are searching, so that they may compare.
    """

    given: nn.Module
    root: nn.Module
    record: Record
    optimizer: Any = None
    across_ranks: bool = False

    def entries(self) -> Iterator[Entry]:
        """Every adapter at every module.

        Yields:
            The entries, in the order in which modules were adapted.
        """
        for path, base in self.record.modules.items():
            container = base._modules.get(CONTAINER)
            for name, module in (container._modules if container is not None else {}).items():
                if module is not None:
                    yield Entry(path=path, base=base, name=name, module=module)

    def trained(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Every parameter of an adapter that requires gradients.

        Yields:
            (dotted name, adapter, parameter), each parameter once.
        """
        for entry in self.entries():
            for key, parameter in entry.module.named_parameters():
                if parameter.requires_grad:
                    yield entry.at(key), entry.name, parameter

    def active(self) -> set[str]:
        """Names of the adapters in force.

        Returns:
            The names.
        """
        return {name for name, _ in self.record.current()}

    def judged(self) -> bool:
        """Whether a backward has been here, so that gradients can be judged.

        Returns:
            True if any parameter of an adapter has a gradient.
        """
        return any(parameter.grad is not None for _, _, parameter in self.trained())


def factors_of(entry: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The factors that an entry applies.

    Args:
        entry: an adapter's module at one place.

    Yields:
        (A, B) for each slice; nothing where there is no low-rank update.
    """
    found: Any = getattr(entry, "parts", tuple)
    for pair in found():
        yield pair.factors if hasattr(pair, "factors") else (pair[1], pair[2])
