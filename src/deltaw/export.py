"""From a worn adapter to the value that is written: PEFT's keys and configuration, and what deltaw adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from deltaw.adapter import METADATA, Adapter
from deltaw.factors import Pair, Shared, SlicedLoRA
from deltaw.fingerprint import fingerprint
from deltaw.keys import EXTRAS, INNER, PREFIX, ROWS, SHARED, TWICE, VECTORS
from deltaw.layer import container_of
from deltaw.layers import Kind, kind_of
from deltaw.peft_config import to_peft
from deltaw.record import Record
from deltaw.stack import Stack, level, stacked, whole
from deltaw.tree import base_modules, base_state
from deltaw.variants import variant_of
from deltaw.version import __version__
from deltaw.worn import FullCopy, Twin

__all__ = ["LAYOUT", "export"]

LAYOUT = 1
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}


def _task(model: nn.Module, copies: list[str]) -> str | None:
    """PEFT's task type; classification only with a trained head, since PEFT then expects one in the file."""
    names = [cls.__name__ for cls in type(model).__mro__]
    task = next((task for end, task in _TASKS.items() if any(name.endswith(end) for name in names)), None)
    return None if task == "SEQ_CLS" and not copies else task


def _caught(present: dict[str, nn.Module], copies: list[str], task: str | None) -> list[str]:
    """Modules that PEFT would save in full as well, because it matches the names by bare suffix."""
    names = set(copies) | ({"classifier", "score"} if task == "SEQ_CLS" else set())
    return [
        path
        for path, module in present.items()
        if path and path not in copies and path.endswith(tuple(names)) and any(True for _ in module.parameters())
        and not any(path.startswith(f"{copy}.") for copy in copies)
    ]  # fmt: skip


@dataclass
class _Written:
    """What is written for one adapter.

    Args:
        tensors: key -> tensor.
        stacks: path -> factors as the file holds them.
        sites: path -> (rank, alpha) as the file states them.
        tokens: path -> token ids of trained rows.
        own: our own notes about them.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    stacks: dict[str, Stack] = field(default_factory=dict)
    sites: dict[str, tuple[int, float]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=lambda: {"scaling": {}, "slices": {}, "twins": {}})


def _low_rank(written: _Written, path: str, module: nn.Module, kind: Kind, entry: Any) -> None:
    """The factors of one site."""
    parts: list[Pair] = list(entry.parts())
    first, own = parts[0].part, written.own
    if first.update.shared is not None:
        written.tensors |= {PREFIX + path + VECTORS[name]: parts[0].tensors[name] for name in VECTORS}
        for shared in (m for m in entry.modules() if isinstance(m, Shared)):
            written.tensors |= {SHARED[name]: tensor for name, tensor in shared.named_buffers()}
        written.sites[path] = (first.rank, first.rank)
        own.setdefault("sizes", {})[path] = list(kind.sizes(module))
        return
    sliced = isinstance(entry, SlicedLoRA)
    if container_of(module).raw:
        own.setdefault("raw", []).append(path)
    written.stacks[path] = stacked(parts, kind, module) if sliced else whole(parts[0])
    own["scaling"][path] = first.scaling if len(parts) == 1 else [pair.part.scaling for pair in parts]
    if sliced:
        own["slices"][path] = [
            {"name": p.name, "rank": p.rank, "alpha": p.alpha, "scaling": p.scaling, "rows": [list(r) for r in p.rows]}
            | ({"subtract": True} if p.subtract else {})
            for p in (pair.part for pair in parts)
        ]
    elif first.subtract:
        own.setdefault("starts", {})[path] = {"rank": first.rank, "alpha": first.alpha}


def _attention(present: dict[str, nn.Module], written: _Written) -> set[str]:
    """Make both projections of each attention alike, as PEFT has them; returns the paths it does not name."""
    homes = {path.rpartition(".")[0] for path in written.stacks if _in_attention(present, path)}
    homes |= {path for path in written.stacks if isinstance(present[path], nn.MultiheadAttention)}
    for home in sorted(homes):
        paths = (home, f"{home}.out_proj" if home else "out_proj")
        for path, other in (paths, paths[::-1]):
            if path not in written.stacks:
                written.stacks[path] = _zeros(present[path], written.stacks[other])
                written.own.setdefault("unworn", []).append(path)
        first, second = (written.stacks[path] for path in paths)
        was = [(stack.rank, stack.scaling, stack.alpha) for stack in (first, second)]
        if level(first, second):
            for path, (rank, scaling, alpha) in zip(paths, was, strict=True):
                written.own.setdefault("padded", {})[path] = {"rank": rank, "scaling": scaling, "alpha": alpha}
    return {path for path in written.stacks if _in_attention(present, path)}


def _zeros(module: nn.Module, like: Stack) -> Stack:
    """An update of nothing, of the smallest rank."""
    kind = kind_of(module)
    assert kind is not None
    shape_A, shape_B = kind.shapes(module, 1, *kind.sizes(module))
    return Stack(like.lora_A.new_zeros(shape_A), like.lora_B.new_zeros(shape_B), like.scaling, {}, like.alpha)


def _in_attention(present: dict[str, nn.Module], path: str) -> bool:
    parent, _, leaf = path.rpartition(".")
    return leaf == "out_proj" and isinstance(present[parent], nn.MultiheadAttention)


def _write_stacks(present: dict[str, nn.Module], written: _Written, stabilized: bool) -> None:
    """Stacks as tensors under PEFT's keys."""
    for path, stack in written.stacks.items():
        module = present[path]
        kind = kind_of(module)
        assert kind is not None
        parent = path.rpartition(".")[0]
        inner = _in_attention(present, path)
        key = PREFIX + (f"{parent}{INNER}" if inner else path)
        lora_A, lora_B = kind.pack(module, stack.lora_A, stack.lora_B / TWICE if inner else stack.lora_B)
        written.tensors |= {key + kind.suffixes[0]: lora_A, key + kind.suffixes[1]: lora_B}
        for name, tensor in stack.extras.items():
            convolved = name == "magnitude" and lora_A.dim() > 2
            shape = (1, -1, *([1] * (lora_A.dim() - 2))) if convolved else (-1,)
            written.tensors[key + EXTRAS[name]] = tensor.reshape(shape)
        written.sites[path] = (stack.rank, stack.numerator(stabilized))


