"""Values of a trained layer, the same for both libraries."""

from __future__ import annotations

from typing import Any

import torch


def filled(layer: Any, seed: int = 5) -> Any:
    """Give factors the values that they might have after training.

    Args:
        layer: with ``lora_A`` and ``lora_B``.
        seed: of the values.

    Returns:
        The layer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer
