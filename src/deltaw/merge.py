"""merge and unmerge: fold the active adapters into the base's weights, and get the exact bits back.

A merged model is the plain model: classes are restored, adapters leave the module tree, ``state_dict`` has no adapter
key. The sum is computed in at least fp32 and rounded once. Nothing is written until every new value has been
computed and checked for one weight, and a failure half-way restores the weights already written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaw.changes import Change, changes_of
from deltaw.errors import StateError
from deltaw.functional import all_finite
from deltaw.keep import Kept, Original, check_unchanged, restore
from deltaw.layer import container_of, put_back, take_off
from deltaw.layers import weight_of
from deltaw.pages import Room
from deltaw.pretrained import stand_down, stand_in
from deltaw.record import RECORD, Mix, Record, record_of
from deltaw.refuse import is_sharded
from deltaw.reports import size
from deltaw.ties import storage_key
from deltaw.tree import base_modules, require_model
from deltaw.worn import Adapters, Twin

__all__ = ["MergeReport", "UnmergeReport", "check_changes", "check_writable", "merge", "unmerge"]

_SUMMABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What ``merge`` did.

    Args:
        mix: what was merged.
        sites: number of weights changed.
        kept_bytes: memory held to restore the base.
        full_bytes: what a full copy of the changed weights would take.
        unchanged: weights on which the update was lost to rounding.
    """

    mix: Mix
    sites: int
    kept_bytes: int
    full_bytes: int
    unchanged: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One or two lines."""
        what = ", ".join(f"{name} x {weight:g}" for name, weight in self.mix)
        kept = f"{size(self.kept_bytes)} kept to restore them (a copy: {size(self.full_bytes)})"
        kept = kept if self.kept_bytes else "nothing kept: they cannot be restored"
        lost = f"\nnote: no bit changed in {', '.join(self.unchanged)}" if self.unchanged else ""
        return f"merged {what} into {self.sites} weights; {kept}{lost}"


@dataclass(frozen=True, kw_only=True)
class UnmergeReport:
    """What ``unmerge`` did.

    Args:
        mix: what had been merged.
        sites: number of weights whose bits were restored.
    """

    mix: Mix
    sites: int

    def __str__(self) -> str:
        """One line."""
        return f"restored the exact bits of {self.sites} weights; {', '.join(n for n, _ in self.mix)} active again"


def _refuse(what: str, where: str, got: str, expected: str, hint: str) -> StateError:
    return StateError(what, where=where, got=got, expected=expected, hint=hint)


def _check_finite(record: Record, mix: Mix) -> None:
    for path, module in record.modules.items():
        for name, _ in mix:
            entry = container_of(module)._modules.get(name)
            if entry is not None and not all(map(all_finite, entry.parameters())):
                raise _refuse(
                    "an adapter holds values that are not finite", f"adapter {name!r}, module '{path}'",
                    "NaN or infinity", "finite numbers", "the training diverged; go back to an earlier checkpoint.",
                )  # fmt: skip


def check_writable(change: Change) -> None:
    """Refuse what is no plain stored tensor; a sum needs a floating weight of the layer's own shape besides.

    Args:
        change: what is to be written.

    Raises:
        StateError: if it cannot be written.
    """
    weight = change.parameter
    plain = type(weight) in (nn.Parameter, Tensor) and not weight.is_meta
    if plain and (change.shape is None or (weight.dtype in _SUMMABLE and tuple(weight.shape) == change.shape)):
        return
    got = (
        f"{type(weight).__name__} of {weight.dtype} on {weight.device}"
        if isinstance(weight, Tensor)
        else "no stored tensor: it is absent, packed, or computed by a parametrization"
    )
    expected = "a plain floating-point weight"
    hint = "merge into a dequantized, loaded copy of the base; remove parametrizations first."
    if weight is None and change.where.endswith("bias"):
        got, expected = "no bias: the one that was trained has nowhere to go", "a module with a bias of its own"
        hint = "keep the adapter beside the base; trained without lora_bias it can be merged."
    raise _refuse("this weight cannot be merged into", f"parameter '{change.where}'", got, expected, hint)


def _check_weights(model: nn.Module, changes: list[Change]) -> None:
    """Refuse weights that cannot be written, and writes that would reach a module that is not adapted alike."""
    owners: dict[tuple[int, ...], Change] = {}
    for change in changes:
        check_writable(change)
        first = owners.setdefault(storage_key(change.parameter), change)
        if change.parameter.numel() and first is not change:
            raise _refuse(
                "two updates cannot be merged into one shared weight",
                f"parameters '{first.where}' and '{change.where}'",
                "separate adapters on tied modules", 'one update, as with ties="share"',
                "untie the weights first, or run unmerged.",
            )  # fmt: skip
    for path, module in base_modules(model):
        for key, parameter in module._parameters.items():
            owner = None if parameter is None else owners.get(storage_key(parameter))
            if owner is not None and id(module) not in owner.readers:
                raise _refuse(
                    "merging would also change a module that is not adapted alike", f"parameter '{path}.{key}'",
                    f"it is tied to '{owner.where}'", "all users adapted alike",
                    'attach with ties="share", or untie the weights first.',
                )  # fmt: skip


def _check_ties(worn: list[tuple[str, nn.Module, Adapters]], mix: Mix) -> None:
    """Refuse twins that no longer share the weight of their update's first user."""
    entries = [
        (path, module, each._modules[name]) for path, module, each in worn for name, _ in mix if name in each._modules
    ]
    homes = {id(entry): (path, module) for path, module, entry in entries if not isinstance(entry, Twin)}
    for path, module, entry in entries:
        if not isinstance(entry, Twin):
            continue
        home, primary = homes[id(entry.primary[0])]
        weights = [weight_of(m) for m in (module, primary)]
        keys = [None if weight is None else storage_key(weight) for weight in weights]
        if keys[0] is None or keys[0] != keys[1]:
            raise _refuse(
                "tied modules no longer share their weight", f"modules '{home}' and '{path}'", "two weights",
                "one weight, as at attach", f"tie them again, {path}.weight = {home}.weight, or detach first.",
            )  # fmt: skip


