"""From a worn adapter to the value that is written: PEFT's keys and configuration, and what deltaw adds."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import METADATA, Adapter
from deltaw.fingerprint import fingerprint
from deltaw.keys import PREFIX
from deltaw.layer import container_of
from deltaw.layers import kind_of
from deltaw.peft_config import to_peft
from deltaw.record import Record
from deltaw.sites import Part
from deltaw.tree import base_modules, base_state
from deltaw.version import __version__
from deltaw.worn import FullCopy, SlicedLoRA, Twin

__all__ = ["LAYOUT", "export"]

LAYOUT = 1
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}


def _stacked(
    parts: list[tuple[Part, Tensor, Tensor, Tensor | None]], width: int, stabilized: bool
) -> tuple[Tensor, Tensor, float]:
    """Slices as one plain LoRA: stacked A, zero-blocked B, and the alpha that goes with it.

    Where all slices have one scaling, alpha carries it and the factors are written bit for bit; otherwise each
    slice's scaling is folded into its B and alpha makes the whole scaling 1.
    """
    rank = sum(part.rank for part, *_ in parts)
    scalings = {part.scaling for part, *_ in parts}
    common = scalings.pop() if len(scalings) == 1 else None
    lora_A = torch.cat([lora_A for _, lora_A, _, _ in parts])
    lora_B = torch.zeros(width, rank, dtype=lora_A.dtype, device=lora_A.device)
    start = 0
    for part, _, own_B, rows in parts:
        factor = 1.0 if common is not None else part.scaling
        lora_B[rows, start : start + part.rank] = own_B.detach() * factor
        start += part.rank
    return lora_A, lora_B, (common or 1.0) * (math.sqrt(rank) if stabilized else rank)


def _slices(parts: list[tuple[Part, Tensor, Tensor, Tensor | None]]) -> list[dict[str, Any]]:
    return [
        {"name": p.name, "rank": p.rank, "alpha": p.alpha, "scaling": p.scaling, "rows": [list(r) for r in p.rows]}
        for p, *_ in parts
    ]


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


def _collect(
    record: Record, name: str, stabilized: bool
) -> tuple[dict[str, Tensor], dict[str, tuple[int, float]], dict[str, Any]]:
    """Tensors, (rank, alpha) per site, and our own notes about them."""
    tensors: dict[str, Tensor] = {}
    sites: dict[str, tuple[int, float]] = {}
    own: dict[str, Any] = {"scaling": {}, "slices": {}, "twins": {}}
    for path, module in record.modules.items():
        entry: Any = container_of(module)._modules.get(name)
        if entry is None:
            continue
        kind = kind_of(module)
        if hasattr(entry, "parts") and kind is not None:
            parts = list(entry.parts())
            if isinstance(entry, SlicedLoRA):
                lora_A, lora_B, alpha = _stacked(parts, kind.sizes(module)[1], stabilized)
                own["slices"][path] = _slices(parts)
            else:
                _, lora_A, lora_B, _ = parts[0]
                alpha = parts[0][0].alpha
            tensors[PREFIX + path + kind.suffixes[0]], tensors[PREFIX + path + kind.suffixes[1]] = lora_A, lora_B
            sites[path] = (lora_A.shape[0], alpha)
            own["scaling"][path] = parts[0][0].scaling if len(parts) == 1 else [p.scaling for p, *_ in parts]
        if isinstance(entry, Twin):
            own["twins"][path] = next(
                p for p, m in record.modules.items() if container_of(m)._modules.get(name) is entry.primary[0]
            )
        if isinstance(entry, FullCopy):
            tensors.update({f"{PREFIX}{path}.{key}": value for key, value in entry.module.state_dict().items()})
        bias: Any = getattr(entry, "bias", None)
        if bias is not None:
            inner = ".base_layer.bias" if hasattr(entry, "parts") else ".bias"
            tensors[PREFIX + path + inner] = bias
    return tensors, sites, own


def export(model: nn.Module, record: Record, name: str) -> tuple[Adapter, list[str]]:
    """Make the value of a worn adapter.

    Args:
        model: the model.
        record: its record.
        name: which adapter.

    Returns:
        The adapter, and notes for the report.
    """
    worn = record.adapters[name]
    tensors, sites, own = _collect(record, name, worn.config.rank_stabilized)
    present = dict(base_modules(model))
    copies = [p for p, m in record.modules.items() if isinstance(container_of(m)._modules.get(name), FullCopy)]
    foreign = dict(worn.foreign)
    foreign["task_type"] = foreign.get("task_type") or _task(model, copies)
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    foreign["base_model_name_or_path"] = foreign.get("base_model_name_or_path") or base or None
    caught = _caught(present, copies, foreign["task_type"]) if copies else []
    for path in caught:
        state = base_state(present[path])
        tensors.update({f"{PREFIX}{path}.{key}": value for key, value in state.items()})
    notes = [f"'{path}' is written along unchanged, since PEFT matches it by its ending" for path in caught]
    transposed = any((kind := kind_of(record.modules[path])) is not None and kind.name == "Conv1D" for path in sites)
    raw = to_peft(
        worn.config, sites, present=[p for p in present if p], copies=copies, transposed=transposed, foreign=foreign
    )
    own.update(
        along=caught, layout=LAYOUT, version=__version__, fingerprint=fingerprint((p, record.modules[p]) for p in sites)
    )
    metadata = {**worn.metadata, METADATA: json.dumps(own, sort_keys=True, separators=(",", ":"))}
    plain = {key: tensor.detach().to("cpu").contiguous().clone() for key, tensor in tensors.items()}
    return Adapter(tensors=plain, raw=raw, metadata=metadata), notes
