"""A count of what autograd saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, act: Callable[[], Any], counted: Callable[[], bool] = lambda: True) -> int:
    """Bytes of distinct storages saved for the backward, the model's own tensors left out.

    Args:
        model: whose parameters and buffers do not count.
        act: the forward; gives what has a gradient.
        counted: asked at every tensor whether it counts.

    Returns:
        Bytes.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if counted() and storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    pack.only_looks = unpack.only_looks = True  # type: ignore[attr-defined]
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = act()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in seen.values())
