"""save and load: PEFT's directory, strict both ways.

Every tensor of a file lands exactly once, every adapter parameter gets exactly one; shapes, ranks and the base's
fingerprint are checked, and all problems are told in one error before anything is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import METADATA, Adapter
from deltaw.attach import attach_plan
from deltaw.errors import CheckpointError
from deltaw.export import export
from deltaw.factors import Factors, Shared, SlicedLoRA, WholeLoRA
from deltaw.fit import Fit, fit
from deltaw.functional import all_finite
from deltaw.layer import container_of
from deltaw.peft_config import FIELDS, unknown_fields
from deltaw.read import CONFIG
from deltaw.record import Record, Worn, find_record, record_of
from deltaw.reports import size
from deltaw.tree import require_model
from deltaw.worn import FullCopy

__all__ = ["LoadReport", "SaveReport", "load", "save"]


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """What ``save`` wrote.

    Args:
        path: the directory.
        bytes: size of the files.
        tensors: number of tensors.
        notes: what a reader should know.
    """

    path: Path
    bytes: int
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line and the notes."""
        head = f"saved {self.tensors} tensors, {size(self.bytes)}, to {self.path}"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What ``load`` did.

    Args:
        name: name of the adapter.
        path: where it came from.
        applied: number of modules that got their tensors.
        total: number of modules the file speaks of.
        tensors: number of tensors that landed.
        notes: what a reader should know.
    """

    name: str
    path: Path
    applied: int
    total: int
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line and the notes."""
        where = f"applied to {self.applied}/{self.total} modules, {self.tensors} tensors"
        head = f"loaded {self.name!r} from {self.path}: {where}"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def save(model: nn.Module, directory: str | Path, name: str = "default") -> SaveReport:
    """Write one adapter as a PEFT directory, atomically and with reproducible bytes.

    Factors are written in fp32, full copies in their own dtype. Slices of a fused projection become one plain LoRA,
    which every reader understands, and are read back as slices by deltaw.

    Args:
        model: an attached model.
        directory: made if absent; other files in it stay.
        name: which adapter.

    Returns:
        A report.

    Raises:
        StateError: if the model wears no such adapter, or is merged.
        CheckpointError: if a value is not finite or the disk refuses; the old files are then untouched.
    """
    root = require_model(model)
    record = record_of(root, "save")
    record.require_unmerged("save")
    record.require_in_place(root, "save")
    record.resolve(name)
    adapter, notes = export(root, record, name)
    if not adapter.tensors:
        raise CheckpointError(
            "there is nothing to save",
            where=f"adapter {name!r}",
            got="rank 0 everywhere, no bias and no full copy",
            expected="at least one tensor",
            hint="attach with a rank of at least 1; a rank-0 adapter is the base itself.",
        )
    broken = [key for key, tensor in adapter.tensors.items() if not all_finite(tensor)]
    if broken:
        raise CheckpointError(
            "the adapter holds values that are not finite",
            where=f"adapter {name!r}, {len(broken)} tensors, first '{broken[0]}'",
            got="NaN or infinity",
            expected="finite numbers",
            hint="the training diverged; lower the learning rate and go back to an earlier checkpoint.",
        )
    written = adapter.save(directory)
    return SaveReport(path=Path(directory), bytes=written, tensors=len(adapter.tensors), notes=tuple(notes))


def load(
    model: nn.Module,
    source: str | Path | Adapter,
    name: str = "default",
    *,
    trainable: bool = False,
    allow_other_base: bool = False,
) -> LoadReport:
    """Put a saved adapter on a model; it becomes the active one.

    Reads what deltaw and PEFT write. Tensors are copied to their layer's device; factors are held in fp32.

    Args:
        model: the base it was trained on, plain or with other adapters.
        source: the adapter's directory, or an adapter as a value.
        name: name to give it.
        trainable: whether it is to be trained further.
        allow_other_base: accept a base whose weights differ from the one recorded in the file.

    Returns:
        A report.

    Raises:
        CheckpointError: if files are damaged, or anything does not fit; the message lists every problem and the model
            is as it was.
        StateError: if the name is taken or the model is merged.
    """
    root = require_model(model)
    record = find_record(root)
    if record is not None:
        record.require_unmerged("load")
    adapter = source if isinstance(source, Adapter) else Adapter.open(source)
    fitted = fit(root, adapter, allow_other_base=allow_other_base)
    foreign = {key: value for key, value in adapter.raw.items() if key not in FIELDS}
    kept = {key: adapter.raw.get(key) for key in ("base_model_name_or_path", "revision", "task_type")}
    worn = Worn(fitted.plan.config, {**foreign, **kept}, {k: v for k, v in adapter.metadata.items() if k != METADATA})
    attach_plan(root, fitted.plan, name, trainable=trainable, worn=worn)
    _fill(record_of(root, "load"), name, fitted)
    unknown = [
        f"field {key!r} of {CONFIG} is unknown and was left out of account" for key in unknown_fields(dict(adapter.raw))
    ]
    made = fitted.plan
    modules = len(made.sites) + len(made.copies) + len(made.tokens) + sum(len(site.twins) for site in made.sites)
    return LoadReport(
        name=name,
        path=Path(adapter.where),
        applied=modules,
        total=fitted.total,
        tensors=len(adapter.tensors),
        notes=tuple(fitted.notes + unknown),
    )


@torch.no_grad()
def _fill(record: Record, name: str, fitted: Fit) -> None:
    """Copy a file's tensors into the adapter's parameters and buffers, which stay the same objects."""
    for path, module in record.modules.items():
        entry: Any = container_of(module)._modules.get(name)
        for shared in (m for m in (entry.modules() if entry is not None else ()) if isinstance(m, Shared)):
            shared.replace(fitted.shared)
        if isinstance(entry, WholeLoRA):
            _copy(entry, fitted.tensors[path, ""])
        elif isinstance(entry, SlicedLoRA):
            for factors in entry.children():
                assert isinstance(factors, Factors)
                _copy(factors, fitted.tensors[path, factors.part.name])
        elif isinstance(entry, FullCopy):
            entry.module.load_state_dict(fitted.copies[path])
        tokens = getattr(entry, "tokens", None) if isinstance(module, nn.Embedding) else None
        if tokens is not None:
            tokens.rows.copy_(fitted.rows[path])
        bias = getattr(entry, "bias", None)
        if bias is not None:
            bias.copy_(fitted.biases[path])


def _copy(factors: Factors, tensors: Mapping[str, Tensor]) -> None:
    own = factors.tensors()
    for name, tensor in tensors.items():
        own[name].copy_(tensor.reshape(own[name].shape))
