"""Memory for the copies that a merge keeps."""

from __future__ import annotations

import copy
import gc
import mmap
import pickle
import weakref

import pytest
import torch

import deltaw as dw
import deltaw.loralib as lora
from deltaw import pages
from deltaw.keep import Original
from deltaw.pages import Room
from deltaw.record import record_of

LARGE = 2 << 20
mapped = pytest.mark.skipif(pages._FREE is None, reason="this system cannot lend memory lazily")


@pytest.mark.parametrize("count", [0, 5, LARGE])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bfloat16, torch.float64])
def test_a_copy_holds_the_same_and_shares_nothing(count: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(count).to(dtype).view(-1, 1)
    copied = Room().copy(tensor)
    assert torch.equal(copied, tensor) and copied.shape == tensor.shape
    copied.add_(1)
    assert count == 0 or not torch.equal(copied, tensor)


def test_a_copy_of_a_view_is_contiguous() -> None:
    tensor = torch.arange(float(LARGE)).view(1024, -1).t()
    for part in (tensor, tensor[:3, :3]):
        copied = Room().copy(part)
        assert copied.is_contiguous() and torch.equal(copied, part) and copied.data_ptr() != part.data_ptr()


@mapped
def test_what_is_given_back_is_lent_again() -> None:
    room = Room()
    first, other = room.copy(torch.ones(LARGE)), room.copy(torch.ones(LARGE))
    place = first.data_ptr()
    room.give_back(first)
    assert room.copy(torch.ones(LARGE // 2)).data_ptr() != place, "a copy of another size has memory of its own"
    second = room.copy(torch.zeros(LARGE))
    assert second.data_ptr() == place and not second.any() and other.all()
    third = room.copy(torch.zeros(LARGE))
    assert third.data_ptr() not in (place, other.data_ptr()), "nothing is lent twice"


@mapped
def test_what_is_not_given_back_is_freed_with_its_tensor() -> None:
    room = Room()
    copied = room.copy(torch.ones(LARGE))
    memory = weakref.ref(room._lent[copied.data_ptr()])
    view = copied[5:]
    del copied
    gc.collect()
    assert memory() is not None and view.all()
    del view
    gc.collect()
    assert memory() is None and not room._lent


def test_other_memory_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    room, mine = Room(), torch.ones(LARGE)
    room.give_back(mine)
    room.give_back(room.copy(torch.ones(5)))
    room.give_back(None)
    assert not any(room._spare.values())


@pytest.mark.parametrize("broken", ["mmap", "_FREE", "_HUGE"])
def test_without_lent_memory_the_allocator_serves(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    if broken == "mmap":
        monkeypatch.setattr(mmap, "mmap", refuse)
    else:
        monkeypatch.setattr(pages, broken, None)
    room, tensor = Room(), torch.arange(LARGE)
    copied = room.copy(tensor)
    assert torch.equal(copied, tensor)
    room.give_back(copied)
    assert torch.equal(room.copy(tensor + 1), tensor + 1)


def test_a_copied_room_is_empty() -> None:
    room = Room()
    room.give_back(room.copy(torch.ones(LARGE)))
    for other in (copy.deepcopy(room), pickle.loads(pickle.dumps(room))):
        assert not any(other._spare.values()) and not other._lent


@mapped
def test_merges_use_their_memory_again_and_models_do_not_share_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024))
    before = [layer.weight.detach().clone() for layer in model]
    dw.attach(model, dw.LoRAConfig(targets="all-linear", rank=4))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    dw.merge(model)
    places = _places(model)
    twin = copy.deepcopy(model)
    assert len(places) == 2 and not places & _places(twin)
    dw.unmerge(model)
    dw.merge(model)
    assert _places(model) == places
    for each in (model, twin):
        dw.unmerge(each)
        assert all(map(torch.equal, before, (layer.weight for layer in each)))


@mapped
def test_a_layer_of_the_loralib_face_merges_into_the_same_memory() -> None:
    layer = lora.Linear(1024, 1024, r=4)
    torch.nn.init.normal_(layer.lora_B)
    before = layer.weight.detach().clone()
    seen, others = [], []
    for _ in range(2):
        layer.eval()
        assert layer._original is not None and not torch.equal(layer.weight, before)
        seen.append(_held([layer._original]))
        layer.train()
        assert torch.equal(layer.weight, before)
        others.append(Room().copy(before))  # takes what was freed
    assert len(seen[0]) == 1 and seen[0] == seen[1]


def _places(model: torch.nn.Module) -> set[int]:
    kept = record_of(model, "look").merged
    assert kept is not None
    return _held(kept.originals)


def _held(originals: list[Original]) -> set[int]:
    return {bits.copy.data_ptr() for original in originals for _, bits in original.pieces if bits.copy is not None}
