"""merge and unmerge: fold the active adapters into the base's weights, and get the exact bits back.

A merged model is the plain model: classes are restored, adapters leave the module tree, ``state_dict`` has no adapter
key. The sum is computed in at least fp32 and rounded once. Nothing is written until every new value has been
computed and checked for one weight, and a failure half-way restores the weights already written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.attach import refuse_save_pretrained
from deltaw.errors import StateError
from deltaw.functional import compute_dtype, merge_weight
from deltaw.keep import Kept, check_unchanged, keep, restore
from deltaw.layer import container_of, put_back, take_off
from deltaw.layers import Kind, kind_of
from deltaw.record import RECORD, Mix, Record, record_of
from deltaw.reports import size
from deltaw.ties import storage_key
from deltaw.tree import base_modules, require_model
from deltaw.variants import VARIANTS
from deltaw.worn import FullCopy, Twin

__all__ = ["MergeReport", "UnmergeReport", "dense_delta", "merge", "unmerge"]


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


def dense_delta(kind: Kind, entry: Any, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The update of one adapter at one site, in the layout of the stored weight.

    Args:
        kind: the site's kind.
        entry: the adapter's module there.
        shape: shape of the stored weight.
        dtype: of the result.

    Returns:
        Tensor of that shape.
    """
    out = torch.zeros(shape[::-1] if kind.transposed else shape, dtype=dtype, device=next(entry.parts())[1].device)
    for part, lora_A, lora_B, rows in entry.parts():
        delta = VARIANTS["lora"].delta(lora_A, lora_B, part.scaling, dtype)
        out = out + delta if rows is None else out.index_add(0, rows, delta)
    return out.t() if kind.transposed else out


def _refuse(what: str, where: str, got: str, expected: str, hint: str) -> StateError:
    return StateError(what, where=where, got=got, expected=expected, hint=hint)


@dataclass(frozen=True)
class _Change:
    """One base tensor that a merge changes; the new value is computed when it is asked for."""

    where: str
    parameter: Tensor
    value: Callable[[], Tensor]


def _low_rank_value(module: Any, kind: Kind, entries: list[tuple[Any, float]]) -> Tensor:
    parameter: Tensor = module.weight
    wide = compute_dtype(parameter.dtype)
    total = torch.zeros(parameter.shape, dtype=wide, device=parameter.device)
    for entry, weight in entries:
        total += dense_delta(kind, entry, parameter.shape, wide).to(parameter.device) * weight
    if kind.settled is None:
        return merge_weight(parameter.detach(), total)
    return kind.settled(module, merge_weight(kind.settled(module, parameter.detach()), total))


def _changes(record: Record, mix: Mix) -> list[_Change]:
    """Every base tensor that the mix changes."""
    changes: list[_Change] = []
    for path, module in record.modules.items():
        container, kind = container_of(module), kind_of(module)
        worn = [(container._modules[name], weight) for name, weight in mix if name in container._modules]
        low_rank = [(e, w) for e, w in worn if hasattr(e, "parts") and not isinstance(e, Twin)]
        if low_rank and kind is not None:
            value = functools.partial(_low_rank_value, module, kind, low_rank)
            changes.append(_Change(f"{path}.weight", module.weight, value))  # type: ignore[arg-type]
        for entry, _ in worn:
            bias: Any = getattr(entry, "bias", None)
            if bias is not None:
                changes.append(_Change(f"{path}.bias", module.bias, bias.detach))  # type: ignore[arg-type]
            if isinstance(entry, FullCopy):
                own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                source = {**dict(entry.module.named_parameters()), **dict(entry.module.named_buffers())}
                changes += [_Change(f"{path}.{key}", own[key], value.detach) for key, value in source.items()]
    return changes


def _check_finite(record: Record, mix: Mix) -> None:
    for path, module in record.modules.items():
        for name, _ in mix:
            entry = container_of(module)._modules.get(name)
            if entry is not None and not all(bool(torch.isfinite(t).all()) for t in entry.parameters()):
                raise _refuse(
                    "an adapter holds values that are not finite", f"adapter {name!r}, module '{path}'",
                    "NaN or infinity", "finite numbers", "the training diverged; go back to an earlier checkpoint.",
                )  # fmt: skip


