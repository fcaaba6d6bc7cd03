"""LoRA beside inserted positions: LoRA+PE and LoRA+PL.

Source:
    Hu et al. 2021, arXiv:2106.09685, appendix E.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import Piece
from deltaw.baselines.prefix_embedding import EMBEDDING_START, PrefixMethod, embedding_piece
from deltaw.baselines.prefix_layer import LAYER_START, layer_pieces
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
class LoRAPrefixEmbedding(_WithLoRA):
    """LoRA and prefix-embedding tuning, trained together.

    Example:
        >>> LoRAPrefixEmbedding(prefix_length=8, infix_length=4, lora=LoRAConfig(rank=8)).name
        'lora+prefix-embedding'
    """

    name: ClassVar[str] = "lora+prefix-embedding"
    title: ClassVar[str] = "LoRA and prefix-embedding tuning"

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make the body's piece.

        Args:
            anatomy: the model's parts.

        Returns:
            Path of the body -> piece.
        """
        return embedding_piece(self, anatomy)

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say how it starts and what room is left.

        Args:
            anatomy: the model's parts.

        Returns:
            Two lines.
        """
        return EMBEDDING_START, self.room_note(anatomy)


@dataclass(frozen=True, kw_only=True)
class LoRAPrefixLayer(_WithLoRA):
    """LoRA and prefix-layer tuning, trained together.

    Example:
        >>> LoRAPrefixLayer(prefix_length=8, infix_length=4, lora=LoRAConfig(rank=8)).name
        'lora+prefix-layer'
    """

    name: ClassVar[str] = "lora+prefix-layer"
    title: ClassVar[str] = "LoRA and prefix-layer tuning"

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make the body's piece and the blocks'.

        Args:
            anatomy: the model's parts.

        Returns:
            Module path -> piece.
        """
        return layer_pieces(self, anatomy)

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say how it starts and what room is left.

        Args:
            anatomy: the model's parts.

        Returns:
            Two lines.
        """
        return LAYER_START, self.room_note(anatomy)
