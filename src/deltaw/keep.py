"""Keeping the base's exact bits while something is merged into it.

An update changes few of a weight's bits, so the difference of the two bit patterns, read as integers, is small. It is
stored in a narrow integer type, with the rare large differences listed apart, where that takes less room than a copy;
the compact form is tried out before it is trusted. Restoring is integer arithmetic: no rounding is involved, signed
zeros, subnormals and NaN payloads included.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.blocks import Block, view_of
from deltaw.errors import StateError
from deltaw.pages import Room
from deltaw.record import Mix
from deltaw.worn import Adapters

__all__ = ["Bits", "Kept", "Original", "check_unchanged", "keep_bits", "restore"]

_INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROW = 1024
_RUNS, _RUN = 32, 64


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
    short = -bits.numel() % (8 // bits.element_size())
    bits = F.pad(bits, (0, short)) if short else bits
    words = bits.view(torch.int64)
    whole = words[: len(words) // _ROW * _ROW].view(-1, _ROW)
    rows, rest = whole.sum(1), words[whole.numel() :]
    rows = torch.cat([rows, rest]) if len(rest) else rows
    return tuple(int(each.dot(_odd(len(each), seed))) for seed, each in enumerate((rows, whole.sum(0))))


@functools.lru_cache(maxsize=16)
def _odd(count: int, seed: int) -> Tensor:
    return (torch.arange(count) * 0x9E3779B97F4A7C1 + seed * 0x632BE59BD9B4E019) | 1


def _some(bits: Tensor) -> Tensor:
    """Runs of values from all over a pattern."""
    runs = min(_RUNS, bits.numel())
    return bits[: bits.numel() // runs * runs].view(runs, -1)[:, :_RUN] if runs else bits


def _worth_trying(old: Tensor, new: Tensor) -> list[int]:
    """Widths in bytes at which the difference of two patterns may take less room than a copy, narrowest first."""
    full, widths = old.element_size(), list[int]()
    # a look at some values spares passes over all of them
    sizes = (_some(old) - _some(new)).abs()
    for width in (w for w in (4, 2, 1) if w < full):
        outside = int((sizes > torch.iinfo(_INT[width]).max).sum()) / max(1, sizes.numel())
        listed = 0.8 * (8 + full) * outside
        if 1 + listed >= full:
            break  # no fewer are outside of a narrower type
        if width + listed < full:
            widths.insert(0, width)
    return widths


@dataclass(kw_only=True)
class Bits:
    """The bits of one block of a weight before a merge.

    Args:
        checksum: of the merged bits, to notice edits.
        copy: the whole bit pattern, where that was smaller.
        narrow: differences that fit the narrow type.
        index: positions of the others.
        wide: differences there.
    """

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

    def before(self, merged: Tensor) -> Tensor:
        """The original bit pattern.

        Args:
            merged: bit pattern of the merged block.

        Returns:
            Integers of the weight's width, flat.
        """
        if self.copy is not None:
            return self.copy
        assert self.narrow is not None and self.index is not None and self.wide is not None
        difference = self.narrow.to(merged.dtype)
        difference[self.index] = self.wide
        return merged + difference


@dataclass
class Original:
    """The bits of one weight before a merge, block by block.

    Args:
        parameter: the weight, now merged.
        where: its name, for messages.
        dtype: its dtype at merge.
        pieces: the blocks written so far (None is the whole weight), with their bits.
    """

    parameter: Tensor
    where: str
    dtype: torch.dtype
    pieces: list[tuple[Block | None, Bits]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(bits.num_bytes for _, bits in self.pieces)

    def keep(self, block: Block | None, before: Tensor, now: Tensor) -> bool:
        """Remember a block that was written.

        Args:
            block: which one.
            before: its values before, a copy that nobody else holds.
            now: its values now.

        Returns:
            Whether that copy is held on to.
        """
        # where the first block had to be copied, the others are
        bits = keep_bits(before, now, narrow=not self.pieces or self.pieces[0][1].copy is None)
        self.pieces.append((block, bits))
        return bits.copy is not None and bits.copy.data_ptr() == before.data_ptr()

    def give_back(self, room: Room) -> None:
        """Let go of what was kept; there is no way back after.

        Args:
            room: where the copies come from.
        """
        for _, bits in self.pieces:
            room.give_back(bits.copy)
        self.pieces = []


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


def keep_bits(before: Tensor, after: Tensor, *, narrow: bool = True) -> Bits:
    """Store what is needed to get a weight's bits back after other values were written to it.

    Args:
        before: a copy of the weight as it was, or of a block of it; it may be kept as it is.
        after: what stands there now, same shape and dtype.
        narrow: whether to look for a form smaller than a copy.

    Returns:
        The stored bits; ``num_bytes`` tells their size.

    Example:
        >>> w = torch.randn(64, 64).bfloat16(); m = (w.float() + 1e-3).bfloat16()
        >>> keep_bits(w, m).num_bytes < w.numel() * 2
        True
    """
    old, new = _bits(before), _bits(after)
    bits = Bits(checksum=_checksum(new))
    best = full = old.numel() * old.element_size()
    for width in _worth_trying(old, new) if narrow else ():
        limits, entry = torch.iinfo(_INT[width]), 8 + old.element_size()
        if old.numel() * width >= best:
            break
        difference = old - new
        outside = ((difference < limits.min) | (difference > limits.max)).nonzero().view(-1)
        num_bytes = old.numel() * width + outside.numel() * entry
        if num_bytes < best:
            best = num_bytes
            bits.narrow, bits.index, bits.wide = difference.to(_INT[width]), outside, difference[outside]
    if best == full or not torch.equal(bits.before(new), old):
        bits.narrow = bits.index = bits.wide = None
        bits.copy = old
    return bits


def check_unchanged(original: Original) -> list[Tensor]:
    """The merged bits, after making sure that nobody touched them.

    Args:
        original: of a weight that was merged into.

    Returns:
        Bit pattern of each of its blocks.

    Raises:
        StateError: if the weight was changed since the merge.
    """
    parameter, merged = original.parameter, []
    same = not parameter.is_meta and parameter.dtype == original.dtype
    for block, bits in original.pieces if same else ():
        merged.append(_bits(view_of(parameter.data, block)))
        same = same and _checksum(merged[-1]) == bits.checksum
    if not same:
        raise StateError(
            "a merged weight was changed, so the base cannot be restored exactly",
            where=f"parameter '{original.where}'",
            got=f"{parameter.dtype} on {parameter.device}, other content than merged",
            expected=f"{original.dtype} as merged",
            hint="undo the change (cast back, reload the merged weights), then unmerge; nothing was written.",
        )
    return merged


@torch.no_grad()
def restore(original: Original, merged: list[Tensor] | None = None) -> None:
    """Write the original bits back.

    Args:
        original: of a weight that was merged into.
        merged: what ``check_unchanged`` returned; None to check now.

    Raises:
        StateError: if the weight was changed since the merge.
    """
    merged = check_unchanged(original) if merged is None else merged
    for (block, bits), now in zip(original.pieces, merged, strict=True):
        stored = view_of(original.parameter.data, block)
        before = bits.before(now)
        if stored.is_contiguous():
            # as integers, so that no NaN payload is touched on the way
            _integers(stored).copy_(before)
        else:
            stored.copy_(before.view(original.dtype).view(stored.shape))
