"""What one module's update is made of: sizes, norms and spectrum, for every kind of update a file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.factored import singular_values
from deltaw.errors import CheckpointError

__all__ = ["ModuleFacts", "effective_rank", "energy_rank", "module_facts"]

NOISE = 1e-13
"""Of the product of the factors' norms: what float64 leaves where an update cancels the one it started from."""


@dataclass(frozen=True, kw_only=True)
class ModuleFacts:
    """One module's update.

    Args:
        path: dotted module path.
        in_features: I; I * kernel for a convolution; None where the file does not say.
        out_features: O.
        rank: R as it was trained: the sum over slices, without the start that is taken off again.
        scaling: factor on B A; that of the first slice.
        frobenius: Frobenius norm of scaling * B A.
        spectral: its largest singular value.
        effective_rank: see ``effective_rank``; 0 for a zero update.
        energy_90: directions that hold 90% of the squared norm.
        spectrum: singular values, descending; empty where the tensors are not finite.
        kind: lora, conv, embedding or vera.
        slices: names of the slices of a fused projection.
        start: what the update started from is taken off again, and stands in the file too.
        weight: the weight itself is adapted, for others that read it.
        shares: path of the module whose update this one repeats, because they share a weight.
        padding: zeros that stand in the file because PEFT adapts this module too.
        bias: norm of scaling * the trained bias of B; None where there is none.
        magnitude: (smallest, mean, largest) of DoRA's magnitudes; None where there are none.
    """

    path: str
    in_features: int | None
    out_features: int
    rank: int
    scaling: float
    frobenius: float
    spectral: float
    effective_rank: float
    energy_90: int
    spectrum: tuple[float, ...]
    kind: str = "lora"
    slices: tuple[str, ...] = ()
    start: bool = False
    weight: bool = False
    shares: str | None = None
    padding: bool = False
    bias: float | None = None
    magnitude: tuple[float, float, float] | None = None


def effective_rank(values: Tensor) -> float:
    """How many directions a spectrum spreads over: the exponential of its entropy.

    Args:
        values: singular values, shape (R,), not negative.

    Returns:
        Between 1 and R; 0 for a zero spectrum.

    Source:
        Roy and Vetterli 2007, "The effective rank", EUSIPCO.

    Example:
        >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
        2.0
    """
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values[values > 0].double() / total
    return round(float((-(shares * shares.log()).sum()).exp()), 12)


def energy_rank(values: Tensor, share: float = 0.9) -> int:
    """How many directions hold a share of the squared Frobenius norm.

    Args:
        values: singular values, shape (R,), descending.
        share: between 0 and 1.

    Returns:
        Number of directions; 0 for a zero spectrum.

    Example:
        >>> energy_rank(torch.tensor([3.0, 1.0]))
        1
    """
    energy = values.double().square().cumsum(0)
    if energy.numel() == 0 or float(energy[-1]) == 0:
        return 0
    return int((energy < share * energy[-1]).sum()) + 1


def module_facts(adapter: Adapter, where: Path) -> tuple[ModuleFacts, ...]:
    """Look at every module with a low-rank update.

    Args:
        adapter: the adapter.
        where: its directory, for messages.

    Returns:
        One entry for each, layer 2 before layer 10.

    Raises:
        CheckpointError: if factors are missing or do not fit together.
    """
    _check_pairs(adapter, where)
    found = [_factored(adapter, path) for path in adapter.contents.factors]
    found += [_vera(adapter, path) for path in adapter.contents.vectors]
    return tuple(sorted(found, key=lambda module: _natural(module.path)))


def _check_pairs(adapter: Adapter, path: Path) -> None:
    """All broken pairs in one error."""
    wrong = []
    for name, pair in adapter.contents.factors.items():
        if set(pair) != {0, 1}:
            wrong.append(f"'{name}' has no {'lora_B' if 0 in pair else 'lora_A'}")
        elif min(pair[0].dim(), pair[1].dim()) < 2 or not _fit(pair[0], pair[1]):
            wrong.append(f"'{name}' has A {by(tuple(pair[0].shape))} and B {by(tuple(pair[1].shape))}")
    for name, vectors in adapter.contents.vectors.items():
        shared = adapter.contents.shared
        if set(vectors) != {"vera_b", "vera_d"} or set(shared) != {"vera_A", "vera_B"}:
            wrong.append(f"'{name}' lacks a vector, or the file the matrices that all modules share")
        elif len(vectors["vera_d"]) != len(shared["vera_A"]) or len(vectors["vera_b"]) > len(shared["vera_B"]):
            wrong.append(f"'{name}' has vectors that the shared matrices do not fit")
    if wrong:
        raise CheckpointError(
            "factors of the adapter do not fit together",
            where=str(path),
            got="; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            expected="for every module A of shape (R, I) and B of shape (O, R)",
            hint="the file is incomplete: save or download it again",
        )


