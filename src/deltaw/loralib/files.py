"""save and load: the original's checkpoints on disk, with what they do not say written beside or asked for.

A plain file is a pickled dict of ``X.lora_A``, ``X.lora_B`` and whatever else was trained; a wrapped one has it under
``model_state_dict``, as the original's GPT-2 example writes it. The settings of every layer and an identity of the base
stand in the dict's metadata, or in the header of a safetensors file: the original reads such files as its own.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.disk import Content, safetensors_file, write_files
from deltaw.errors import CheckpointError, ConfigError, TargetError, nearest
from deltaw.fingerprint import differences, fingerprint
from deltaw.functional import all_finite
from deltaw.held import read_held
from deltaw.loralib.base import NOTE, Adapted
from deltaw.loralib.trained import lora_state_dict, refuse_nothing
from deltaw.reports import count, plural, size
from deltaw.tree import require_model
from deltaw.view import View

__all__ = ["LoadReport", "SaveReport", "load", "save", "told"]

_BASE = "lora_base"
_HEADER = "deltaw.loralib"
_FACTORS = ("lora_A", "lora_B")
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """What ``save`` wrote.

    Args:
        path: the file.
        bytes: its size.
        tensors: number of factors.
        values: number of values in them.
        others: number of other tensors: biases, and what ``also`` named.
    """

    path: Path
    bytes: int
    tensors: int
    values: int
    others: int

    def __str__(self) -> str:
        """One line."""
        others = f" and {plural(self.others, 'other')}" if self.others else ""
        held = f"{self.tensors} LoRA tensors ({count(self.values)} values){others}"
        return f"saved {held}, {size(self.bytes)}, to {self.path}"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What ``load`` did.

    Args:
        path: the file.
        layers: number of layers that got their factors.
        tensors: number of factors.
        values: number of values in them.
        others: keys of the other tensors that were loaded.
        left: keys that were left aside.
        alphas: the alphas of the layers, each once.
        notes: what a reader should know.
    """

    path: Path
    layers: int
    tensors: int
    values: int
    others: tuple[str, ...]
    left: tuple[str, ...]
    alphas: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line and the notes."""
        others = f" and {plural(len(self.others), 'other')}" if self.others else ""
        held = f"{self.tensors} LoRA tensors ({count(self.values)} values){others}"
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas)
        left = [f"left aside: {', '.join(self.left)}"] if self.left else []
        head = f"loaded {held} from {self.path} into {plural(self.layers, 'layer')}, lora_alpha {alphas}"
        return "\n".join([head, *left, *(f"note: {note}" for note in self.notes)])


def _layers(model: nn.Module) -> dict[str, Adapted]:
    found = {p: m for p, m in model.named_modules() if isinstance(m, Adapted) and m.adapted}
    if not found:
        raise refuse_nothing(model)
    return found


def _identity(layers: Mapping[str, Adapted]) -> dict[str, Any]:
    """A fingerprint of the base's weights, whether they are merged or not."""
    bare: dict[str, nn.Module] = {}
    for path, layer in layers.items():
        bare[path] = nn.Module()
        bare[path].weight = nn.Parameter(layer.base_weight(), requires_grad=False)
    return fingerprint(bare.items())


