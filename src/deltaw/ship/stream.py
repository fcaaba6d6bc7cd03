"""Merging into the files of a base, shard by shard, without ever holding the model.

The adapter is fitted to a model whose parameters are the mapped files themselves (see ``ondisk``), so that names, ties,
refusals and every new value are those of ``deltaw.merge``. Each file is then copied to its new place with the touched
tensors replaced. The memory it takes is the adapter's, plus the largest touched tensor as it is read and as it is
written.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.changes import Change, changes_of
from deltaw.checkpoint import load
from deltaw.merge import MergeReport, check_changes
from deltaw.record import Mix, record_of
from deltaw.ship.mapped import rewrite
from deltaw.ship.ondisk import OnDisk, Unstreamable, found, on_disk
from deltaw.ship.opening import ModelChoice, labels_of, task_of
from deltaw.train.model import base_config, load_tokenizer
from deltaw.train.vocabulary import tokens_of

__all__ = ["Streaming", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """A merge that is ready to be written; nothing is computed yet.

    Args:
        base: the base over its files, the adapter on it.
        mix: what is merged.
        changes: what becomes of its parameters.
        task: "causal", "classification" or "regression".
        dtype: of the merged weights.
        unchanged: filled by ``write``: weights on which the update was lost to rounding.
    """

    base: OnDisk
    mix: Mix
    changes: Sequence[Change]
    task: str
    dtype: torch.dtype
    unchanged: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """Size of the base's files together."""
        return sum(file.bytes for file in self.base.files.values())

    @property
    def report(self) -> MergeReport:
        """What ``deltaw.merge`` would have said; nothing is kept, since the base's files stay as they are."""
        changed = {change.where: change.parameter.numel() * change.parameter.element_size() for change in self.changes}
        return MergeReport(
            mix=self.mix, sites=len(self.changes), kept_bytes=0, full_bytes=sum(changed.values()),
            unchanged=tuple(change.where for change in self.changes if change.where in self.unchanged),
        )  # fmt: skip

    @torch.no_grad()
    def write(self, place: Path, source: str) -> None:
        """Write the files, their index and the configuration.

        Args:
            place: an empty directory.
            source: where the base came from.

        Raises:
            OSError: if the disk refuses.
            StateError: if a merged weight overflows its dtype.
        """
        values: dict[str, dict[str, Callable[[], Tensor]]] = {name: {} for name in self.base.files}
        names = {id(file): name for name, file in self.base.files.items()}
        for change in self.changes:
            for home in self.base.homes[id(change.parameter)]:
                values[names[id(home.file)]][home.key] = functools.partial(self._value, change)
        for name, file in self.base.files.items():
            rewrite(file, place / name, values[name])
        if self.base.index is not None:
            shutil.copyfile(self.base.index, place / self.base.index.name)
        self._write_config(place, source)

    def _value(self, change: Change) -> Tensor:
        value, changed = change.computed()
        if not changed:
            self.unchanged.add(change.where)
        return value

    def _write_config(self, place: Path, source: str) -> None:
        """The base's own configuration, unless it speaks of another class or a classifier's labels are set anew."""
        model = self.base.model
        file = found(source, "config.json")
        if self.task == "causal" and file is not None and model.config.architectures == [type(model).__name__]:
            shutil.copyfile(file, place / "config.json")
            return
        model.config.architectures, model.config.dtype = [type(model).__name__], self.dtype
        if self.task != "causal":
            model.config.pad_token_id = load_tokenizer(source)[0].pad_token_id
        model.config.save_pretrained(place)


def prepare(choice: ModelChoice, source: str, dtype: torch.dtype) -> Streaming:
    """Fit an adapter to a base that stays on disk, and see whether the sum can be written into its files.

    Args:
        choice: base and adapter.
        source: where the base comes from.
        dtype: of the merged weights.

    Returns:
        The merge, ready to be written.

    Raises:
        Unstreamable: if this base or adapter needs a model in memory.
        CheckpointError: if the adapter cannot be read or does not fit.
        StateError: if the adapter cannot be merged.
    """
    adapter = Adapter.open(Path(str(choice.adapter)).expanduser())
    if tokens_of(adapter.metadata):
        raise Unstreamable("the adapter brings new tokens, for which the tables grow")
    declared = base_config(source)
    task = task_of(adapter, declared)
    labels = () if task == "causal" else labels_of(adapter, declared)
    task = "regression" if task != "causal" and len(labels) == 1 else task
    base = on_disk(source, task=task, labels=labels, dtype=dtype)
    if choice.dtype != "auto":
        _require_dtype(base, dtype)
    load(base.model, adapter, allow_other_base=choice.allow_other_base)
    base.release()
    record = record_of(base.model, "merge")
    mix = record.current()
    changes = changes_of(record, mix)
    _require_stored(base.homes, changes, dtype)
    check_changes(base.model, record, mix, changes)
    return Streaming(base=base, mix=mix, changes=changes, task=task, dtype=dtype)


def _require_dtype(base: OnDisk, dtype: torch.dtype) -> None:
    """Writing in another dtype changes every tensor, and with them the files' layout."""
    for file in base.files.values():
        for key, stored in file.tensors.items():
            if stored.dtype is not None and stored.dtype.is_floating_point and stored.dtype != dtype:
                raise Unstreamable(f"'{key}' is stored in {_name(stored.dtype)}, to be written in {_name(dtype)}")


def _require_stored(homes: Mapping[int, object], changes: Sequence[Change], dtype: torch.dtype) -> None:
    for change in changes:
        tensor = change.parameter
        if isinstance(tensor, Tensor) and id(tensor) not in homes:
            raise Unstreamable(f"the base's files do not hold '{change.where}'")
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != dtype:
            raise Unstreamable(f"'{change.where}' is stored in {_name(tensor.dtype)}, not in {_name(dtype)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
