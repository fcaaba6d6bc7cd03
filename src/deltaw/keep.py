"""Keeping the base's exact bits while something is merged into it.

An update changes few of a weight's bits, so the difference of the two bit patterns, read as integers, is small. It is
stored in a narrow integer type, with the rare large differences listed apart, where that takes less room than a copy;
the compact form is tried out before it is trusted. Restoring is integer arithmetic: no rounding is involved, signed
zeros, subnormals and NaN payloads included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.record import Mix
from deltaw.worn import Adapters

__all__ = ["Kept", "Original", "check_unchanged", "keep_bits", "restore"]

_INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROW = 1024
_SAMPLE = 1 << 14


def _bits(tensor: Tensor) -> Tensor:
    """The bit pattern as integers of the same width, flat, on the CPU."""
    return _integers(tensor.detach().to("cpu").contiguous())


def _integers(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory as integers of the same width."""
    return tensor.view(-1).view(_INT[tensor.element_size()])


def _checksum(bits: Tensor) -> tuple[int, ...]:
    """Two 64-bit sums at the speed of memory: of rows and of columns of the pattern, each with a weight of its own.

    A single changed value changes the first, since its weight is odd; values that changed places change one of them.
    """
    if bits.element_size() < 8:
        bits = F.pad(bits, (0, -bits.numel() % (8 // bits.element_size())))
    words = bits.view(torch.int64)
    whole = words[: len(words) // _ROW * _ROW].view(-1, _ROW)
    sums = (torch.cat([whole.sum(1), words[whole.numel() :]]), whole.sum(0))
    return tuple(int((each * _odd(len(each), seed)).sum()) for seed, each in enumerate(sums))


def _odd(count: int, seed: int) -> Tensor:
    return (torch.arange(count) * 0x9E3779B97F4A7C1 + seed * 0x632BE59BD9B4E019) | 1


def _share_outside(difference: Tensor, limits: torch.iinfo) -> float:
    return float(((difference < limits.min) | (difference > limits.max)).double().mean())


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
    checksum: tuple[int, ...]
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
        dropped: the originals were not wanted.
    """

    mix: Mix
    dropped: bool = False
    originals: list[Original] = field(default_factory=list)
    containers: list[tuple[str, nn.Module, Adapters]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Memory held for the originals."""
        return sum(original.num_bytes for original in self.originals)


def keep_bits(parameter: Tensor, merged: Tensor, where: str) -> Original:
    """Store what is needed to get a weight's bits back after ``merged`` is written to it.

    Args:
        parameter: the weight before the merge.
        merged: what will be written, same shape and dtype.
        where: name of the weight.

    Returns:
        The stored original; ``num_bytes`` tells its size.

    Example:
        >>> w = torch.randn(64, 64).bfloat16(); m = (w.float() + 1e-3).bfloat16()
        >>> keep_bits(w, m, "w").num_bytes < w.numel() * 2
        True
    """
    before, after = _bits(parameter), _bits(merged)
    original = Original(parameter, where, parameter.dtype, _checksum(after))
    best = full = before.numel() * before.element_size()
    # a look at some values spares passes over all of them for forms that would not be smaller
    some = slice(None, None, max(1, before.numel() // _SAMPLE))
    sample = before[some] - after[some]
    for width in (w for w in (1, 2, 4) if w < before.element_size()):
        limits, entry = torch.iinfo(_INT[width]), 8 + before.element_size()
        if before.numel() * (width + 0.8 * entry * _share_outside(sample, limits)) >= best:
            continue
        difference = before - after
        outside = ((difference < limits.min) | (difference > limits.max)).nonzero().view(-1)
        num_bytes = before.numel() * width + outside.numel() * entry
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
        original: what ``keep_bits`` returned.

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
def restore(original: Original, merged: Tensor | None = None) -> None:
    """Write the original bits back.

    Args:
        original: what ``keep_bits`` returned.
        merged: what ``check_unchanged`` returned; None to check now.

    Raises:
        StateError: if the weight was changed since the merge.
    """
    parameter = original.parameter
    merged = check_unchanged(original) if merged is None else merged
    bits = original.bits(merged).view(original.dtype).view(parameter.shape)
    if parameter.is_contiguous():
        # as integers, so that no NaN payload is touched on the way
        _integers(parameter.data).copy_(_integers(bits))
    else:
        parameter.data.copy_(bits)