def save(
    model: nn.Module,
    path: str | Path,
    *,
    bias: str = "none",
    also: Sequence[str] = (),
    wrapped: bool = False,
    prefix: str = "",
) -> SaveReport:
    """Write what was trained as one of the original's checkpoints, atomically.

    Args:
        model: a model with LoRA layers, merged or not.
        path: the file; ``.safetensors`` is written as such, everything else as torch.save writes it.
        bias: as for ``lora_state_dict``.
        also: patterns of modules stored whole beside the factors, such as a classifier.
        wrapped: put the dict under ``model_state_dict``, as the original's GPT-2 example does.
        prefix: put before every name, such as ``module.`` of DistributedDataParallel.

    Returns:
        A report.

    Raises:
        ConfigError: if a safetensors file is to be wrapped.
        TargetError: if there is nothing to store, or a pattern matches nothing.
        CheckpointError: if the disk refuses.
    """
    root, place = require_model(model), Path(path).expanduser()
    layers = _layers(root)
    tensors = lora_state_dict(root, bias)
    factors = [tensor for key, tensor in tensors.items() if key.rpartition(".")[2] in _FACTORS]
    for pattern in also:
        found = View(root).find(pattern)
        if not found:
            raise TargetError(
                f"no module matches also {pattern!r}", where=type(root).__name__, got=repr(pattern),
                expected="a module, such as a classifier", hint=f"nearest: {nearest(pattern, View(root).modules)}.",
            )  # fmt: skip
        for at in found:
            tensors.update({f"{at}.{key}": value for key, value in root.get_submodule(at).state_dict().items()})
    notes = {where: layer.settings() for where, layer in layers.items()}
    renamed = {f"{prefix}{key}": value.detach() for key, value in tensors.items()}
    content = _content(place, renamed, notes, _identity(layers), wrapped, prefix)
    size = write_files(place.parent, {place.name: content})
    values = sum(tensor.numel() for tensor in factors)
    others = len(tensors) - len(factors)
    return SaveReport(path=place, bytes=size, tensors=len(factors), values=values, others=others)


def _content(
    place: Path, tensors: dict[str, Tensor], notes: dict[str, Any], base: dict[str, Any], wrapped: bool, prefix: str
) -> Content:
    """What the file holds."""
    if place.suffix == ".safetensors":
        if wrapped:
            raise ConfigError(
                "a safetensors file holds tensors by name and nothing around them", where="save(wrapped=True)",
                got=place.name, expected="a name that ends in .pt or .bin", hint="leave wrapped out, or rename it.",
            )  # fmt: skip
        own = json.dumps({"layers": notes, "base": base}, sort_keys=True, separators=(",", ":"))
        return safetensors_file(tensors, {"format": "pt", _HEADER: own})
    # clones, since torch.save writes the whole storage that a view is of
    plain = OrderedDict((key, value.to("cpu", copy=True)) for key, value in tensors.items())
    told: dict[str, Any] = {f"{prefix}{path}": {"version": 1, NOTE: note} for path, note in notes.items()}
    told.setdefault(prefix[:-1], {"version": 1})[_BASE] = base
    plain._metadata = told  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save({"model_state_dict": plain} if wrapped else plain, buffer)
    return buffer.getvalue()


def load(
    model: nn.Module,
    path: str | Path,
    *,
    alpha: float | None = None,
    lora_only: bool = False,
    allow_other_base: bool = False,
) -> LoadReport:
    """Read one of the original's checkpoints into a model with LoRA layers: every tensor lands, or nothing is written.

    The original stores no alpha, and another alpha than the training's ruins an adapter unseen. A file that does not
    say its own is loaded only where you say it; it must be that of the layers.

    Args:
        model: a model with LoRA layers, merged or not.
        path: a dict of tensors, plain, under ``model_state_dict``, with ``module.`` before every name, or safetensors.
        alpha: the alpha of the training, for files that do not say it.
        lora_only: leave heads and biases in the file aside.
        allow_other_base: load onto other weights than those the file says it was trained on.

    Returns:
        A report.

    Raises:
        CheckpointError: if the file is damaged, does not say its alpha, or does not fit the layers or the base.
        TargetError: if the model has no LoRA layer.
    """
    root, place = require_model(model), Path(path).expanduser()
    layers = _layers(root)
    if not place.is_file():
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise CheckpointError(
            "there is no such checkpoint", where=str(place), got="nothing at this path" if not place.exists() else
            "a directory", expected="a file of tensors", hint=f"nearest there: {nearest(place.name, siblings, 2)}.",
        )  # fmt: skip
    held = read_held(place)
    notes, base = told(held.metadata, held.stated, place)
    factors = {k: t for k, t in held.tensors.items() if k.rpartition(".")[2] in _FACTORS and k.rpartition(".")[0]}
    rest = {k: t for k, t in held.tensors.items() if k not in factors}
    left = tuple(sorted(rest)) if lora_only else ()
    rest = {} if lora_only else rest
    targets = {**_own(root, layers, rest), **{f"{p}.{x}": getattr(m, x) for p, m in layers.items() for x in _FACTORS}}
    problems = [*_misfits(layers, factors), *_strays(layers, rest, targets)]
    _refuse(place, problems, f"{plural(len(layers), 'LoRA layer')} and no tensor over")
    _check_settings(place, layers, notes, alpha)
    if base is not None and not allow_other_base:
        _check_base(place, differences(base, _identity(layers)))
    _write(layers, targets, {**factors, **rest})
    return LoadReport(
        path=place,
        layers=len(layers),
        tensors=len(factors),
        values=sum(tensor.numel() for tensor in factors.values()),
        others=tuple(sorted(rest)),
        left=left,
        alphas=tuple(sorted({float(layer.lora_alpha) for layer in layers.values()})),
        notes=(*held.notes, *_remarks(layers, notes, base)),
    )


