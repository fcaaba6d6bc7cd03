"""A base that stays on disk: the module tree its configuration describes, its parameters views of its mapped files.

Such a model is whole to everything that asks it for names, shapes, ties and values, and holds no memory. Which tensor
of the files is which parameter is asked of transformers, whose renamings a checkpoint may need; where its loading does
more than rename, ``Unstreamable`` says so and the model has to be loaded the usual way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.ship.mapped import MappedFile
from deltaw.train.model import hushed, label_options

__all__ = ["OnDisk", "Place", "Unstreamable", "found", "model_files", "on_disk"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PIECE = 1 << 22


class Unstreamable(Exception):
    """Why a base cannot be merged from its files; caught where the usual way begins."""


@dataclass(frozen=True)
class Place:
    """One tensor in one file.

    Args:
        file: the file.
        key: its key there.
    """

    file: MappedFile
    key: str


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """A model over mapped files.

    Args:
        model: in eval mode; nothing may write to its parameters, and what no file holds is on the meta device.
        files: its files, by name.
        index: the index beside them, or None.
        homes: id of a parameter or buffer -> the places that hold it, several where ties are stored twice.
    """

    model: Any
    files: Mapping[str, MappedFile]
    index: Path | None
    homes: Mapping[int, Sequence[Place]]

    def release(self) -> None:
        """Give back the memory of all that was read."""
        for file in self.files.values():
            file.release()


def model_files(source: str) -> tuple[dict[str, Path], Path | None]:
    """Find the weights of a model as transformers does: one file, or an index and its shards.

    Args:
        source: local directory or hub name.

    Returns:
        name -> path of the safetensors files, and the index where there is one.

    Raises:
        Unstreamable: if there are none.
    """
    single = found(source, _SINGLE)
    if single is not None:
        return {_SINGLE: single}, None
    index = found(source, _INDEX)
    if index is None:
        raise Unstreamable("the base has no safetensors files")
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unstreamable(f"{_INDEX} cannot be read") from None
    files = {str(name): found(source, str(name)) for name in named}
    lacking = [name for name, path in files.items() if path is None or Path(name).name != name]
    if lacking:
        raise Unstreamable(f"{_INDEX} names {lacking[0]}, which is not there")
    return {name: path for name, path in files.items() if path is not None}, index


def found(source: str, name: str) -> Path | None:
    """Find one file of a model.

    Args:
        source: local directory or hub name.
        name: of the file.

    Returns:
        Its path here; None where the model has none.
    """
    home = Path(source).expanduser()
    if home.is_dir():
        return home / name if (home / name).is_file() else None
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    cached = cached_file(source, name, **quiet)
    return None if cached is None else Path(str(cached))


def on_disk(source: str, *, task: str, labels: Sequence[str], dtype: torch.dtype) -> OnDisk:
    """Build a base over its files.

    Args:
        source: local directory or hub name.
        task: "causal", "classification" or "regression".
        labels: class names, for classification.
        dtype: of what no file holds.

    Returns:
        The model and where its parameters lie.

    Raises:
        Unstreamable: if files and parameters do not match one to one.
        CheckpointError: if a file is damaged.
    """
    paths, index = model_files(source)
    model = _tree(source, task, labels, dtype)
    files = {name: MappedFile(path) for name, path in paths.items()}
    homes = _filled(model, files)
    lacking = [name for name, tensor in _slots(model).items() if tensor.is_meta]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise Unstreamable(f"the base's files do not hold '{lacking[0]}'{more}")
    return OnDisk(model=model.eval(), files=files, index=index, homes=homes)


def _tree(source: str, task: str, labels: Sequence[str], dtype: torch.dtype) -> Any:
    """The modules without values."""
    import transformers

    place = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    causal = task == "causal"
    family = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    options = {} if causal else label_options(task, labels)
    options.pop("ignore_mismatched_sizes", None)
    declared = transformers.AutoConfig.from_pretrained(place, **options)
    masked = type(declared) in transformers.AutoModelForMaskedLM._model_mapping
    if type(declared) not in family._model_mapping or (causal and masked and not getattr(declared, "is_decoder", 0)):
        raise Unstreamable(f"model_type {declared.model_type!r} has no head for {task}")
    for name in ("quantization_config", "transformers_weights"):
        if getattr(declared, name, None) is not None:
            raise Unstreamable(f"the base's configuration has a {name}")
    try:
        with torch.device("meta"), hushed():
            return family.from_config(declared, dtype=dtype)
    except Exception as error:
        # a model's constructor may compute with its values, and raise whatever it likes
        raise Unstreamable(f"its modules cannot be built without values ({type(error).__name__}: {error})") from None


def _slots(model: Any) -> dict[str, Tensor]:
    """Every tensor that a checkpoint may hold by its name, ties under each of their names."""
    return dict(model.state_dict(keep_vars=True))


def _filled(model: Any, files: Mapping[str, MappedFile]) -> dict[int, list[Place]]:
    """Put the files' tensors into the modules; returns where each lies."""
    slots = _slots(model)
    keys = {key: file for file in files.values() for key in file.tensors}
    if len(keys) != sum(len(file.tensors) for file in files.values()):
        raise Unstreamable("two of the base's files hold the same key")
    made: dict[int, Tensor] = {}
    places: dict[int, list[Place]] = {}
    taken: dict[str, str] = {}
    for key, name in _names(model, list(keys), slots):
        old = slots.get(name)
        if old is None:
            continue  # transformers does not load it either
        if (other := taken.setdefault(name, key)) != key:
            raise Unstreamable(f"'{key}' and '{other}' both are '{name}'")
        place = Place(keys[key], key)
        stored = place.file.tensors[key]
        if tuple(old.shape) != stored.shape or not stored.aligned:
            raise Unstreamable(f"'{key}' does not lie in its file as the model holds it")
        if id(old) not in made:
            tensor = place.file.tensor(key)
            made[id(old)] = nn.Parameter(tensor, requires_grad=False) if isinstance(old, nn.Parameter) else tensor
        elif not _same(made[id(old)], place):
            raise Unstreamable(f"'{key}' is tied in the model, but the files hold another value for it")
        places.setdefault(id(old), []).append(place)
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, value in held.items():
                held[key] = value if value is None else made.get(id(value), value)
    return {id(made[old]): found for old, found in places.items()}


def _names(model: Any, keys: Sequence[str], slots: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(key of the files, name in the model), by the rules of transformers' own loading."""
    prefix = model.base_model_prefix
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError:
        # before transformers 5 a base differs from a model with a head by one prefix
        for key in keys:
            yield key, next((n for n in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if n in slots), key)
        return
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for key in sorted(keys, key=dot_natural_key):
        name, converted = rename_source_key(key, renamings, converters, prefix, slots)
        if name not in slots and key in slots:
            name, converted = rename_source_key(key, [], [], prefix, slots)
        if converted is not None:
            raise Unstreamable(f"transformers converts '{key}' as it loads it (into '{name}')")
        yield key, name


def _same(tensor: Tensor, place: Place) -> bool:
    other = place.file.tensor(place.key)
    if tensor.dtype != other.dtype:
        return False
    pairs = zip(torch.split(tensor.flatten(), _PIECE), torch.split(other.flatten(), _PIECE), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)
