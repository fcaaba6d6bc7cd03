"""A cheap identity of a base model: shapes and a few sampled values of the weights that an adapter touches.

The samples are compared in the coarser of the two dtypes, so that one checkpoint loaded in fp32, fp16 or bf16 is one
base. Only adapted weights are read, a few rows each, so a 7B model costs milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.layers import kind_of

__all__ = ["SAMPLES", "differences", "fingerprint", "from_sites"]

SAMPLES = 8
"""Values sampled from each weight."""
_SITES = 64
_MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}


def _sample(weight: Tensor) -> list[float] | None:
    """A few values spread over a weight; None where it has no plain values to read."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.is_meta or weight.dtype not in _MANTISSA:
        return None
    flat = weight.detach().reshape(-1)
    values: list[float] = flat[_places(flat.numel()).to(flat.device)].to(torch.float32).tolist()
    return values


@functools.lru_cache(maxsize=64)
def _places(count: int) -> Tensor:
    return torch.linspace(0, count - 1, SAMPLES, dtype=torch.float64).round().long()


def fingerprint(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Any]:
    """Describe a base by the weights an adapter touches.

    Args:
        modules: (path, module) of the adapted modules, in any order.

    Returns:
        A JSON-ready dictionary: ``id`` (short hash), ``dtype``, ``sites`` path -> [shape, samples or None].

    Example:
        >>> net = nn.Linear(2, 2); a = fingerprint([("fc", net)]); a == fingerprint([("fc", net)])
        True
    """
    chosen = sorted(modules, key=lambda item: item[0])
    step = max(1, -(-len(chosen) // _SITES))
    sites: dict[str, Any] = {}
    dtype = "float32"
    for index, (path, module) in enumerate(chosen):
        kind = kind_of(module)
        name = "weight" if kind is None else kind.parameter
        # the stored parameter first: the attribute may read as a weight with an adapter
        weight: Any = module._parameters.get(name)
        weight = getattr(module, name, None) if weight is None else weight
        if weight is None:
            continue
        dtype = str(weight.dtype).removeprefix("torch.")
        sites[path] = [list(weight.shape), _sample(weight) if index % step == 0 else None]
    return from_sites(dtype, sites)


def from_sites(dtype: str, sites: Mapping[str, Any]) -> dict[str, Any]:
    """A base's fingerprint put together from the entries of its modules.

    Args:
        dtype: of the sampled weights.
        sites: path -> [shape, samples or None].

    Returns:
        The fingerprint, as ``fingerprint`` returns it.
    """
    digest = hashlib.sha256(repr(sorted(sites.items())).encode()).hexdigest()[:16]
    return {"id": digest, "dtype": dtype, "sites": dict(sites)}


def _same(a: float, b: float, bits: int, spacing: float) -> bool:
    """Equal up to one unit in the last place of a mantissa of ``bits`` bits, or up to the spacing near zero."""
    return a == b or (a != a and b != b) or abs(a - b) <= max(max(abs(a), abs(b)) * 2.0**-bits, spacing)


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Where two fingerprints disagree.

    Args:
        saved: from the adapter's file.
        present: of the model at hand.

    Returns:
        One line per weight that differs; empty for the same base.
    """
    kinds = [getattr(torch, str(side.get("dtype", "float32")), torch.float32) for side in (saved, present)]
    same_dtype = kinds[0] == kinds[1]
    bits = min(_MANTISSA.get(kind, 7) for kind in kinds)
    # fp16 is subnormal below 6e-5, where weights of usual size do lie: its spacing is absolute there
    spacing = 2.0**-24 if torch.float16 in kinds else 0.0
    lines = []
    for path, (shape, values) in saved.get("sites", {}).items():
        other = present["sites"].get(path)
        if other is None:
            continue
        if other[0] != shape:
            lines.append(f"'{path}': shape {tuple(other[0])}, saved for {tuple(shape)}")
        elif values is not None and other[1] is not None:
            pairs = zip(values, other[1], strict=True)
            if not all(a == b if same_dtype else _same(a, b, bits, spacing) for a, b in pairs):
                lines.append(f"'{path}': other values than the base it was trained on")
    return lines