def told(
    metadata: Mapping[str, str], stated: Mapping[str, Mapping[str, Any]], place: Path
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any] | None]:
    """What a file says of its layers and of its base.

    Args:
        metadata: its safetensors metadata.
        stated: its notes on modules, as ``held.Held`` has them.
        place: the file, for messages.

    Returns:
        Path -> settings of the layer, for those it speaks of; the base's fingerprint, or None.

    Raises:
        CheckpointError: if it says something that cannot be read.
    """
    if _HEADER in metadata:
        try:
            own = json.loads(metadata[_HEADER])
            return dict(own["layers"]), dict(own["base"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                "what the file says of its layers cannot be read", where=f"{place}, header {_HEADER!r}",
                got=f"{type(error).__name__}: {error}", expected="the JSON that save wrote",
                hint="the header was edited; save the adapter again.",
            ) from None  # fmt: skip
    notes = {path: note[NOTE] for path, note in stated.items() if isinstance(note.get(NOTE), Mapping)}
    base = next((note[_BASE] for note in stated.values() if isinstance(note.get(_BASE), Mapping)), None)
    return notes, base


def _own(root: nn.Module, layers: Mapping[str, Adapted], rest: Iterable[str]) -> dict[str, Tensor]:
    """The model's own tensors that a file may hold beside the factors."""
    frozen = {f"{path}.{leaf}" for path in layers for leaf in ("weight", "conv.weight")}
    named = {**dict(root.named_parameters(remove_duplicate=False)), **dict(root.named_buffers(remove_duplicate=False))}
    return {key: tensor for key, tensor in named.items() if key not in frozen}


def _misfits(layers: Mapping[str, Adapted], factors: Mapping[str, Tensor]) -> list[str]:
    """Factors without a layer, layers without factors, shapes that differ, values that are none."""
    strange = dict.fromkeys(path for key in factors if (path := key.rpartition(".")[0]) not in layers)
    problems = [f"'{path}': no LoRA layer there; nearest: {nearest(path, layers, 2)}" for path in strange]
    for path, layer in layers.items():
        for name in _FACTORS:
            tensor, own = factors.get(f"{path}.{name}"), getattr(layer, name)
            if tensor is None:
                problems.append(f"'{path}.{name}': not in the file")
            elif tensor.shape != own.shape:
                problems.append(f"'{path}.{name}': {tuple(tensor.shape)}, the layer holds {tuple(own.shape)}")
            elif not all_finite(tensor):
                problems.append(f"'{path}.{name}': holds NaN or infinity")
    return problems


def _strays(layers: Mapping[str, Adapted], rest: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Other tensors without a place, and the base's own weights."""
    problems = []
    for key, tensor in rest.items():
        path, _, leaf = key.rpartition(".")
        if leaf == "weight" and path.removesuffix(".conv") in layers:
            problems.append(
                f"'{key}': the base's own weight; it is a checkpoint of the whole model, for load_state_dict"
            )
        elif key not in own:
            problems.append(f"'{key}': no such parameter in the model; nearest: {nearest(key, own, 1)}")
        elif own[key].shape != tensor.shape:
            problems.append(f"'{key}': {tuple(tensor.shape)}, the model holds {tuple(own[key].shape)}")
    return problems


def _refuse(place: Path, problems: list[str], expected: str) -> None:
    if problems:
        more = f"\n    ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            "the checkpoint does not fit this model; nothing was loaded",
            where=str(place),
            got=f"{plural(len(problems), 'problem')}:\n    " + "\n    ".join(problems[:_SHOWN]) + more,
            expected=f"factors for {expected}",
            hint="make the layers as for the training, of that r; lora_only=True leaves heads and biases aside.",
        )


def _check_settings(
    place: Path, layers: Mapping[str, Adapted], notes: Mapping[str, Mapping[str, Any]], alpha: float | None
) -> None:
    """Refuse an alpha that nobody says, and settings that differ between the file, the caller and the layers."""
    silent = [path for path in layers if "lora_alpha" not in notes.get(path, {})]
    if silent and alpha is None:
        raise CheckpointError(
            "the file does not say its alpha",
            where=str(place),
            got="tensors of loralib, which stores no alpha",
            expected="the alpha it was trained with; the update is scaled by alpha / r",
            hint="give it: load(model, path, alpha=NUMBER); it stands in the training command or script.",
        )
    problems = []
    for path, layer in layers.items():
        own = layer.settings()
        said = {"lora_alpha": alpha, **notes.get(path, {})}
        problems += [
            f"'{path}': {key}={own[key]!r} in the layer, {value!r} "
            + ("in the file" if path in notes else "as you say")
            for key, value in said.items()
            if value is not None and key in own and own[key] != value
        ]
        if alpha is not None and said["lora_alpha"] != alpha:
            problems.append(f"'{path}': lora_alpha={said['lora_alpha']!r} in the file, {alpha!r} as you say")
    if problems:
        more = f"\n    ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            "the checkpoint was trained with other settings; nothing was loaded",
            where=str(place),
            got="\n    " + "\n    ".join(problems[:_SHOWN]) + more,
            expected="layers with the settings of the training",
            hint="make the layers with that lora_alpha; another one scales the update by another factor, unseen.",
        )


