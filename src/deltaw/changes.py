"""What a merge changes: every base tensor, and the steps that turn it into what is to stand there.

A step works on one block of a tensor in place, and it is the same wherever the block lies: in the model, or in a copy
of a file's tensor. Merging in memory and on disk therefore give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.blocks import Block, blocks_of, put_in, view_of
from deltaw.errors import StateError
from deltaw.functional import all_finite, compute_dtype
from deltaw.layer import container_of
from deltaw.layers import Kind, kind_of
from deltaw.pages import Room
from deltaw.record import Mix, Record
from deltaw.worn import FullCopy, Twin

__all__ = ["Change", "bias_value", "changes_of", "weight_steps"]

_FEW = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Change:
    """One base tensor that a merge changes, block by block.

    Args:
        where: dotted name of the parameter or buffer.
        parameter: the base's tensor, or None where there is none.
        steps: blocks of the tensor (None is all of it), each with what turns the base's values there, in place, into
            those that are to stand there. It reads that block alone.
        readers: identities of the modules that may read it.
        shape: shape of a weight that is added to, in its stored layout; None for what is replaced.
        reach: computes a bound on the size of what is added to any value.
    """

    where: str
    parameter: Any
    steps: Callable[[], Iterable[tuple[Block | None, Callable[[Tensor], object]]]]
    readers: frozenset[int]
    shape: tuple[int, ...] | None = None
    reach: Callable[[], float] = lambda: math.inf

    def write(
        self,
        target: Tensor,
        keep: Callable[[Block | None, Tensor, Tensor], bool] | None = None,
        room: Room | None = None,
    ) -> bool:
        """Turn the base's values into those that are to stand there.

        Args:
            target: the base's values, changed in place; a copy of the parameter, or the parameter itself where nothing
                can fail or everything is kept.
            keep: told of each written block: (block, what stood there before, the block); it says whether it holds on
                to what stood there.
            room: memory for what stood there.

        Returns:
            Whether a bit changed.

        Raises:
            StateError: if finite values became infinite; this block is written by then.
        """
        apart, changed = target.data_ptr() != self.parameter.data_ptr(), False
        room = Room() if room is None else room
        for block, step in self.steps():
            now, before = view_of(target, block), None
            if apart:
                before = view_of(self.parameter.data, block)
            elif keep is not None or not changed:
                before = room.copy(now)
            if before is None:
                step(now)
                continue
            try:
                step(now)
                changed = changed or _differ(now, before)
                held = keep is not None and keep(block, before, now)
            except BaseException:
                # what is not kept yet, nobody else can take back
                now.copy_(before)
                raise
            if not all_finite(now) and all_finite(before):
                raise StateError(
                    "the merged weight overflows its dtype",
                    where=f"parameter '{self.where}'",
                    got=f"infinity in {self.parameter.dtype}",
                    expected="finite numbers",
                    hint="merge in bfloat16 or float32: model.to(torch.float32) before attach.",
                )
            if not held:
                room.give_back(before)
        return changed

    def computed(self) -> tuple[Tensor, bool]:
        """What is to stand there, beside the base.

        Returns:
            (a new tensor like the parameter, whether a bit of it differs).

        Raises:
            StateError: if finite values would become infinite.
        """
        out = self.parameter.data.clone()
        return out, self.write(out)

    @property
    def safe(self) -> bool:
        """Whether the sum cannot overflow, told from norms: no value is larger than those."""
        reach, weight = self.reach(), self.parameter.data
        if reach == math.inf:
            return False
        norm = torch.linalg.vector_norm(weight, dtype=compute_dtype(weight.dtype))
        return float(norm) + reach < float(torch.finfo(weight.dtype).max)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ; the first values tell as a rule."""
    rows = max(1, _FEW * len(one) // max(1, one.numel())) if one.dim() else 0
    return (rows > 0 and not torch.equal(one[:rows], other[:rows])) or not torch.equal(one, other)


def weight_steps(
    module: Any, kind: Kind, entries: list[tuple[Any, float]]
) -> Iterator[tuple[Block, Callable[[Tensor], None]]]:
    """A weight with trained rows put in and updates added, rounded once.

    Args:
        module: the module.
        kind: its kind.
        entries: (adapter's module there, weight).

    Yields:
        (block of the weight, what changes it in place).
    """
    for block in blocks_of(kind, module, kind.weight(module).shape, [entry for entry, _ in entries]):
        yield block, functools.partial(put_in, kind, module, entries, block)


def _reach(entries: list[tuple[Any, float]]) -> float:
    """A bound on the values of plain updates together: the norms of their factors; infinity for others."""
    if not all(getattr(entry, "plain", False) and entry.tokens is None for entry, _ in entries):
        return math.inf
    pairs = [(weight * pair.part.scaling, pair.factors) for entry, weight in entries for pair in entry.parts()]
    return float(sum(abs(scale) * float(lora_A.norm()) * float(lora_B.norm()) for scale, (lora_A, lora_B) in pairs))


def _replacement(value: Tensor) -> list[tuple[None, Callable[[Tensor], object]]]:
    """All of a tensor replaced."""
    return [(None, lambda stored: stored.copy_(value.detach()))]


def bias_value(module: Any, kind: Kind | None, entries: list[tuple[Any, float]]) -> Tensor | None:
    """A bias with what adapters make of it.

    Args:
        module: the module.
        kind: its kind, or None where it has none.
        entries: (adapter's module there, weight).

    Returns:
        Shape (O), or None where the bias is left alone.
    """
    name = "bias" if kind is None else kind.bias
    own = module._parameters.get(name)
    trained = next((entry.bias for entry, _ in entries if getattr(entry, "bias", None) is not None), None)
    value = None if trained is None else trained.detach()
    for entry, weight in entries:
        for pair in getattr(entry, "parts", tuple)():
            if pair.part.update.shift is None:
                continue
            shift = pair.part.update.shift(pair.tensors).detach() * (pair.part.scaling * weight)
            value = (torch.zeros_like(shift) if own is None else own.detach()) if value is None else value
            value = value.to(compute_dtype(value.dtype))
            if pair.rows is None:
                value = value + shift.to(value)
            else:
                value = value.index_add(0, pair.rows.to(value.device), shift.to(value))
    return value


def _updates(module: nn.Module, mix: Mix) -> frozenset[int]:
    """Identities of the low-rank updates that a mix makes a module wear, whether first-hand or as a twin."""
    entries = [container_of(module)._modules.get(name) for name, _ in mix]
    homes = [e.primary[0] if isinstance(e, Twin) else e for e in entries if e is not None]
    return frozenset(id(home) for home in homes if _updates_weight(home))


def changes_of(record: Record, mix: Mix) -> list[Change]:
    """Every base tensor that a mix changes, and the modules that may read it.

    Args:
        record: of the attached model.
        mix: what is to be merged.

    Returns:
        The changes; nothing is computed yet.
    """
    changes: list[Change] = []
    updates = {id(module): _updates(module, mix) for module in record.modules.values()}
    for path, module in record.modules.items():
        container, kind = container_of(module), kind_of(module)
        worn = [(container._modules[name], weight) for name, weight in mix if name in container._modules]
        own = [(e, w) for e, w in worn if _updates_weight(e)]
        if own and kind is not None:
            steps = functools.partial(weight_steps, module, kind, own)
            alike = frozenset(key for key, ids in updates.items() if ids == updates[id(module)])
            where = f"{path}.{kind.parameter}"
            shape = _shape(kind, module)
            changes.append(
                Change(
                    where=where,
                    parameter=kind.weight(module),
                    steps=steps,
                    readers=alike,
                    shape=shape,
                    reach=functools.partial(_reach, own),
                )
            )
        bias = bias_value(module, kind, worn)
        if bias is not None:
            name = "bias" if kind is None else kind.bias
            parameter, reader = module._parameters.get(name), frozenset({id(module)})
            put = functools.partial(_replacement, bias)
            changes.append(Change(where=f"{path}.{name}", parameter=parameter, steps=put, readers=reader))
        for entry, _ in worn:
            if isinstance(entry, FullCopy):
                changes += _replaced(path, module, entry.module)
    return changes


def _updates_weight(entry: Any) -> bool:
    """Whether an adapter changes the weight of the module it stands at, and is not the twin of one that does."""
    if isinstance(entry, Twin | FullCopy):
        return False
    return hasattr(entry, "parts") or getattr(entry, "tokens", None) is not None


def _shape(kind: Kind, module: Any) -> tuple[int, ...]:
    """Shape in which a module of this kind stores its weight."""
    n_in, n_out = kind.sizes(module)
    shape = (n_out, *kind.shapes(module, kind.groups(module), n_in, n_out)[0][1:])
    return shape[::-1] if kind.transposed else shape


def _replaced(path: str, module: nn.Module, copy: nn.Module) -> list[Change]:
    """The changes of a module trained in full."""
    inside = frozenset(id(m) for m in module.modules())
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    source = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
    return [
        Change(
            where=f"{path}.{key}", parameter=own.get(key), steps=functools.partial(_replacement, value), readers=inside
        )
        for key, value in source.items()
    ]
