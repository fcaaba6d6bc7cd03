"""Adapter P: one bottleneck in every block, behind the MLP.

Source:
    Pfeiffer et al. 2021, arXiv:2005.00247; Adapter^P of arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.bottleneck import AdapterMethod

__all__ = ["AdapterP"]


@dataclass(frozen=True, kw_only=True)
class AdapterP(AdapterMethod):
    """One bottleneck in every block, behind the MLP.

    Example:
        >>> AdapterP(bottleneck=8).name
        'adapter-p'
    """

    name: ClassVar[str] = "adapter-p"
    title: ClassVar[str] = "Adapter P (Pfeiffer: behind the MLP)"
