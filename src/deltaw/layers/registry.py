"""The kinds of site, one line each; the first that matches wins."""

from __future__ import annotations

from torch import nn

from deltaw.layers.attention import ATTENTION
from deltaw.layers.conv import CONV
from deltaw.layers.embedding import EMBEDDING
from deltaw.layers.kind import Kind
from deltaw.layers.linear import CONV1D, LINEAR

__all__ = ["KINDS", "kind_of", "weight_of"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (LINEAR, CONV1D, EMBEDDING, CONV, ATTENTION)}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module.

    Args:
        module: any module.

    Returns:
        Its kind, or None where deltaw cannot adapt it.

    Example:
        >>> kind_of(nn.Linear(2, 2)).name, kind_of(nn.ReLU())
        ('Linear', None)
    """
    for kind in KINDS.values():
        if kind.matches(module):
            return kind
    return None


def weight_of(module: nn.Module) -> nn.Parameter | None:
    """The weight that an adapter of a module updates, or its plain ``weight``.

    Args:
        module: any module.

    Returns:
        The parameter, or None.
    """
    kind = kind_of(module)
    return module._parameters.get("weight" if kind is None else kind.parameter)