def _check_base(place: Path, lines: list[str]) -> None:
    if lines:
        more = f"\n    ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise CheckpointError(
            "the checkpoint was trained on another base; nothing was loaded",
            where=str(place),
            got="\n    " + "\n    ".join(lines[:_SHOWN]) + more,
            expected="the weights it was trained on",
            hint="load the right base first; allow_other_base=True loads it all the same.",
        )


@torch.no_grad()
def _write(layers: Mapping[str, Adapted], targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy every tensor into its place; merged layers are merged anew."""
    for key, value in values.items():
        if key.rpartition(".")[2] not in _FACTORS:
            targets[key].copy_(value)
    for path, layer in layers.items():
        with layer.unmerged():
            for name in _FACTORS:
                targets[f"{path}.{name}"].copy_(values[f"{path}.{name}"])


def _remarks(
    layers: Mapping[str, Adapted], notes: Mapping[str, Mapping[str, Any]], base: dict[str, Any] | None
) -> list[str]:
    lines = [] if base is not None else ["the file says nothing of its base, so that was not checked"]
    guessed = [p for p, layer in layers.items() if "enable_lora" in layer.settings() and p not in notes]
    if guessed:
        lines.append(
            f"which projections are on is not in the file; taken as the layers have it: {', '.join(guessed[:3])}"
        )
    return lines