def _fit(lora_A: Tensor, lora_B: Tensor) -> bool:
    """Whether A and B have one rank; each group of a convolution has its share of it."""
    rank, part = lora_A.shape[0], lora_B.shape[1]
    if lora_A.dim() == 2:
        return rank == part
    return bool(part) and rank % part == 0 and lora_B.shape[0] % (rank // part) == 0


def _factored(adapter: Adapter, path: str) -> ModuleFacts:
    own, scaling = adapter.own, adapter.scaling(path)
    lora_A, lora_B = adapter.factors(path)
    finite = bool(torch.isfinite(lora_A).all()) and bool(torch.isfinite(lora_B).all())
    values = adapter.spectrum(path) if finite else torch.full((0,), 0.0)
    noise = NOISE * abs(scaling) * float(lora_A.double().norm()) * float(lora_B.double().norm()) if finite else 0.0
    extras = adapter.contents.extras.get(path, {})
    slices = _noted(own, "slices").get(path) or []
    started = _noted(own, "starts").get(path)
    padded = _noted(own, "padded").get(path)
    rank = lora_A.shape[0]
    if slices:
        rank, scaling = sum(part["rank"] for part in slices), float(slices[0]["scaling"])
    elif started or padded:
        rank = int((started or padded or {})["rank"])
    embedding = adapter.contents.suffixes[path][0].startswith(".lora_embedding")
    return ModuleFacts(
        path=path,
        in_features=math.prod(lora_A.shape[1:]),
        out_features=lora_B.shape[0],
        rank=rank,
        scaling=scaling,
        **_sizes(torch.where(values > noise, values, 0.0), finite),
        kind="embedding" if embedding else "conv" if lora_A.dim() > 2 else "lora",
        slices=tuple(str(part["name"]) for part in slices),
        start=bool(started) or any(part.get("subtract") for part in slices),
        weight=path in (own.get("raw") or ()),
        shares=_noted(own, "twins").get(path),
        padding=path in (own.get("unworn") or ()),
        bias=float(extras["bias_B"].double().norm()) * abs(adapter.scaling(path)) if "bias_B" in extras else None,
        magnitude=_spread(extras["magnitude"]) if "magnitude" in extras else None,
    )


def _vera(adapter: Adapter, path: str) -> ModuleFacts:
    """diag(b) B diag(d) A, cut to the module's size; without a size the widest A gives a bound."""
    vectors, shared = adapter.contents.vectors[path], adapter.contents.shared
    size = _noted(adapter.own, "sizes").get(path)
    d, b = vectors["vera_d"].double(), vectors["vera_b"].double()
    lora_A = d[:, None] * shared["vera_A"].double()[:, : size[0] if size else None]
    lora_B = b[:, None] * shared["vera_B"].double()[: len(b)]
    finite = bool(torch.isfinite(lora_A).all()) and bool(torch.isfinite(lora_B).all())
    return ModuleFacts(
        path=path,
        in_features=int(size[0]) if size else None,
        out_features=len(b),
        rank=len(d),
        scaling=1.0,
        **_sizes(singular_values(lora_A, lora_B) if finite else torch.full((0,), 0.0), finite),
        kind="vera",
    )


def _sizes(values: Tensor, finite: bool) -> dict[str, Any]:
    """What a spectrum says."""
    return {
        "frobenius": float(values.square().sum().sqrt()) if finite else float("nan"),
        "spectral": float(values.max()) if finite and len(values) else 0.0 if finite else float("nan"),
        "effective_rank": effective_rank(values),
        "energy_90": energy_rank(values),
        "spectrum": tuple(values.tolist()),
    }


def _spread(values: Tensor) -> tuple[float, float, float]:
    wide = values.double()
    return float(wide.min()), float(wide.mean()), float(wide.max())


def _noted(own: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = own.get(name)
    return found if isinstance(found, Mapping) else {}


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key under which layer 2 stands before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def by(shape: tuple[int, ...]) -> str:
    """Write a shape.

    Args:
        shape: sizes.

    Returns:
        Text.

    Example:
        >>> by((3, 4)), by(())
        ('3x4', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"
