"""Adapter D: adapters P or H with those of the first blocks dropped.

Source:
    Rueckle et al. 2021, arXiv:2010.11918 (AdapterDrop); Adapter^D of arXiv:2106.09685. With R = 48 on RoBERTa-base,
    all blocks have 894,528 values and the last four 298,176: the 0.9M and 0.3M of its Table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.bottleneck import AdapterMethod, behind_both
from deltaw.baselines.method import whole
from deltaw.errors import ConfigError

__all__ = ["AdapterD"]


@dataclass(frozen=True, kw_only=True)
class AdapterD(AdapterMethod):
    """Adapters behind the MLP (P), or behind attention too (H), in all but the first blocks.

    Args:
        drop_layers: how many blocks at the input have none; AdapterDrop's own experiments settle on 5.
        placement: ``p`` or ``h``.

    Example:
        >>> AdapterD(bottleneck=48, drop_layers=8).name
        'adapter-d'
    """

    drop_layers: int = 5
    placement: str = "p"

    name: ClassVar[str] = "adapter-d"
    title: ClassVar[str] = "Adapter D (AdapterDrop: none in the first blocks)"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "drop_layers", 0)
        if self.placement not in ("p", "h"):
            raise ConfigError(
                "this placement is not known",
                where="AdapterD(..., placement=...)",
                got=repr(self.placement),
                expected="'p' (behind the MLP) or 'h' (behind attention too)",
                hint="use placement='p'.",
            )

    def sites(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the modules that an adapter stands behind.

        Args:
            anatomy: the model's parts.

        Returns:
            Paths in the blocks that keep their adapters.

        Raises:
            ConfigError: if no block keeps one.
        """
        if self.drop_layers >= len(anatomy.blocks):
            raise ConfigError(
                "no block keeps an adapter",
                where="drop_layers",
                got=f"{self.drop_layers} of {len(anatomy.blocks)} blocks dropped",
                expected="at least one block with adapters",
                hint=f"drop at most {len(anatomy.blocks) - 1}.",
            )
        all_sites = behind_both(anatomy) if self.placement == "h" else super().sites(anatomy)
        dropped = tuple(f"{path}." for path in list(anatomy.blocks)[: self.drop_layers])
        return tuple(path for path in all_sites if not path.startswith(dropped))
