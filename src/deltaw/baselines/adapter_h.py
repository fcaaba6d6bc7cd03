"""Adapter H: two bottlenecks in every block, behind attention and behind the MLP.

Source:
    Houlsby et al. 2019, arXiv:1902.00751; Adapter^H of arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.bottleneck import AdapterMethod, behind_both

__all__ = ["AdapterH"]


@dataclass(frozen=True, kw_only=True)
class AdapterH(AdapterMethod):
    """Two bottlenecks in every block, each before its sub-layer's residual sum.

    Example:
        >>> AdapterH(bottleneck=8).name
        'adapter-h'
    """

    name: ClassVar[str] = "adapter-h"
    title: ClassVar[str] = "Adapter H (Houlsby: behind attention and MLP)"

    def sites(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the modules that an adapter stands behind.

        Args:
            anatomy: the model's parts.

        Returns:
            Two paths for each block.
        """
        return behind_both(anatomy)
