"""What is in an adapter: configuration, sizes, norms and spectra of its updates, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError
from deltaw.reports import count, table

__all__ = ["Inspection", "ModuleFacts", "effective_rank", "energy_rank", "inspect_adapter"]

MANY = 48
"""From this many modules on, the table has one row per kind of module."""


@dataclass(frozen=True, kw_only=True)
class ModuleFacts:
    """One module's update.

    Args:
        path: dotted module path.
        in_features: I.
        out_features: O.
        rank: R.
        scaling: factor on B A.
        frobenius: Frobenius norm of scaling * B A.
        spectral: its largest singular value.
        effective_rank: see ``effective_rank``; 0 for a zero update.
        energy_90: directions that hold 90% of the squared norm.
        spectrum: singular values, descending; empty where the tensors are not finite.
    """

    path: str
    in_features: int
    out_features: int
    rank: int
    scaling: float
    frobenius: float
    spectral: float
    effective_rank: float
    energy_90: int
    spectrum: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An adapter laid open; ``str`` is what ``deltaw inspect`` prints.

    Args:
        path: the directory.
        facts: name -> value of what is said about the whole.
        settings: the configuration in deltaw's terms.
        modules: one entry per module with a low-rank update.
        others: key -> shape of full copies and biases.
        warnings: what looks wrong or is missing.
        every: print every module, however many there are.
    """

    path: Path
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    modules: tuple[ModuleFacts, ...]
    others: Mapping[str, tuple[int, ...]]
    warnings: tuple[str, ...]
    every: bool = False

    def __str__(self) -> str:
        """Facts, the table of modules, warnings."""
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {_shown(value)}" for name, value in self.facts.items()]
        lines += ["config: " + ", ".join(f"{name} {value}" for name, value in self.settings.items()), ""]
        lines.append(self._table())
        if self.others:
            lines.append("trained in full: " + ", ".join(f"{key} {_by(shape)}" for key, shape in self.others.items()))
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _table(self) -> str:
        if not self.modules:
            return "no low-rank update"
        header = ("size", "rank", "scaling", "norm", "largest s.v.", "effective rank", "90% energy in")
        if self.every or len(self.modules) < MANY:
            return table(("module", *header), [(module.path, *_cells([module])) for module in self.modules])
        groups: dict[tuple[Any, ...], list[ModuleFacts]] = {}
        for module in self.modules:
            leaf = module.path.rpartition(".")[2]
            key = (leaf, module.in_features, module.out_features, module.rank, module.scaling)
            groups.setdefault(key, []).append(module)
        rows = [(leaf, len(group), *_cells(group)) for (leaf, *_), group in groups.items()]
        return table(("module", "count", *header), rows) + "\nmeans over the modules of a kind; --modules lists each"


def _cells(group: Sequence[ModuleFacts]) -> tuple[object, ...]:
    first = group[0]
    return (
        f"{first.in_features} -> {first.out_features}",
        first.rank,
        f"{first.scaling:g}",
        f"{fmean(module.frobenius for module in group):.4g}",
        f"{fmean(module.spectral for module in group):.4g}",
        f"{fmean(module.effective_rank for module in group):.2f}",
        f"{fmean(module.energy_90 for module in group):.3g}",
    )


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


def inspect_adapter(directory: str | Path, *, every: bool = False) -> Inspection:
    """Lay an adapter open; no model is needed.

    Args:
        directory: a PEFT directory.
        every: print every module, however many there are.

    Returns:
        What is in it.

    Raises:
        CheckpointError: if files are missing, damaged or incomplete.
    """
    path = Path(directory).expanduser()
    adapter = Adapter.open(path)
    _check_pairs(adapter, path)
    modules = tuple(_module(adapter, name) for name in sorted(adapter.modules(), key=_natural))
    rest = {**adapter.contents.base, **adapter.contents.rest}
    return Inspection(
        path=path,
        facts=_facts(adapter, path),
        settings=_settings(adapter),
        modules=modules,
        others={key: tuple(tensor.shape) for key, tensor in rest.items()},
        warnings=tuple(_warnings(adapter, modules)),
        every=every,
    )