def _check_weights(model: nn.Module, record: Record, mix: Mix, changes: list[_Change]) -> None:
    """Refuse weights that cannot be written, and writes that would reach a module that is not adapted alike."""
    owners: dict[tuple[int, ...], str] = {}
    for change in changes:
        weight = change.parameter
        if (
            type(weight) not in (nn.Parameter, Tensor)
            or weight.is_meta
            or (change.where.endswith(".weight") and not weight.is_floating_point())
        ):
            raise _refuse(
                "this weight cannot be merged into", f"parameter '{change.where}'",
                f"{type(weight).__name__} of {weight.dtype} on {weight.device}", "a plain floating-point weight",
                "merge into a dequantized, loaded copy of the base.",
            )  # fmt: skip
        if weight.numel() and owners.setdefault(storage_key(weight), change.where) != change.where:
            raise _refuse(
                "two updates cannot be merged into one shared weight",
                f"parameters '{owners[storage_key(weight)]}' and '{change.where}'",
                "separate adapters on tied modules", 'one update, as with ties="share"',
                "untie the weights first, or run unmerged.",
            )  # fmt: skip
    names = {name for name, _ in mix}
    spoken = {
        id(m)
        for module in record.modules.values()
        if names & set(container_of(module)._modules)
        for m in module.modules()
    }
    for path, module in base_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(module) not in spoken and storage_key(parameter) in owners:
                raise _refuse(
                    "merging would also change a module that has no adapter", f"parameter '{path}.{key}'",
                    f"it is tied to '{owners[storage_key(parameter)]}'", "all users adapted alike",
                    'attach with ties="share", or untie the weights first.',
                )  # fmt: skip


def _write(kept: Kept, changes: list[_Change]) -> tuple[int, list[str]]:
    """Write every change, keeping the originals; returns bytes of full copies and the unchanged weights."""
    full, unchanged = 0, []
    for change in changes:
        parameter = change.parameter
        value = change.value().to(parameter)
        if bool(torch.isfinite(parameter).all()) and not bool(torch.isfinite(value).all()):
            raise _refuse(
                "the merged weight overflows its dtype", f"parameter '{change.where}'",
                f"infinity in {parameter.dtype}", "finite numbers",
                "merge in bfloat16 or float32: model.to(torch.float32) before attach.",
            )  # fmt: skip
        original = keep(parameter, value, change.where)
        if torch.equal(parameter, value):
            unchanged.append(change.where)
        parameter.data.copy_(value)
        kept.originals.append(original)
        full += parameter.numel() * parameter.element_size()
    return full, unchanged


@torch.no_grad()
def merge(model: nn.Module, choice: str | Mapping[str, float] | None = None) -> MergeReport:
    """Fold adapters into the base: the model becomes a plain one, with no added latency.

    The sum is computed in fp32 (float64 for float64 weights) and rounded once. The base's bits are kept, on the CPU
    and compactly, so that ``unmerge`` restores them exactly. Trained biases and full copies replace the base's.

    Args:
        model: an attached model.
        choice: a name or a weighted mix; None means what is active.

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
    if not mix:
        raise _refuse(
            "nothing to merge", type(root).__name__, "no active adapter", "an active adapter",
            "name one: merge(model, 'default').",
        )  # fmt: skip
    _check_finite(record, mix)
    changes = _changes(record, mix)
    _check_weights(root, record, mix, changes)
    kept = Kept(mix)
    try:
        full, unchanged = _write(kept, changes)
    except BaseException:
        for original in reversed(kept.originals):
            restore(original)
        raise
    for path, module in record.modules.items():
        kept.containers.append((path, module, take_off(path, module)))
    if root.__dict__.get("save_pretrained") is refuse_save_pretrained:
        del root.__dict__["save_pretrained"]
    record.merged = kept
    sites = len(kept.originals)
    return MergeReport(mix=mix, sites=sites, kept_bytes=kept.num_bytes, full_bytes=full, unchanged=tuple(unchanged))


@torch.no_grad()
def unmerge(model: nn.Module) -> UnmergeReport:
    """Give the base its exact bits back and put the adapters on again.

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
    for original in kept.originals:
        check_unchanged(original)
    for original in kept.originals:
        restore(original)
    for _, module, container in kept.containers:
        put_back(module, container)
    if callable(getattr(root, "save_pretrained", None)):
        root.__dict__["save_pretrained"] = refuse_save_pretrained
    record.merged = None
    assert root.__dict__[RECORD] is record
    return UnmergeReport(mix=kept.mix, sites=len(kept.originals))
