"""One file per kind of site."""

from deltaw.layers.kind import Kind
from deltaw.layers.registry import KINDS, kind_of, weight_of

__all__ = ["KINDS", "Kind", "kind_of", "weight_of"]
