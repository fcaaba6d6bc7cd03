"""Memory for the copies that a merge keeps, lent again at the next merge.

Memory that a process has not used before costs a fault a page, several times the copy that is written to it. So what an
unmerge no longer needs is not unmapped: the system may take it whenever it is short (``MADV_FREE``), and a later merge
writes to what is still there. The pages are huge where the system has such, for fewer faults the first time.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import defaultdict
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ["Room"]

_LEAST = 1 << 20
"""Bytes; the allocator serves what is smaller."""
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_HUGE, _FREE = getattr(mmap, "MADV_HUGEPAGE", None), getattr(mmap, "MADV_FREE", None)


class Room:
    """Copies of tensors, in memory that is used again after it was given back.

    Example:
        >>> room = Room()
        >>> held = room.copy(torch.arange(4))
        >>> held
        tensor([0, 1, 2, 3])
        >>> room.give_back(held)
    """

    def __init__(self) -> None:
        self._lent: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
        self._spare: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        """A copy starts empty."""
        return Room, ()

    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor.

        Args:
            tensor: any; what is not on the CPU is copied on its device, by the allocator.

        Returns:
            A contiguous tensor like it, whose memory is freed with it unless it is given back.
        """
        size = tensor.numel() * tensor.element_size()
        memory = self._mapping(size) if tensor.device.type == "cpu" and size >= _LEAST else None
        if memory is None:
            return tensor.clone(memory_format=torch.contiguous_format)
        copied = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)
        self._lent[copied.data_ptr()] = memory
        return copied

    def give_back(self, copied: Tensor | None) -> None:
        """Let the memory of a copy be taken by the system, or by the next copy.

        Args:
            copied: what ``copy`` returned, which nobody may read any more; anything else is left alone.
        """
        memory = None if copied is None else self._lent.pop(copied.data_ptr(), None)
        if memory is not None and _FREE is not None:
            memory.madvise(_FREE)
            self._spare[len(memory)].append(memory)

    def _mapping(self, size: int) -> mmap.mmap | None:
        """A mapping of that size, or None where the system gives none."""
        if _FREE is None:
            return None
        if self._spare[size]:
            return self._spare[size].pop()
        try:
            memory = mmap.mmap(-1, size, flags=_PRIVATE)
        except OSError:
            return None
        if _HUGE is not None:
            with contextlib.suppress(OSError):  # a system built without them
                memory.madvise(_HUGE)
        return memory
