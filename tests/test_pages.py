"""Memory for large copies."""

from __future__ import annotations

import mmap
import weakref

import pytest
import torch

from deltaw import pages
from deltaw.pages import Scratch, held_copy

LARGE = 3 << 20


@pytest.mark.parametrize("count", [0, 5, LARGE])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bfloat16])
def test_a_copy_holds_the_same_and_shares_nothing(count: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(count).to(dtype).view(-1, 1)
    copied = held_copy(tensor)
    assert torch.equal(copied, tensor) and copied.shape == tensor.shape
    tensor.fill_(7)
    assert count < 7 or not torch.equal(copied, tensor)
    copied.add_(1)


def test_a_large_copy_lies_on_advised_pages_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    advised = []

    class Mapping(mmap.mmap):
        def madvise(self, *args: int) -> None:
            advised.append((len(self), *args))
            super().madvise(*args)

    if pages._ADVICE is None:
        pytest.skip("this system has no huge pages")
    made: list[weakref.ref[Mapping]] = []
    monkeypatch.setattr(pages.mmap, "mmap", lambda *a, **k: made.append(weakref.ref(m := Mapping(*a, **k))) or m)
    copied = held_copy(torch.ones(LARGE, dtype=torch.int8))
    assert advised == [(LARGE, mmap.MADV_HUGEPAGE)] and made[0]() is not None
    held_copy(torch.ones(5))
    assert len(made) == 1, "a small copy comes from the allocator"
    del copied
    assert made[0]() is None


@pytest.mark.parametrize("broken", ["no advice", "no mapping"])
def test_without_huge_pages_the_allocator_serves(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    if broken == "no advice":
        monkeypatch.setattr(pages, "_ADVICE", None)
    monkeypatch.setattr(pages.mmap, "mmap", refuse)
    tensor = torch.arange(LARGE)
    assert torch.equal(held_copy(tensor), tensor)


def test_scratch_is_one_piece_of_memory() -> None:
    scratch = Scratch()
    first = scratch.copy(torch.arange(12.0).view(3, 4).t())
    assert first.is_contiguous() and torch.equal(first, torch.arange(12.0).view(3, 4).t())
    second = scratch.copy(torch.ones(5))
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(scratch.copy(torch.ones(5, dtype=torch.int16)), torch.ones(5, dtype=torch.int16))
    assert torch.equal(scratch.copy(torch.ones(5)), torch.ones(5)), "and of what is asked for"
