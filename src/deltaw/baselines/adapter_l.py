"""Adapter L: one bottleneck in every block, behind the MLP, with a trained LayerNorm of its own.

Source:
    Lin et al. 2020, arXiv:2004.03829 (the adapter normalizes what it reads); Adapter^L of arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.bottleneck import AdapterMethod

__all__ = ["AdapterL"]


@dataclass(frozen=True, kw_only=True)
class AdapterL(AdapterMethod):
    """One bottleneck with a LayerNorm in every block, behind the MLP.

    Example:
        >>> AdapterL(bottleneck=8).name
        'adapter-l'
    """

    name: ClassVar[str] = "adapter-l"
    title: ClassVar[str] = "Adapter L (Lin: behind the MLP, with a LayerNorm)"
    norm: ClassVar[bool] = True
