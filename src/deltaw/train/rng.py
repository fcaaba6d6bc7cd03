"""Every random stream a training run draws from: seeding, capturing, restoring."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomState", "capture", "restore", "seed_everything"]


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """The state of all streams at one moment.

    Args:
        tensors: generator states by name (``torch``, ``cuda.0``, ...), uint8.
        values: what JSON can hold: Python's and numpy's streams.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device.

    Args:
        seed: any whole number >= 0.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> RandomState:
    """Take the state of every stream.

    Returns:
        A copy that later draws do not change.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return RandomState(
        tensors=tensors,
        values={
            "python": [version, list(numbers), gauss],
            "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        },
    )


def restore(state: RandomState) -> None:
    """Put every stream back to a captured state.

    Args:
        state: from ``capture``, or read back from a file.
    """
    version, numbers, gauss = state.values["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state.values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state.tensors["torch"])
    for name, tensor in state.tensors.items():
        if name.startswith("cuda.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, int(name.removeprefix("cuda.")))
