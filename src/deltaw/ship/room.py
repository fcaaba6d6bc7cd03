"""How much memory is free, so that a check that needs the whole model is not begun where it cannot end."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["free_memory", "needed"]

_GROUP = Path("/sys/fs/cgroup")
_SPARE = 1 << 29


def needed(weights: int) -> int:
    """Memory that running a model of a size takes, generously: its weights, activations and one weight in float64.

    Args:
        weights: bytes of the weights.

    Returns:
        Bytes.

    Example:
        >>> needed(0) == 1 << 29
        True
    """
    return weights + weights // 2 + _SPARE


def free_memory(device: torch.device) -> int | None:
    """Memory that can be taken without pushing anything out.

    Args:
        device: where the model is to run.

    Returns:
        Bytes; None where the system does not say.
    """
    found = [_available(), _left_in_group()]
    if device.type == "cuda":
        found.append(torch.cuda.mem_get_info(device)[0])
    known = [value for value in found if value is not None]
    return min(known, default=None)


def _available() -> int | None:
    """Linux' own estimate for the machine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_in_group() -> int | None:
    """What a container leaves; file pages it holds can be dropped."""
    try:
        limit = int((_GROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return limit - used + int(stat.get("file", 0))
    except (OSError, ValueError):
        return None
