"""Memory for large copies: written once and held, or used again and again.

Memory that a process has not used before costs a fault a page. At 4 KiB a page that is several times the copy itself;
on huge pages, where the system has them, it is little.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

__all__ = ["Scratch", "held_copy"]

_HUGE = 1 << 21
"""Bytes of a huge page; what is smaller comes from the allocator."""
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def held_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor into memory of its own, on huge pages where the system lends them.

    Args:
        tensor: contiguous, on the CPU.

    Returns:
        A tensor like it.

    Example:
        >>> held_copy(torch.tensor([1.5, -0.0]))
        tensor([1.5000, -0.0000])
    """
    size = tensor.numel() * tensor.element_size()
    if _ADVICE is None or size < _HUGE:
        return tensor.clone()
    try:
        memory = mmap.mmap(-1, size, flags=_PRIVATE)
        memory.madvise(_ADVICE)
    except OSError:
        # no room for a mapping, or a system built without huge pages
        return tensor.clone()
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)


class Scratch:
    """Memory that copies take turns in: each copy ends the one before.

    Example:
        >>> scratch = Scratch()
        >>> first = scratch.copy(torch.ones(4))
        >>> scratch.copy(torch.zeros(2)), first
        (tensor([0., 0.]), tensor([0., 0., 1., 1.]))
    """

    def __init__(self) -> None:
        self._room: Tensor | None = None

    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor.

        Args:
            tensor: any shape, dtype and device; more room is made where it needs more.

        Returns:
            A contiguous tensor of its shape, good until the next copy.
        """
        room, count = self._room, tensor.numel()
        if room is None or room.numel() < count or (room.dtype, room.device) != (tensor.dtype, tensor.device):
            self._room = room = torch.empty(count, dtype=tensor.dtype, device=tensor.device)
        return room[:count].view(tensor.shape).copy_(tensor)
