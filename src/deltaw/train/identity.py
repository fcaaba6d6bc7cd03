"""A cheap name for a base's weights, exact enough to tell that a resumed run has the base it was started with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from deltaw.tree import is_worn

__all__ = ["base_identity"]

SAMPLES = 16


def base_identity(model: nn.Module) -> str:
    """Hash names, shapes, dtypes and a few values of every base parameter.

    Args:
        model: with or without adapters, which do not count.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if is_worn(name):
            continue
        flat = parameter.detach().reshape(-1)
        count = min(SAMPLES, flat.numel())
        places = torch.linspace(0, max(0, flat.numel() - 1), count, dtype=torch.float64).long()
        values = flat[places.to(flat.device)].float().cpu().tolist()
        digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype), values)).encode())
    return digest.hexdigest()[:16]
