"""LoRA-FA: A keeps its first values and only B is trained, so that the backward never needs the layer's input.

Source:
    Zhang et al. 2023, arXiv:2308.03303.
"""

from __future__ import annotations

from deltaw.variants.base import Variant

__all__ = ["LORA_FA"]

LORA_FA = Variant(
    name="lora_fa", frozen=frozenset({"lora_A"}), kinds=frozenset({"Linear", "Conv1D", "Conv", "Attention"})
)
