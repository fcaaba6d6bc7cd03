"""Full fine-tuning: every parameter of the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import Method

__all__ = ["Full"]


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """A copy of every parameter is trained; the originals stay in memory, and ``detach`` puts them back.

    ``deltaw train --method full`` keeps no originals: it writes a whole model.

    Example:
        >>> Full().name
        'full'
    """

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"

    def tuned(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name every parameter.

        Args:
            anatomy: the model's parts.

        Returns:
            Parameter names, a shared one once.
        """
        return tuple(name for name, _ in anatomy.model.named_parameters())
