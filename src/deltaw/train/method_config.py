"""Which methods ``deltaw train`` knows, and the settings of those that are no LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass

from deltaw.train.fields import check_group, option

__all__ = ["BASE_METHODS", "METHODS", "READS", "BaselineConfig", "inserts", "is_baseline", "uses_lora"]

_ADAPTER, _PREFIX = ("bottleneck", "activation"), ("prefix_length", "infix_length")

READS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "full": (),
    "top-blocks": ("blocks",),
    "bias": (),
    "prefix-embedding": _PREFIX,
    "prefix-layer": _PREFIX,
    "adapter-h": _ADAPTER,
    "adapter-l": _ADAPTER,
    "adapter-p": _ADAPTER,
    "adapter-d": (*_ADAPTER, "drop_layers", "placement"),
    "lora+prefix-embedding": _PREFIX,
    "lora+prefix-layer": _PREFIX,
}
"""Method -> the fields of ``BaselineConfig`` that it reads. A test keeps the names equal to the core's registry."""

METHODS = tuple(READS)

BASE_METHODS = ("full", "top-blocks", "bias")
"""Those that train the base's own parameters, in the base's number format."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The settings of the paper's baselines; each is read by the methods that have it."""

    bottleneck: int = option(64, "size of the bottleneck of adapter-h, -l, -p and -d", low=1)
    activation: str = option("relu", "what is between an adapter's projections", choices=("relu", "gelu", "silu"))
    prefix_length: int = option(8, "trained positions before the input, of the prefix methods", low=0)
    infix_length: int = option(0, "trained positions between prompt and completion, of the prefix methods", low=0)
    blocks: int = option(2, "how many of the last blocks top-blocks trains", low=1)
    drop_layers: int = option(5, "how many of the first blocks have no adapter in adapter-d", low=0)
    placement: str = option(
        "p", "in adapter-d: p behind the MLP, h behind attention too", choices=("p", "h")
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_group(self, "baseline")


def uses_lora(method: str) -> bool:
    """Say whether a method has low-rank factors.

    Args:
        method: one of ``METHODS``.

    Returns:
        True for LoRA, alone or beside a prefix.
    """
    return method.partition("+")[0] == "lora"


def is_baseline(method: str) -> bool:
    """Say whether a method is worn and saved as a baseline.

    Args:
        method: one of ``METHODS``.

    Returns:
        False for a LoRA adapter alone and for full fine-tuning, which writes a whole model.
    """
    return method not in ("lora", "full")


def inserts(method: str, config: BaselineConfig) -> int:
    """Count the positions that a method puts into every input.

    Args:
        method: one of ``METHODS``.
        config: the lengths.

    Returns:
        Number of positions; 0 for methods without a prefix.
    """
    return config.prefix_length + config.infix_length if "prefix_length" in READS[method] else 0