def check_changes(root: nn.Module, record: Record, mix: Mix, changes: list[Change]) -> None:
    """Refuse a merge that would be wrong, before anything is written.

    Args:
        root: the model.
        record: its record.
        mix: what is to be merged.
        changes: what ``changes_of`` said.

    Raises:
        StateError: as ``merge``.
    """
    _check_weights(root, changes)
    _check_ties([(path, module, container_of(module)) for path, module in record.modules.items()], mix)
    _check_finite(record, mix)


def _write(kept: Kept, changes: list[Change], room: Room) -> tuple[int, list[str]]:
    """Write every change, keeping the originals if they are wanted; returns their bytes and the unchanged weights."""
    full, unchanged = 0, []
    for change in changes if kept.dropped else ():
        # nothing could be taken back, so what may fail is tried before anything is written
        if not change.safe:
            change.computed()
    for change in changes:
        parameter = change.parameter.data
        if kept.dropped:
            changed = change.write(parameter, room=room)
        else:
            original = Original(change.parameter, change.where, parameter.dtype)
            kept.originals.append(original)
            changed = change.write(parameter, original.keep, room)
        unchanged += [] if changed else [change.where]
        full += parameter.numel() * parameter.element_size()
    return full, unchanged


@torch.no_grad()
def merge(model: nn.Module, choice: str | Mapping[str, float] | None = None, *, keep: bool = True) -> MergeReport:
    """Fold adapters into the base: the model becomes a plain one, with no added latency.

    The sum is computed in fp32 (float64 for float64 weights) and rounded once. The base's bits are kept, on the CPU
    and compactly, so that ``unmerge`` restores them exactly. Trained biases and full copies replace the base's.

    Args:
        model: an attached model.
        choice: a name or a weighted mix; None means what is active.
        keep: whether to keep the base's bits; without them there is no ``unmerge``, and a merge takes neither memory
            nor time for it.

    Returns:
        A report with the memory held.

    Raises:
        StateError: if nothing is active, the model is merged already, an adapter is not finite, a weight is quantized,
            tied to a module that is not adapted alike, or would overflow. The model is then as it was.

    Source:
        arXiv:2106.09685, section 4.1.
    """
    root = require_model(model)
    record = record_of(root, "merge")
    record.require_unmerged("merge")
    mix = record.current() if choice is None else record.resolve(choice)
    record.require_in_place(root, "merge")
    if is_sharded(root):
        raise _refuse(
            "a sharded model cannot be merged in place", type(root).__name__, "fully_shard was applied",
            "whole weights", "save the adapter and merge it into an unsharded copy of the base.",
        )  # fmt: skip
    if not mix:
        raise _refuse(
            "nothing to merge", type(root).__name__, "no active adapter", "an active adapter",
            f"name one: merge(model, {next(iter(record.adapters))!r}).",
        )  # fmt: skip
    changes = changes_of(record, mix)
    check_changes(root, record, mix, changes)
    kept = Kept(mix, dropped=not keep)
    try:
        full, unchanged = _write(kept, changes, record.room)
    except BaseException:
        for original in reversed(kept.originals):
            restore(original)
        raise
    for path, module in record.modules.items():
        kept.containers.append((path, module, take_off(path, module)))
    stand_down(root)
    record.merged = kept
    sites = len(changes)
    return MergeReport(mix=mix, sites=sites, kept_bytes=kept.num_bytes, full_bytes=full, unchanged=tuple(unchanged))


