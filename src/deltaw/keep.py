"""Keeping the base's exact bits while something is merged into it.

An update changes few of a weight's bits, so the difference of the two bit patterns, read as integers, is small. It is
stored in a narrow integer type, with the rare large differences listed apart, where that takes less room than a copy;
the compact form is tried out before it is trusted. Restoring is integer arithmetic: no rounding is involved, signed
zeros, subnormals and NaN payloads included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.record import Mix
from deltaw.worn import Adapters

__all__ = ["Kept", "Original", "check_unchanged", "keep", "restore"]

_INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22


def _bits(tensor: Tensor) -> Tensor:
    """The bit pattern as integers of the same width, flat, on the CPU."""
    return _integers(tensor.detach().to("cpu").contiguous())


def _integers(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as integers of the same width."""
    return tensor.view(-1).view(_INT[tensor.element_size()])


def _checksum(bits: Tensor) -> int:
    """A 64-bit sum in which every position counts differently."""
    total = 0
    for start in range(0, bits.numel(), _CHUNK):
        piece = bits[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + piece.numel()) * 0x9E3779B97F4A7C1 + 0x632BE59BD9B4E019
        total += int((piece * (place | 1)).sum())
    return total & (2**64 - 1)


@dataclass
class Original:
    """The bits of one weight before a merge.

    Args:
        parameter: the weight, now merged.
        where: its name, for messages.
        dtype: its dtype at merge.
        checksum: of the merged bits, to notice edits.
        copy: the whole bit pattern, where that was smaller.
        narrow: differences that fit the narrow type.
        index: positions of the others.
        wide: differences there.
    """

    parameter: Tensor
    where: str
    dtype: torch.dtype
    checksum: int
    copy: Tensor | None = None
    narrow: Tensor | None = None
    index: Tensor | None = None
    wide: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        held = (self.copy, self.narrow, self.index, self.wide)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def bits(self, merged: Tensor) -> Tensor:
        """The original bit pattern.

        Args:
            merged: bit pattern of the merged weight.

        Returns:
            Integers of the weight's width.
        """
        if self.copy is not None:
            return self.copy
        assert self.narrow is not None and self.index is not None and self.wide is not None
        difference = self.narrow.to(merged.dtype)
        difference[self.index] = self.wide
        return merged + difference


@dataclass
class Kept:
    """Everything an unmerge needs.

    Args:
        mix: what was merged.
        originals: the weights' bits.
        containers: (path, module, adapters) taken out of the module tree.
    """

    mix: Mix
    originals: list[Original] = field(default_factory=list)
    containers: list[tuple[str, nn.Module, Adapters]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Memory held for the originals."""
        return sum(original.num_bytes for original in self.originals)


def keep(parameter: Tensor, merged: Tensor, where: str) -> Original:
    """Store what is needed to get a weight's bits back after ``merged`` is written to it.

    Args:
        parameter: the weight before the merge.
        merged: what will be written, same shape and dtype.
        where: name of the weight.

    Returns:
        The stored original; ``num_bytes`` tells its size.

    Example:
        >>> w = torch.randn(64, 64).bfloat16(); m = (w.float() + 1e-3).bfloat16()
        >>> keep(w, m, "w").num_bytes < w.numel() * 2
        True
    """
    before, after = _bits(parameter), _bits(merged)
    original = Original(parameter, where, parameter.dtype, _checksum(after))
    full = before.numel() * before.element_size()
    difference = before - after
    best = full
    for width in (w for w in (1, 2, 4) if w < before.element_size()):
        limits = torch.iinfo(_INT[width])
        outside = ((difference < limits.min) | (difference > limits.max)).nonzero().view(-1)
        num_bytes = before.numel() * width + outside.numel() * (8 + before.element_size())
        if num_bytes < best:
            best = num_bytes
            original.narrow, original.index = difference.to(_INT[width]), outside
            original.wide = difference[outside]
    if best == full or not torch.equal(original.bits(after), before):
        original.narrow = original.index = original.wide = None
        original.copy = before.clone()
    return original


def check_unchanged(original: Original) -> Tensor:
    """The merged bits, after making sure that nobody touched them.

    Args:
        original: what ``keep`` returned.

    Returns:
        Bit pattern of the merged weight.

    Raises:
        StateError: if the weight was changed since the merge.
    """
    parameter = original.parameter
    merged = None if parameter.is_meta or parameter.dtype != original.dtype else _bits(parameter)
    if merged is None or _checksum(merged) != original.checksum:
        raise StateError(
            "a merged weight was changed, so the base cannot be restored exactly",
            where=f"parameter '{original.where}'",
            got=f"{parameter.dtype} on {parameter.device}, other content than merged",
            expected=f"{original.dtype} as merged",
            hint="undo the change (cast back, reload the merged weights), then unmerge; nothing was written.",
        )
    return merged


@torch.no_grad()
def restore(original: Original) -> None:
    """Write the original bits back.

    Args:
        original: what ``keep`` returned.

    Raises:
        StateError: if the weight was changed since the merge.
    """
    parameter = original.parameter
    bits = original.bits(check_unchanged(original)).view(original.dtype).view(parameter.shape)
    if parameter.is_contiguous():
        # as integers, so that no NaN payload is touched on the way
        _integers(parameter.data).copy_(_integers(bits))
    else:
        parameter.data.copy_(bits)
