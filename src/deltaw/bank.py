"""A bank of adapters: all of a model's, stacked in slots, so that a batch of many adapters reads them in one product.

At every adapted module stand A (S, R, I) and B (S, R, O), transposed so that a slot is dense for any rank, and a
scaling for each slot. The adapters' own parameters are views of their slots: there is no second copy, and what changes
an adapter in place changes the bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.factors import SlicedLoRA
from deltaw.functional import compute_dtype
from deltaw.layer import container_of
from deltaw.layers import kind_of
from deltaw.mixed import is_stackable
from deltaw.record import Record, find_record, record_of
from deltaw.worn import Beside, FullCopy, Reader, Twin

__all__ = ["AdapterBank", "Stack"]


_PLAIN = (nn.Parameter, Tensor)


class Stack:
    """The slots of one module.

    Args:
        size: number of slots S.
        rank: R, the largest that fits.
        slots: name -> slot of the adapters here; None for none yet.
    """

    A: Tensor | None
    B: Tensor | None
    scalings: Tensor | None

    def __init__(self, size: int, rank: int, slots: dict[str, int] | None = None) -> None:
        self.size, self.rank, self.slots = size, rank, dict(slots or {})
        self.A = self.B = self.scalings = None
        self.version = 0
        """Counts changes of the slots."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model has parameters of its own; they become views of its own slots when it is first used."""
        return Stack, (self.size, self.rank, self.slots)

    def link(self, name: str, slot: int, entry: Any) -> None:
        """Move an adapter's factors into a slot and make its parameters views of it.

        Args:
            name: the adapter.
            slot: a free one.
            entry: the adapter's module here.
        """
        with torch.inference_mode(mode=False):  # a parameter outlives the block in which its slot is made
            self._link(name, slot, entry)

    def _link(self, name: str, slot: int, entry: Any) -> None:
        self.slots[name] = slot
        self.version += 1
        lora_A, lora_B = entry.lora_A, entry.lora_B
        if self.A is None:
            self.A = lora_A.detach().new_zeros(self.size, self.rank, lora_A.shape[1])
            self.B = lora_B.detach().new_zeros(self.size, self.rank, lora_B.shape[0])
            self.scalings = torch.zeros(self.size, device=lora_A.device, dtype=compute_dtype(lora_A.dtype))
        assert self.B is not None and self.scalings is not None
        with torch.no_grad():
            for tensor, stack, values in ((lora_A, self.A, lora_A), (lora_B, self.B, lora_B.t())):
                own = values.detach().clone()
                stack[slot].zero_()
                view = stack[slot, : len(own)].copy_(own)
                tensor.data = view if tensor is lora_A else view.t()
            self.scalings[slot] = entry.part.scaling

    def unlink(self, name: str, entry: Any) -> None:
        """Give an adapter its own tensors again and clear its slot.

        Args:
            name: the adapter.
            entry: its module here.
        """
        slot = self.slots.pop(name)
        self.version += 1
        with torch.inference_mode(mode=False):
            for tensor in (entry.lora_A, entry.lora_B):
                tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
            if self.A is not None and self.B is not None:
                self.A[slot].zero_()
                self.B[slot].zero_()

    def relink(self, entries: dict[str, Any]) -> None:
        """Make parameters views again that were moved, cast, copied or replaced; what they hold counts.

        Args:
            entries: the adapters here by name.

        Raises:
            StateError: if adapters of one module have different dtypes or devices, or were sharded.
        """
        own = {name: entry for name, entry in entries.items() if name in self.slots}
        if self._are_linked(own):
            return
        foreign = next((n for n, entry in own.items() if type(entry.lora_A) not in _PLAIN), None)
        if foreign is not None:
            raise StateError(
                "the adapters of a bank were replaced by another library",
                where=f"adapter {foreign!r}",
                got=f"tensors of type {type(own[foreign].lora_A).__name__}",
                expected="plain tensors",
                hint="close the bank before the model is sharded.",
            )
        like = {(t.dtype, t.device) for entry in own.values() for t in (entry.lora_A, entry.lora_B)}
        if len(like) > 1:
            raise StateError(
                "adapters of one bank have one dtype and one device",
                where=f"adapters {', '.join(map(repr, own))}",
                got=", ".join(sorted(f"{dtype} on {device}" for dtype, device in like)),
                expected="one of these for all",
                hint="cast or move the whole model, or close the bank first.",
            )
        if self.A is None or (self.A.dtype, self.A.device) not in like:
            self.A = self.B = self.scalings = None
        for name, entry in own.items():
            self.link(name, self.slots[name], entry)

    def _are_linked(self, entries: dict[str, Any]) -> bool:
        """Whether every parameter is the view that it should be; asked at the start of every route."""
        if self.A is None or self.B is None:
            return False
        dtype, first_A, first_B = self.A.dtype, self.A.data_ptr(), self.B.data_ptr()
        step_A, step_B = (stack.stride(0) * stack.element_size() for stack in (self.A, self.B))
        for name, entry in entries.items():
            # by the dictionaries that hold them: attribute access would be most of the time
            lora_A, lora_B = entry._parameters.get("lora_A"), entry._parameters["lora_B"]
            lora_A, slot = entry.lora_A if lora_A is None else lora_A, self.slots[name]
            if type(lora_A) not in _PLAIN or lora_A.dtype != dtype:
                return False
            if lora_A.data_ptr() != first_A + slot * step_A or lora_B.data_ptr() != first_B + slot * step_B:
                return False
        return True

    def whole(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """All slots.

        Args:
            dtype: of the factors.

        Returns:
            A of shape (S, R, I), B of shape (S, R, O), scalings of shape (S).
        """
        assert self.A is not None and self.B is not None and self.scalings is not None
        return self.A.to(dtype), self.B.to(dtype), self.scalings

    def pick(self, slots: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Some slots: a view where they stand together, else a copy.

        Args:
            slots: which, at least one.
            dtype: of the factors.

        Returns:
            As ``whole``.
        """
        assert self.A is not None and self.B is not None and self.scalings is not None
        if slots[-1] - slots[0] == len(slots) - 1:  # in order, as a route has them
            A, B, scalings = (stack.narrow(0, slots[0], len(slots)) for stack in (self.A, self.B, self.scalings))
        else:
            chosen = torch.tensor(slots, device=self.A.device)
            A, B, scalings = (stack.index_select(0, chosen) for stack in (self.A, self.B, self.scalings))
        return A.to(dtype), B.to(dtype), scalings


class AdapterBank:
    """All adapters of a model, stacked in slots.

    While it exists, every adapter that is attached or loaded takes a free slot, and ``detach`` frees it. It ends with
    ``close`` or with the last adapter.

    Args:
        model: an attached model.
        size: number of slots.
        rank: the largest rank that fits; None takes that of the attached adapters.

    Raises:
        StateError: if nothing is attached, the model has a bank or is merged, or an adapter cannot be stacked.

    Example:
        >>> import deltaw as dw
        >>> net = nn.Sequential(nn.Linear(4, 4))
        >>> _ = dw.attach(net, dw.LoRAConfig(rank=2), "sql"); bank = AdapterBank(net, size=3)
        >>> _ = dw.attach(net, dw.LoRAConfig(rank=1), "chat"); bank.names
        ('sql', 'chat', None)
        >>> print(bank)
        2 of 3 slots of rank 2 at 1 module, 0.0 MB: sql, chat
    """

    def __init__(self, model: nn.Module, size: int, rank: int | None = None) -> None:
        record = record_of(model, "make a bank")
        record.require_unmerged("make a bank")
        if record.bank is not None:
            raise StateError(
                "this model has a bank",
                where="AdapterBank",
                got=f"a second one of {size} slots",
                expected=str(record.bank),
                hint="use AdapterBank.of(model), or close it first.",
            )
        ranks = [entry.part.rank for name in record.adapters for _, _, entry in _sites(record, name) if _ranked(entry)]
        self.size, self.rank = size, max(ranks, default=1) if rank is None else rank
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (self.size, self.rank)):
            raise StateError(
                "a bank has at least one slot and rank 1",
                where="AdapterBank",
                got=f"size={size!r}, rank={rank!r}",
                expected="whole numbers above zero",
                hint="for example AdapterBank(model, size=8, rank=16).",
            )
        self._names: list[str | None] = [None] * size
        self._record: Record | None = record
        for name in record.adapters:
            self._refuse(name)
        self._refuse_full(list(record.adapters))
        record.bank = self
        for name in record.adapters:
            self._take(name)

    @staticmethod
    def of(model: nn.Module) -> AdapterBank | None:
        """The bank of a model.

        Args:
            model: any model.

        Returns:
            The bank, or None.
        """
        record = find_record(model)
        bank: AdapterBank | None = None if record is None else record.bank
        return bank

    @property
    def names(self) -> tuple[str | None, ...]:
        """Adapters by slot; None for a free one."""
        return tuple(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, free ones included."""
        stacks = [t for _, stack in self._stacks() for t in (stack.A, stack.B) if t is not None]
        return sum(t.numel() * t.element_size() for t in stacks)

    def __str__(self) -> str:
        """One line."""
        if self._record is None:
            return "a closed bank"
        modules = len(list(self._stacks()))
        taken = [name for name in self._names if name is not None]
        return (
            f"{len(taken)} of {self.size} slots of rank {self.rank} at {modules} module{'s' * (modules != 1)}, "
            f"{self.nbytes / 1e6:.1f} MB: {', '.join(taken) or 'empty'}"
        )

    def put(self, name: str) -> int:
        """Move an attached adapter into a free slot, as ``attach`` and ``load`` do by themselves.

        Args:
            name: the adapter.

        Returns:
            Its slot.

        Raises:
            StateError: if it is unknown, in the bank already or cannot be stacked, no slot is free, the model is
                merged, or the bank is closed.
        """
        self._opened("put an adapter into a bank").resolve(name)
        if name in self._names:
            raise StateError(
                "this adapter is in the bank",
                where=f"adapter {name!r}",
                got=f"slot {self._names.index(name)}",
                expected="an adapter outside of it",
                hint="it follows every change of the adapter by itself.",
            )
        self._refuse(name)
        self._refuse_full([name])
        return self._take(name)

    def remove(self, name: str) -> None:
        """Give an adapter its own tensors again and free its slot; it stays attached.

        Args:
            name: the adapter.

        Raises:
            StateError: if it is not in the bank, the model is merged, or the bank is closed.
        """
        self._opened("take an adapter out of a bank")
        if name not in self._names:
            raise StateError(
                "this adapter is not in the bank",
                where=f"adapter {name!r}",
                got=repr(name),
                expected=", ".join(repr(other) for other in self._names if other is not None) or "an adapter in a slot",
                hint="bank.names lists the slots.",
            )
        self.release(name)

    def close(self) -> None:
        """Give every adapter its own tensors again; the adapters stay attached. A second call does nothing."""
        if self._record is not None:
            for name in self._names:
                if name is not None:
                    self.release(name)
            self._record.bank = None
            self._record = None

    def adopt(self, name: str) -> None:
        """Take in an adapter whose modules have just been placed; what ``attach`` calls.

        Args:
            name: the adapter.

        Raises:
            StateError: if it cannot be stacked, or no slot is free.
        """
        self._refuse(name)
        self._refuse_full([name])
        self._take(name)

    def release(self, name: str) -> None:
        """Free an adapter's slot, if it has one; what ``detach`` calls.

        Args:
            name: the adapter.
        """
        if self._record is None or name not in self._names:
            return
        for _, module, entry in _sites(self._record, name):
            container = container_of(module)
            if container.stack is not None and name in container.stack.slots:
                container.stack.unlink(name, entry)
                container.stack = container.stack if container.stack.slots else None
        self._names[self._names.index(name)] = None

    def refresh(self) -> None:
        """Make every parameter a view of its slot again, where another library replaced or moved it.

        Raises:
            StateError: if adapters of one module have different dtypes or devices.
        """
        for module, stack in self._stacks():
            stack.relink(container_of(module)._modules)

    def _opened(self, verb: str) -> Record:
        if self._record is None:
            raise StateError(
                f"cannot {verb} that is closed",
                where="AdapterBank",
                got="a closed bank",
                expected="the model's present bank",
                hint="make a new one; a bank ends with close() or with the last adapter.",
            )
        self._record.require_unmerged(verb)
        return self._record

    def _stacks(self) -> Iterator[tuple[nn.Module, Stack]]:
        """(module, slots) of every module that has any."""
        for module in () if self._record is None or self._record.merged is not None else self._record.modules.values():
            stack = container_of(module).stack
            if stack is not None:
                yield module, stack

    def _take(self, name: str) -> int:
        assert self._record is not None
        slot = self._names.index(None)
        self._names[slot] = name
        for _, module, entry in _sites(self._record, name):
            container = container_of(module)
            if container.stack is None:
                container.stack = Stack(self.size, self.rank)
            container.stack.link(name, slot, entry)
        return slot

    def _refuse_full(self, new: list[str]) -> None:
        if len(new) > self._names.count(None):
            raise StateError(
                "the bank is full",
                where=f"adapter {new[-1]!r}",
                got=f"{len(new)} more for {self._names.count(None)} free slots",
                expected=f"at most {self.size} adapters",
                hint="detach an adapter or bank.remove(name), or make a larger bank.",
            )

    def _refuse(self, name: str) -> None:
        """Refuse an adapter that cannot be stacked, naming the first module and the number of others."""
        assert self._record is not None
        found = [
            (path, why)
            for path, module, entry in _sites(self._record, name)
            if (why := _obstacle(module, entry, self.rank)) is not None
        ]
        if found:
            others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise StateError(
                f"adapter {name!r} cannot be stacked in a bank",
                where=f"module '{found[0][0]}'{others}",
                got=found[0][1],
                expected=f"plain updates of whole linear layers and embeddings, up to rank {self.rank}",
                hint="close the bank, or make none: route works without one, rows by rows where it must.",
            )


def _sites(record: Record, name: str) -> Iterable[tuple[str, nn.Module, Any]]:
    """(path, module, adapter there) of one adapter, markers left out."""
    for path, module in record.modules.items():
        entry = container_of(module)._modules.get(name)
        if entry is not None and not isinstance(entry, Reader):
            yield path, module, entry


def _ranked(entry: Any) -> bool:
    return hasattr(entry, "part")


def _obstacle(module: nn.Module, entry: Any, rank: int) -> str | None:
    """Why an adapter cannot stand in a slot of a module, or None."""
    container, kind = container_of(module), kind_of(module)
    names = {FullCopy: "a full copy", Twin: "a weight of several users", SlicedLoRA: "slices of a fused weight"}
    why = names.get(type(entry))
    if container.raw:
        why = "a weight that others read"
    elif isinstance(entry, Beside) or getattr(entry, "bias", None) is not None:
        why = "a trained bias" if entry.bias is not None else "trained token rows"
    elif getattr(entry, "tokens", None) is not None:
        why = why or "trained token rows"
    if why is None and entry.part.subtract:
        why = "a start that is taken off again"
    if why is None and not is_stackable(entry):
        why = f"variant {'+'.join(entry.part.variant)}"
    if why is None and (kind is None or not (kind.product is not None or kind.lookup)):
        why = "no linear layer" if kind is None else f"a layer of kind {kind.name}"
    if why is None and entry.part.rank > rank:
        why = f"rank {entry.part.rank}"
    return why or _foreign(container.stack, entry)


def _foreign(stack: Stack | None, entry: Any) -> str | None:
    """Why an adapter's tensors cannot become views of a stack, or None."""
    if type(entry.lora_A) not in _PLAIN:
        return f"tensors of type {type(entry.lora_A).__name__}"
    if (
        stack is not None
        and stack.A is not None
        and (entry.lora_A.dtype, entry.lora_A.device)
        != (
            stack.A.dtype,
            stack.A.device,
        )
    ):
        return f"{entry.lora_A.dtype} on {entry.lora_A.device}, in a bank of {stack.A.dtype} on {stack.A.device}"
    return None
