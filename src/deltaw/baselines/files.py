"""save and load: a directory with a baseline's own tensors and enough settings to put them on again.

::

    baseline_config.json          method, settings, the base's name and fingerprint, metadata
    baseline_model.safetensors    tensors by parameter name: copies under the base's names, pieces under their own
    lora/                         beside a prefix, the LoRA adapter in PEFT's layout
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deltaw.adapter import Adapter
from deltaw.baselines.method import Method
from deltaw.baselines.registry import BASELINES
from deltaw.baselines.verbs import Fitting, fit, put_on
from deltaw.baselines.verbs import trainable as trained
from deltaw.baselines.worn import worn_of
from deltaw.checkpoint import SaveReport
from deltaw.checkpoint import save as save_lora
from deltaw.disk import Content, safetensors_file, write_files
from deltaw.errors import CheckpointError, ConfigError, nearest
from deltaw.fingerprint import differences
from deltaw.functional import all_finite
from deltaw.peft_config import from_peft
from deltaw.read import BASELINE_CONFIG
from deltaw.reports import plural
from deltaw.tree import require_model

__all__ = ["BaselineLoadReport", "Stored", "is_baseline", "load", "save"]

WEIGHTS = "baseline_model.safetensors"
LORA = "lora"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BaselineLoadReport:
    """What ``load`` did.

    Args:
        method: the baseline's name.
        path: where it came from.
        tensors: number of tensors that landed, a LoRA adapter's among them.
        notes: what a reader should know.
    """

    method: str
    path: Path
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line and the notes."""
        head = f"loaded {self.method} from {self.path}: {plural(self.tensors, 'tensor')}"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def is_baseline(directory: str | Path) -> bool:
    """Say whether a directory holds a baseline.

    Args:
        directory: any path.

    Returns:
        True where ``save`` of this package wrote it.
    """
    return (Path(directory) / BASELINE_CONFIG).is_file()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A baseline on disk, read and not yet put on.

    Args:
        path: the directory.
        method: with the settings it was saved with.
        tensors: parameter name -> tensor on the CPU.
        raw: the whole configuration file.
        adapter: the LoRA adapter beside a prefix, or None.
    """

    path: Path
    method: Method
    tensors: dict[str, Tensor] = field(repr=False)
    raw: dict[str, Any] = field(repr=False)
    adapter: Adapter | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """Strings that were saved beside the settings."""
        return dict(self.raw.get("metadata", {}))

    @property
    def carried(self) -> dict[str, Tensor]:
        """Parameter name -> tensor of whatever modules the files hold in full."""
        beside = {} if self.adapter is None else {**self.adapter.contents.base, **self.adapter.contents.rest}
        return {**self.tensors, **beside}

    @classmethod
    def open(cls, directory: str | Path) -> Stored:
        """Read a directory that ``save`` wrote.

        Args:
            directory: the directory.

        Returns:
            The baseline.

        Raises:
            CheckpointError: if files are absent, damaged, or of a method or version that is not known.
        """
        path = Path(directory)
        raw = _read_config(path)
        adapter = Adapter.open(path / LORA) if (path / LORA).is_dir() else None
        return cls(path=path, method=_method(path, raw, adapter), tensors=_read(path), raw=raw, adapter=adapter)


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / BASELINE_CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, (error.strerror if isinstance(error, OSError) else None) or str(error)) from None
    if not isinstance(raw, dict) or raw.get("version") != VERSION or not isinstance(raw.get("options"), dict):
        raise _damaged(file, f"version {raw.get('version') if isinstance(raw, dict) else '?'}")
    if raw.get("method") not in BASELINES:
        raise CheckpointError(
            "this baseline is not known",
            where=str(file),
            got=f"method {raw.get('method')!r}",
            expected=f"one of {', '.join(BASELINES)}; closest: {nearest(str(raw.get('method')), BASELINES)}",
            hint="update deltaw, or check the file.",
        )
    return raw


def _method(path: Path, raw: Mapping[str, Any], adapter: Adapter | None) -> Method:
    """The method with the settings of its file."""
    kind, options = BASELINES[raw["method"]], dict(raw["options"])
    if "lora" in kind.__dataclass_fields__:
        if adapter is None:
            raise _damaged(path / LORA, "no LoRA adapter beside the prefix")
        options["lora"] = from_peft(dict(adapter.raw), str(path / LORA))
    try:
        return kind(**options)
    except (TypeError, ConfigError) as error:
        raise _damaged(path / BASELINE_CONFIG, str(error).splitlines()[0]) from None


def _read(directory: Path) -> dict[str, Tensor]:
    file = directory / WEIGHTS
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None


def _damaged(file: Path, got: str) -> CheckpointError:
    return CheckpointError(
        "the baseline cannot be read",
        where=str(file),
        got=got,
        expected=f"a directory that deltaw.baselines.save wrote: {BASELINE_CONFIG} and {WEIGHTS}",
        hint="check the path; a damaged file must be copied again.",
    )


def save(model: nn.Module, directory: str | Path) -> SaveReport:
    """Write a baseline: what it trains and nothing else, atomically and with reproducible bytes.

    Args:
        model: a model with a baseline.
        directory: made if absent; other files in it stay.

    Returns:
        A report.

    Raises:
        StateError: if no baseline is attached, or it is merged.
        CheckpointError: if a value is not finite or the disk refuses; the old files are then untouched.
    """
    worn, root, place = worn_of(model, "save"), require_model(model), Path(directory)
    worn.require_unmerged("save")
    tensors = {name: parameter.detach() for name, parameter in worn.tensors(root).items()}
    broken = [name for name, tensor in tensors.items() if not all_finite(tensor)]
    if broken:
        raise CheckpointError(
            "the baseline holds values that are not finite",
            where=f"{worn.method.name}, {plural(len(broken), 'tensor')}, first '{broken[0]}'",
            got="NaN or infinity",
            expected="finite numbers",
            hint="the training diverged; lower the learning rate and go back to an earlier checkpoint.",
        )
    config = {
        "version": VERSION,
        "method": worn.method.name,
        "options": worn.method.options(),
        "base_model_name_or_path": getattr(getattr(root, "config", None), "_name_or_path", None) or None,
        "fingerprint": worn.fingerprint,
        "metadata": worn.metadata,
    }
    beside = None if worn.method.low_rank is None else save_lora(root, place / LORA)
    files: dict[str, Content] = {
        WEIGHTS: safetensors_file(tensors, {}),
        BASELINE_CONFIG: (json.dumps(config, indent=1, sort_keys=True) + "\n").encode(),
    }
    size = write_files(place, files)
    return SaveReport(
        path=place,
        bytes=size + (0 if beside is None else beside.bytes),
        tensors=len(tensors) + (0 if beside is None else beside.tensors),
        notes=() if beside is None else beside.notes,
    )


def load(
    model: nn.Module, source: str | Path | Stored, *, trainable: bool = False, allow_other_base: bool = False
) -> BaselineLoadReport:
    """Put a saved baseline on a model.

    Args:
        model: the plain base it was trained on.
        source: the directory, or what ``Stored.open`` read.
        trainable: whether it is to be trained further.
        allow_other_base: accept a base whose weights differ from the one recorded in the file.

    Returns:
        A report.

    Raises:
        CheckpointError: if files are damaged, or anything does not fit; the message lists every problem and the model
            is as it was.
        StateError: if the model wears something already.
    """
    stored = source if isinstance(source, Stored) else Stored.open(source)
    root = require_model(model)
    fitting = fit(root, stored.method)
    _check(fitting, stored, allow_other_base)
    with torch.no_grad():
        for name, parameter in fitting.tensors().items():
            parameter.copy_(stored.tensors[name])
    worn = put_on(root, fitting, None if stored.adapter is None else stored.path / LORA, allow_other_base)
    worn.metadata = stored.metadata
    beside = _set_trainable(root, trainable)
    noted = () if stored.raw.get("fingerprint") or stored.adapter else ("the file says nothing of its base",)
    return BaselineLoadReport(
        method=stored.method.name, path=stored.path, tensors=beside, notes=noted,
    )  # fmt: skip


def _set_trainable(root: nn.Module, flag: bool) -> int:
    """Let what is trained be trained, or not; the number of its tensors."""
    found = trained(root)
    for _, parameter in found:
        parameter.requires_grad_(flag)
    return len(found)


def _check(fitting: Fitting, stored: Stored, allow_other_base: bool) -> None:
    """Refuse a file that does not fit, with every problem in one error."""
    wanted, found = fitting.tensors(), stored.tensors
    problems = [f"{name} is absent" for name in wanted if name not in found]
    problems += [f"{name} lands nowhere" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    saved = stored.raw.get("fingerprint") or {}
    others = [] if allow_other_base or not fitting.fingerprint else differences(saved, fitting.fingerprint)
    if problems or others:
        lines = [*problems, *others]
        hint = "give the base that it was trained on" + (
            "." if problems else ", or allow another with allow_other_base=True (--allow-other-base)."
        )
        raise CheckpointError(
            "the baseline does not fit this model",
            where=str(stored.path),
            got="; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else ""),
            expected=f"the {plural(len(wanted), 'tensor')} of {fitting.method.name} on this model, and its base",
            hint=hint,
        )
