"""LoRA beside inserted positions: LoRA+PE and LoRA+PL.

Source:
    Hu et al. 2021, arXiv:2106.09685, appendix E.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from deltaw.baselines.prefix_embedding import PrefixEmbedding, PrefixMethod
from deltaw.baselines.prefix_layer import PrefixLayer
from deltaw.config import LoRAConfig
from deltaw.errors import ConfigError

__all__ = ["LoRAPrefixEmbedding", "LoRAPrefixLayer"]


@dataclass(frozen=True, kw_only=True)
class _WithLoRA(PrefixMethod):
    """What both share.

    Args:
        lora: the LoRA adapter; it also names the modules that are trained in full.
    """

    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_also:
            raise ConfigError(
                "train_also is given beside a LoRA configuration",
                where=f"{type(self).__name__}(..., train_also=...)",
                got=", ".join(self.train_also),
                expected="one place that names the modules trained in full",
                hint="put it into LoRAConfig(train_also=...).",
            )

    @property
    def low_rank(self) -> LoRAConfig | None:
        """The LoRA adapter."""
        return self.lora


@dataclass(frozen=True, kw_only=True)
class LoRAPrefixEmbedding(_WithLoRA, PrefixEmbedding):
    """LoRA and prefix-embedding tuning, trained together.

    Example:
        >>> LoRAPrefixEmbedding(prefix_length=8, infix_length=4, lora=LoRAConfig(rank=8)).name
        'lora+prefix-embedding'
    """

    name: ClassVar[str] = "lora+prefix-embedding"
    title: ClassVar[str] = "LoRA and prefix-embedding tuning"


@dataclass(frozen=True, kw_only=True)
class LoRAPrefixLayer(_WithLoRA, PrefixLayer):
    """LoRA and prefix-layer tuning, trained together.

    Example:
        >>> LoRAPrefixLayer(prefix_length=8, infix_length=4, lora=LoRAConfig(rank=8)).name
        'lora+prefix-layer'
    """

    name: ClassVar[str] = "lora+prefix-layer"
    title: ClassVar[str] = "LoRA and prefix-layer tuning"
