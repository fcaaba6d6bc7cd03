"""Adapters made from numbers, and their updates by the formula in float64 numpy, sharing no code with ``src``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deltaw as dw

Array = np.ndarray
PREFIX = "base_model.model."

# path -> (A without the rank, O, groups, suffixes)
MODULES: dict[str, tuple[tuple[int, ...], int, int, tuple[str, str]]] = {
    "fc": ((6,), 8, 1, (".lora_A.weight", ".lora_B.weight")),
    "h.0.fc": ((8,), 6, 1, (".lora_A.weight", ".lora_B.weight")),
    "embed": ((11,), 6, 1, (".lora_embedding_A", ".lora_embedding_B")),
    "conv": ((8, 3, 2), 6, 1, (".lora_A.weight", ".lora_B.weight")),
    "grouped": ((8, 3), 4, 2, (".lora_A.weight", ".lora_B.weight")),
}
"""One module of each layout: linear maps, a table, a convolution, a convolution with two groups."""


class Net(nn.Module):
    """A model with these modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.fc = nn.Linear(6, 8)
        self.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(8, 6)})])
        self.conv = nn.Conv2d(8, 6, (3, 2))
        self.grouped = nn.Conv1d(8, 4, 3, groups=2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.fc(self.embed(ids))
        return self.h[0]["fc"](x)  # type: ignore[index, no-any-return]


def factors(
    path: str, rank: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A and B of one module as PEFT stores them; a group's A is zero outside its own channels."""
    inner, out, groups, _ = MODULES[path]
    lora_A = torch.randn(rank, *inner, generator=generator)
    lora_B = torch.randn(out, rank // groups, *([1] * (len(inner) - 1)), generator=generator)
    if groups > 1:
        for group in range(groups):
            own = slice(group * inner[0] // groups, (group + 1) * inner[0] // groups)
            mask = torch.zeros(inner[0])
            mask[own] = 1
            lora_A[group * rank // groups : (group + 1) * rank // groups] *= mask.reshape(-1, *([1] * (len(inner) - 1)))
    return lora_A.to(dtype), lora_B.to(dtype)


def adapter(
    paths: Sequence[str] = ("fc",),
    rank: int | Mapping[str, int] = 4,
    alpha: float | Mapping[str, float] = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    extra: Mapping[str, Tensor] | None = None,
    **raw: Any,
) -> dw.Adapter:
    """An adapter with values of trained size; ranks and alphas that differ go into PEFT's patterns."""
    generator = torch.Generator().manual_seed(seed)
    ranks = {path: rank if isinstance(rank, int) else rank[path] for path in paths}
    alphas = {path: alpha if isinstance(alpha, int | float) else alpha[path] for path in paths}
    tensors: dict[str, Tensor] = {}
    for path in paths:
        suffixes = MODULES[path][3]
        lora_A, lora_B = factors(path, ranks[path], generator, dtype)
        tensors[PREFIX + path + suffixes[0]], tensors[PREFIX + path + suffixes[1]] = lora_A, lora_B
        if bias and suffixes[1].endswith(".weight"):
            tensors[PREFIX + path + ".lora_B.bias"] = torch.randn(lora_B.shape[0], generator=generator)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "r": ranks[paths[0]],
        "lora_alpha": alphas[paths[0]],
        "rank_pattern": {f"^{re.escape(path)}": number for path, number in ranks.items()},
        "alpha_pattern": {f"^{re.escape(path)}": number for path, number in alphas.items()},
        "target_modules": list(paths),
        **({"lora_bias": True} if bias else {}),
    }
    return dw.Adapter(tensors={**tensors, **(extra or {})}, raw={**fields, **raw}, where=f"adapter-{seed}")


def scaling(made: dw.Adapter, path: str, rank: int) -> float:
    """alpha / rank by PEFT's rules: the first pattern that matches the end of the path."""
    alpha = made.raw["lora_alpha"]
    for key, value in (made.raw.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            alpha = value
            break
    return alpha / math.sqrt(rank) if made.raw.get("use_rslora") else alpha / rank


def stated_rank(made: dw.Adapter, path: str) -> int:
    """The rank that the configuration states for a module, by PEFT's rules."""
    for key, value in (made.raw.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return int(value)
    return int(made.raw["r"])


def deltas(made: dw.Adapter) -> dict[str, Array]:
    """path -> scaling * B A in float64, (O, I * kernel); a group's rows follow its own channels."""
    found = {}
    for path, (_, out, groups, suffixes) in MODULES.items():
        if PREFIX + path + suffixes[0] not in made.tensors:
            continue
        lora_A, lora_B = (made.tensors[PREFIX + path + suffix].double().flatten(1).numpy() for suffix in suffixes)
        rank = lora_A.shape[0]
        assert stated_rank(made, path) == rank, f"{path}: the configuration states another rank"
        rows = []
        for group in range(groups):
            own = slice(group * rank // groups, (group + 1) * rank // groups)
            rows.append(lora_B[group * out // groups : (group + 1) * out // groups] @ lora_A[own])
        found[path] = scaling(made, path, rank) * np.concatenate(rows)
    return found


def biases(made: dw.Adapter) -> dict[str, Array]:
    """path -> scaling * bias of B, in float64."""
    found = {}
    for key, tensor in made.tensors.items():
        if key.endswith(".lora_B.bias"):
            path = key.removeprefix(PREFIX).removesuffix(".lora_B.bias")
            rank = made.tensors[PREFIX + path + ".lora_A.weight"].shape[0]
            found[path] = scaling(made, path, rank) * tensor.double().numpy()
    return found


def weighted(adapters: Sequence[dw.Adapter], weights: Sequence[float]) -> dict[str, Array]:
    """The analytic sum of the updates."""
    total: dict[str, Array] = {}
    for made, weight in zip(adapters, weights, strict=True):
        for path, value in deltas(made).items():
            total[path] = total.get(path, np.zeros_like(value)) + weight * value
    return total


def sizes(adapters: Sequence[dw.Adapter], weights: Sequence[float]) -> dict[str, float]:
    """path -> sum of the terms' norms: what rounding is relative to."""
    total: dict[str, float] = {}
    for made, weight in zip(adapters, weights, strict=True):
        for path, value in deltas(made).items():
            total[path] = total.get(path, 0.0) + abs(weight) * float(np.linalg.norm(value))
    return total


def assert_sum(
    made: dw.Adapter, adapters: Sequence[dw.Adapter], weights: Sequence[float], tolerance: float = 3e-7
) -> None:
    """The result's updates are the analytic sum, relative to what was added."""
    expected, size, found = weighted(adapters, weights), sizes(adapters, weights), deltas(made)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert np.linalg.norm(found[path] - value) <= tolerance * size[path], path