def _check_present(root: nn.Module, kept: Kept) -> list[list[Tensor] | None]:
    """Make sure that what was merged into is still what the model runs, whichever objects hold it by now."""
    merged: list[list[Tensor] | None] = []
    present = dict(base_modules(root))
    for path, module, _ in kept.containers:
        if present.get(path) is not module:
            raise _refuse(
                "a merged module was replaced, so the base cannot be restored", f"module '{path}'",
                type(present.get(path)).__name__, "the module that was merged into",
                "put the old module back, then unmerge; nothing was written.",
            )  # fmt: skip
    for original in kept.originals:
        path, _, key = original.where.rpartition(".")
        holder = root.get_submodule(path)
        now = holder._parameters.get(key, holder._buffers.get(key))
        # load_state_dict(assign=True) puts other objects in place; with the merged content they are as good
        original.parameter = original.parameter if now is None else now
        bits = check_unchanged(original)
        # on the CPU these are the weight's own memory; from elsewhere they are a copy, and all together too many
        merged.append(bits if original.parameter.device.type == "cpu" else None)
    _check_ties(kept.containers, kept.mix)
    return merged


@torch.no_grad()
def unmerge(model: nn.Module) -> UnmergeReport:
    """Give the base its exact bits back and put the adapters on again.

    The memory of the kept bits is the system's from then on: it takes it when it needs it, and a merge before that uses
    it again without asking for more.

    Args:
        model: a merged model.

    Returns:
        A report.

    Raises:
        StateError: if the model is not merged, or a merged weight was changed since; nothing is written then.
    """
    root = require_model(model)
    record = record_of(root, "unmerge")
    kept = record.merged
    if kept is None:
        raise _refuse(
            "cannot unmerge: nothing is merged", type(root).__name__, "adapters beside the base", "a merged model",
            "call merge first.",
        )  # fmt: skip
    if kept.dropped:
        raise _refuse(
            "cannot unmerge: the base's bits were not kept", type(root).__name__, "merged with keep=False",
            "a merge that keeps them", "load the base again and merge with keep=True.",
        )  # fmt: skip
    for original, merged in zip(kept.originals, _check_present(root, kept), strict=True):
        restore(original, merged)
        original.give_back(record.room)
    for _, module, container in kept.containers:
        put_back(module, container)
    stand_in(root)
    record.merged = None
    assert root.__dict__[RECORD] is record
    return UnmergeReport(mix=kept.mix, sites=len(kept.originals))
