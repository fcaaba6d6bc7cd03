"""FT-Top2: the last blocks are trained in full, everything before them is frozen.

Source:
    Li and Liang 2021, arXiv:2101.00190 (FT-Top2), quoted in Table 3 of arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import Method, whole
from deltaw.errors import ConfigError

__all__ = ["TopBlocks"]


@dataclass(frozen=True, kw_only=True)
class TopBlocks(Method):
    """A copy of the last blocks is trained; the originals stay in memory, and ``detach`` puts them back.

    Args:
        blocks: how many, counted from the output.

    Example:
        >>> TopBlocks(blocks=2).name
        'top-blocks'
    """

    blocks: int = 2

    name: ClassVar[str] = "top-blocks"
    title: ClassVar[str] = "the last blocks in full"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "blocks", 1)

    def tuned(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the parameters of the last blocks.

        Args:
            anatomy: the model's parts.

        Returns:
            Parameter names.

        Raises:
            ConfigError: if the model has fewer blocks.
        """
        if self.blocks > len(anatomy.blocks):
            raise ConfigError(
                "the model has fewer blocks",
                where="blocks",
                got=f"the last {self.blocks} of {len(anatomy.blocks)}",
                expected=f"at most {len(anatomy.blocks)}",
                hint="lower blocks, or train every weight with full fine-tuning.",
            )
        chosen = tuple(f"{path}." for path in list(anatomy.blocks)[-self.blocks :])
        return tuple(name for name, _ in anatomy.model.named_parameters() if name.startswith(chosen))
