"""Variants of the low-rank update, one paper per file; the registry is one line each."""

from deltaw.variants.base import Variant
from deltaw.variants.lora import LORA

__all__ = ["VARIANTS", "Variant"]

VARIANTS: dict[str, Variant] = {"lora": LORA}