def _collect(model: nn.Module, record: Record, name: str, stabilized: bool) -> _Written:
    """Tensors of one adapter, what the file states about its sites, and our own notes."""
    written = _Written()
    for path, module in record.modules.items():
        entry: Any = container_of(module)._modules.get(name)
        kind = kind_of(module)
        if entry is None:
            continue
        if next(iter(getattr(entry, "parts", tuple)()), None) is not None and kind is not None:
            _low_rank(written, path, module, kind, entry)
        if isinstance(entry, Twin):
            written.own["twins"][path] = next(
                p for p, m in record.modules.items() if container_of(m)._modules.get(name) is entry.primary[0]
            )
        if isinstance(module, nn.Embedding) and getattr(entry, "tokens", None) is not None:
            written.tensors[PREFIX + path + ROWS] = entry.tokens.rows
            written.tokens[path] = entry.tokens.index.tolist()
        if isinstance(entry, FullCopy):
            state = entry.module.state_dict()
            written.tensors |= {f"{PREFIX}{path}.{key}": value for key, value in state.items()}
        bias: Any = getattr(entry, "bias", None)
        if bias is not None:
            inner = ".base_layer.bias" if path in written.stacks or path in written.sites else ".bias"
            written.tensors[PREFIX + path + inner] = bias
    return written


def _untrained(path: str, module: nn.Module, written: _Written) -> dict[str, Tensor]:
    """A module's own tensors, without those that are written already because a part of it was trained."""
    state = {f"{PREFIX}{path}.{key}": value for key, value in base_state(module).items()}
    return {key: value for key, value in state.items() if key not in written.tensors}


def export(model: nn.Module, record: Record, name: str) -> tuple[Adapter, list[str]]:
    """Make the value of a worn adapter.

    Args:
        model: the model.
        record: its record.
        name: which adapter.

    Returns:
        The adapter, whose tensors may be the worn ones themselves, and notes for the report.
    """
    worn = record.adapters[name]
    written = _collect(model, record, name, worn.config.rank_stabilized)
    present = dict(base_modules(model))
    unnamed = _attention(present, written)
    _write_stacks(present, written, worn.config.rank_stabilized)
    copies = [p for p, m in record.modules.items() if isinstance(container_of(m)._modules.get(name), FullCopy)]
    foreign = dict(worn.foreign)
    foreign["task_type"] = foreign.get("task_type") or _task(model, copies)
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    foreign["base_model_name_or_path"] = foreign.get("base_model_name_or_path") or base or None
    caught = _caught(present, copies, foreign["task_type"]) if copies else []
    along = {path: _untrained(path, present[path], written) for path in caught}
    caught = [path for path, state in along.items() if state]
    for path in caught:
        written.tensors |= along[path]
    notes = [f"'{path}' is written along unchanged, since PEFT matches it by its ending" for path in caught]
    notes += [f"'{path}' is written as zeros, since PEFT adapts it too" for path in written.own.get("unworn", [])]
    named = {path: stated for path, stated in written.sites.items() if path not in unnamed}
    transposed = any((kind := kind_of(present[path])) is not None and kind.name == "Conv1D" for path in named)
    raw = to_peft(
        worn.config,
        named,
        present=[p for p in present if p],
        copies=copies,
        transposed=transposed,
        foreign=foreign,
        tokens=written.tokens,
    )
    own = written.own
    sites = [(path, present[path]) for path in {**written.sites, **dict.fromkeys(written.tokens)}]
    own.update(along=caught, layout=LAYOUT, version=__version__, fingerprint=fingerprint(sites))
    names = variant_of(worn.config.variant).names
    own.update({"variant": list(names)} if names != ("lora",) else {})
    metadata = {**worn.metadata, METADATA: json.dumps(own, sort_keys=True, separators=(",", ":"))}
    return Adapter(tensors=_apart(written.tensors), raw=raw, metadata=metadata), notes


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU of which each has a storage of its own, as files want them; a worn parameter is its own."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(storage.data_ptr())
        found[key] = plain
    return found
