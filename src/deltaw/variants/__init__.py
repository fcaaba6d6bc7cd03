"""Variants of the low-rank update, one paper per file; the registry is one line each."""

from collections.abc import Iterable

from deltaw.errors import ConfigError, nearest
from deltaw.variants.base import Base, Combined, Tensors, Variant, combine
from deltaw.variants.dora import DORA
from deltaw.variants.lora import LORA
from deltaw.variants.lora_bias import LORA_BIAS
from deltaw.variants.lora_fa import LORA_FA
from deltaw.variants.vera import VERA

__all__ = ["VARIANTS", "Base", "Combined", "Tensors", "Variant", "variant_of"]

VARIANTS: dict[str, Variant] = {v.name: v for v in (LORA, DORA, LORA_FA, LORA_BIAS, VERA)}


def variant_of(names: Iterable[str]) -> Combined:
    """The combination of named variants; plain LoRA brings A and B unless one of them has its own.

    Args:
        names: names in ``VARIANTS``.

    Returns:
        The combination.

    Raises:
        ConfigError: if a name is unknown or two do not combine.

    Example:
        >>> variant_of(["dora", "lora_fa"]).names
        ('lora', 'dora', 'lora_fa')
    """
    wanted = list(dict.fromkeys(names))
    unknown = next((name for name in wanted if name not in VARIANTS), None)
    if unknown is not None:
        raise ConfigError(
            "unknown value of variant",
            where="LoRAConfig.variant",
            got=repr(unknown),
            expected=", ".join(map(repr, VARIANTS)),
            hint=f"nearest: {nearest(str(unknown), VARIANTS, 1)}.",
        )
    parts = [VARIANTS[name] for name in VARIANTS if name in wanted]
    if not any(part.factors is not None for part in parts) and LORA not in parts:
        parts.insert(0, LORA)
    return combine(tuple(parts))