def _check_pairs(adapter: Adapter, path: Path) -> None:
    """All broken pairs in one error."""
    wrong = []
    for name, pair in adapter.contents.factors.items():
        if set(pair) != {0, 1}:
            wrong.append(f"'{name}' has no {'lora_B' if 0 in pair else 'lora_A'}")
        elif pair[0].dim() != 2 or pair[1].dim() != 2 or pair[0].shape[0] != pair[1].shape[1]:
            wrong.append(f"'{name}' has A {_by(tuple(pair[0].shape))} and B {_by(tuple(pair[1].shape))}")
    if wrong:
        raise CheckpointError(
            "factors of the adapter do not fit together",
            where=str(path),
            got="; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            expected="for every module A of shape (R, I) and B of shape (O, R)",
            hint="the file is incomplete: save or download it again",
        )


def _module(adapter: Adapter, name: str) -> ModuleFacts:
    lora_A, lora_B = adapter.factors(name)
    finite = bool(torch.isfinite(lora_A).all()) and bool(torch.isfinite(lora_B).all())
    values = adapter.spectrum(name) if finite else torch.full((0,), 0.0)
    return ModuleFacts(
        path=name,
        in_features=lora_A.shape[1],
        out_features=lora_B.shape[0],
        rank=lora_A.shape[0],
        scaling=adapter.scaling(name),
        frobenius=float(values.square().sum().sqrt()) if finite else float("nan"),
        spectral=float(values.max()) if finite else float("nan"),
        effective_rank=effective_rank(values),
        energy_90=energy_rank(values),
        spectrum=tuple(values.tolist()),
    )


def _facts(adapter: Adapter, path: Path) -> dict[str, Any]:
    own = adapter.own
    fingerprint = own.get("fingerprint") or {}
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in adapter.tensors.values()})
    stored = sum(tensor.numel() * tensor.element_size() for tensor in adapter.tensors.values())
    return {
        "adapter": str(path),
        "base": adapter.raw.get("base_model_name_or_path"),
        "base fingerprint": fingerprint.get("id"),
        "task": adapter.raw.get("task_type"),
        "written by": f"deltaw {own['version']}" if "version" in own else None,
        "modules": len(adapter.modules()),
        "parameters": adapter.parameters,
        "tensor bytes": stored,
        "dtype": ", ".join(dtypes),
        "content hash": adapter.hash,
    }


def _settings(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    shown: dict[str, Any] = {"rank": config.rank, "alpha": config.alpha}
    targets = adapter.raw.get("target_modules")
    shown["targets"] = targets if isinstance(targets, str) else "+".join(map(str, targets or []))
    optional = {
        "dropout": config.dropout,
        "rank_stabilized": config.rank_stabilized,
        "bias": config.bias if config.bias != "none" else "",
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "train_also": "+".join(map(str, config.train_also)),  # type: ignore[arg-type]
    }
    return {**shown, **{name: value for name, value in optional.items() if value}}


def _warnings(adapter: Adapter, modules: Sequence[ModuleFacts]) -> Iterator[str]:
    broken = [key for key, tensor in adapter.tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        yield f"{len(broken)} tensors hold NaN or infinity, first '{broken[0]}'"
    zero = [module.path for module in modules if module.spectrum and module.spectral == 0]
    if zero and len(zero) == len(modules):
        yield "every update is zero: the adapter was never trained, or B was lost"
    elif zero:
        yield f"the update of {len(zero)} of {len(modules)} modules is zero, first '{zero[0]}'"
    lone = [m for m in modules if m.spectrum and m.rank >= 4 and 0 < m.effective_rank < m.rank / 8]
    if lone:
        yield f"{len(lone)} modules use less than an eighth of their rank, first '{lone[0].path}': a lower rank may do"
    if not modules:
        yield "there is no low-rank update in the file"
    if "fingerprint" not in adapter.own:
        yield "no base fingerprint: that the base is the one it was trained on cannot be checked"
    if not adapter.raw.get("base_model_name_or_path"):
        yield "the base is not named"


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key under which layer 2 stands before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _shown(value: object) -> str:
    if value is None:
        return "not recorded"
    return count(value) if isinstance(value, int) else str(value)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
