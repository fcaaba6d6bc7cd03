"""Modules whose own forward reads the weights of their children: they must know that an adapter is at work.

``nn.TransformerEncoderLayer`` takes a fused path in eval mode that never calls its children. It asks first whether
its activation is one the kernel knows; while an adapter is active, the adapted class answers no. A stack of them that
would run on nested tensors, which only the fused path can, says likewise that it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deltaw.tree import CONTAINER

__all__ = ["READERS", "Reader", "reader_of", "readers_above"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Reader:
    """One kind of module that reads its children.

    Args:
        name: name of the kind.
        matches: whether a module is of this kind.
        members: attributes of the adapted class, by which its own forward is led to call its children.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    members: Mapping[str, Any] = field(default_factory=dict)


def _off_while_active(name: str) -> property:
    """An attribute of the instance that reads as false while an adapter is active."""

    def read(module: Any) -> Any:
        value = module.__dict__[name]
        return type(value)() if module._modules[CONTAINER].record.current() else value

    def write(module: Any, value: Any) -> None:
        module.__dict__[name] = value

    return property(read, write)


ENCODER_LAYER = Reader(
    name="TransformerEncoderLayer",
    matches=lambda module: isinstance(module, nn.TransformerEncoderLayer),
    members={"activation_relu_or_gelu": _off_while_active("activation_relu_or_gelu")},
)

ENCODER = Reader(
    name="TransformerEncoder",
    matches=lambda module: isinstance(module, nn.TransformerEncoder) and "use_nested_tensor" in module.__dict__,
    members={"use_nested_tensor": _off_while_active("use_nested_tensor")},
)

READERS: dict[str, Reader] = {reader.name: reader for reader in (ENCODER_LAYER, ENCODER)}


def reader_of(module: nn.Module) -> Reader | None:
    """The reader that a module is.

    Args:
        module: any module.

    Returns:
        The reader, or None.
    """
    for reader in READERS.values():
        if reader.matches(module):
            return reader
    return None


def readers_above(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> dict[str, nn.Module]:
    """Modules that read an adapted module's weight, or that would take a path around it.

    Args:
        modules: path -> module, all of the model's.
        paths: paths of the adapted modules.

    Returns:
        path -> module, for each adapted one innermost first.
    """
    attentions = {path for path, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    readers = {path for path, module in modules.items() if reader_of(module) is not None}
    found: dict[str, nn.Module] = {}
    for path in paths if attentions or readers else ():
        above = path.rpartition(".")[0]
        if above in attentions:
            found[above] = modules[above]
        names = path.split(".")
        inner = (".".join(names[:depth]) for depth in range(len(names) - 1, -1, -1))
        found |= {above: modules[above] for above in inner if above in readers}
    return found
