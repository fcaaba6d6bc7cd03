"""What is in an adapter: configuration, sizes, norms and spectra of its updates, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from deltaw.adapter import Adapter
from deltaw.reports import count, plural, table
from deltaw.ship.module_facts import ModuleFacts, by, module_facts
from deltaw.train.vocabulary import tokens_of
from deltaw.variants import variant_of

__all__ = ["Inspection", "Rows", "inspect_adapter"]

MANY = 48
"""From this many modules on, the table has one row per kind of module."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Trained rows of one token table.

    Args:
        path: of the table.
        ids: which rows; empty where the configuration does not say.
        count: how many.
        width: numbers in a row.
        norm: mean norm of the rows themselves; how far they are from the base's is not known without it.
    """

    path: str
    ids: tuple[int, ...]
    count: int
    width: int
    norm: float

    def __str__(self) -> str:
        """One line."""
        shown = _ranges(self.ids) if self.ids else "ids not recorded"
        rows = plural(self.count, "row")
        return f"{self.path}: {rows} of {self.width:,} ({shown}), mean norm {self.norm:.4g}"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An adapter laid open; ``str`` is what ``deltaw inspect`` prints.

    Args:
        path: the directory.
        facts: name -> value of what is said about the whole.
        settings: the configuration in deltaw's terms.
        modules: one entry per module with a low-rank update.
        others: key -> shape of full copies and biases.
        rows: token tables of which some rows are trained.
        shared: matrices that all modules read, key -> shape.
        remarks: what the numbers do not say.
        warnings: what looks wrong or is missing.
        every: print every module, however many there are.
    """

    path: Path
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    modules: tuple[ModuleFacts, ...]
    others: Mapping[str, tuple[int, ...]]
    warnings: tuple[str, ...]
    rows: tuple[Rows, ...] = ()
    shared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    every: bool = False

    def __str__(self) -> str:
        """Facts, the table of modules, warnings."""
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {_shown(value)}" for name, value in self.facts.items()]
        lines += ["config: " + ", ".join(f"{name} {value}" for name, value in self.settings.items()), ""]
        lines.append(self._table())
        if self.shared:
            shapes = ", ".join(f"{key} {by(shape)}" for key, shape in self.shared.items())
            lines.append(f"shared by all modules, random and not trained: {shapes}")
        lines += [f"trained rows of {rows}" for rows in self.rows]
        if self.others:
            lines.append("trained in full: " + ", ".join(f"{key} {by(shape)}" for key, shape in self.others.items()))
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _table(self) -> str:
        if not self.modules:
            return "no low-rank update"
        more = ["bias norm"] if any(module.bias is not None for module in self.modules) else []
        more += ["magnitude, mean"] if any(module.magnitude is not None for module in self.modules) else []
        header = ("size", "rank", "scaling", "norm", "largest s.v.", "effective rank", "90% energy in", *more)
        if self.every or len(self.modules) < MANY:
            return table(("module", *header), [(_label(m), *_cells([m], more)) for m in self.modules])
        groups: dict[tuple[Any, ...], list[ModuleFacts]] = {}
        for module in self.modules:
            leaf = _label(module).rpartition(".")[2]
            key = (leaf, module.in_features, module.out_features, module.rank, module.scaling)
            groups.setdefault(key, []).append(module)
        rows = [(leaf, len(group), *_cells(group, more)) for (leaf, *_), group in groups.items()]
        return table(("module", "count", *header), rows) + "\nmeans over the modules of a kind; --modules lists each"


def _label(module: ModuleFacts) -> str:
    """The path as a target would name it."""
    return module.path + (f"[{','.join(module.slices)}]" if module.slices else "") + ("*" if module.weight else "")


def _cells(group: Sequence[ModuleFacts], more: Sequence[str]) -> tuple[object, ...]:
    first = group[0]
    width = "?" if first.in_features is None else str(first.in_features)
    cells: list[object] = [
        f"{width} -> {first.out_features}",
        first.rank,
        f"{first.scaling:g}",
        f"{fmean(module.frobenius for module in group):.4g}",
        f"{fmean(module.spectral for module in group):.4g}",
        f"{fmean(module.effective_rank for module in group):.2f}",
        f"{fmean(module.energy_90 for module in group):.3g}",
    ]
    if "bias norm" in more:
        cells.append(_mean([module.bias for module in group]))
    if "magnitude, mean" in more:
        cells.append(_mean([None if module.magnitude is None else module.magnitude[1] for module in group]))
    return tuple(cells)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.4g}" if known else "-"


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
    modules = module_facts(adapter, path)
    rest = {**adapter.contents.base, **adapter.contents.rest}
    return Inspection(
        path=path,
        facts=_facts(adapter, path, modules),
        settings=_settings(adapter, modules),
        modules=modules,
        others={key: tuple(tensor.shape) for key, tensor in rest.items()},
        rows=_rows(adapter),
        shared={name: tuple(tensor.shape) for name, tensor in adapter.contents.shared.items()},
        remarks=tuple(_remarks(adapter, modules)),
        warnings=tuple(_warnings(adapter, modules)),
        every=every,
    )


def _rows(adapter: Adapter) -> tuple[Rows, ...]:
    """Trained rows; PEFT's list of ids without a name is of the input embedding."""
    stated = adapter.raw.get("trainable_token_indices") or {}
    found = []
    for path, tensor in adapter.contents.rows.items():
        named = stated if isinstance(stated, dict) else {path: stated}
        # a name in the configuration may be an ending of the path
        ids = next((ids for name, ids in named.items() if path == name or path.endswith(f".{name}")), ())
        norm = float(tensor.double().norm(dim=-1).mean()) if tensor.dim() == 2 and len(tensor) else float("nan")
        found.append(Rows(path=path, ids=tuple(ids), count=len(tensor), width=tensor.shape[-1], norm=norm))
    return tuple(found)


def _ranges(ids: Sequence[int]) -> str:
    """Ids as ranges, a few of them."""
    runs: list[list[int]] = []
    for place in sorted(ids):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:6]]
    return "ids " + ", ".join(shown) + (", ..." if len(runs) > 6 else "")


def _facts(adapter: Adapter, path: Path, modules: Sequence[ModuleFacts]) -> dict[str, Any]:
    own = adapter.own
    fingerprint = own.get("fingerprint") or {}
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in adapter.tensors.values()})
    stored = sum(tensor.numel() * tensor.element_size() for tensor in adapter.tensors.values())
    return {
        "adapter": str(path),
        "base": adapter.raw.get("base_model_name_or_path"),
        "base fingerprint": fingerprint.get("id"),
        "task": adapter.raw.get("task_type") or adapter.metadata.get("task"),
        "written by": f"deltaw {own['version']}" if "version" in own else None,
        "kind": " + ".join(_variants(adapter)),
        "modules": len(modules),
        "parameters": adapter.parameters,
        "tensor bytes": stored,
        "dtype": ", ".join(dtypes),
        "content hash": adapter.hash,
    }


def _variants(adapter: Adapter) -> tuple[str, ...]:
    """Names of the variants, those that a PEFT configuration has no word for included."""
    noted = adapter.own.get("variant")
    names = noted if isinstance(noted, list) else adapter.config.variant
    return variant_of(tuple(map(str, names))).names


def _settings(adapter: Adapter, modules: Sequence[ModuleFacts]) -> dict[str, Any]:
    config = adapter.config
    shown: dict[str, Any] = {"rank": config.rank, "alpha": config.alpha}
    if variant_of(config.variant).shared is not None:
        shown = {"rank": config.rank, "seed": config.seed}
    elif modules and all(module.start for module in modules):
        # the file states the rank of the update and of what it started from together
        rank = max(module.rank for module in modules)
        shown = {"rank": f"{rank} (and a start of as many, taken off again)", "alpha": f"{config.alpha} in the file"}
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


def _remarks(adapter: Adapter, modules: Sequence[ModuleFacts]) -> Iterator[str]:
    new = tokens_of(adapter.metadata)
    if new:
        yield f"tokens added to the base's vocabulary: {', '.join(map(repr, new))}"
    if any(module.magnitude is not None for module in modules):
        yield (
            "dora: norm and spectrum are those of scaling * B A; the update is that and a new length for each row of "
            "the weight, and how far the magnitudes are from the base's is not known without it"
        )
    if any(module.start for module in modules):
        yield "the updates are B A less the product they started from; together they are a LoRA of twice the rank"
    twins = [module for module in modules if module.shares is not None]
    if twins:
        yield f"'{twins[0].path}' repeats the update of '{twins[0].shares}', whose weight it shares"
    if any(module.weight for module in modules):
        yield "* the weight itself is adapted, for others that read it"
    padding = [module.path for module in modules if module.padding]
    if padding:
        yield f"zeros written along because PEFT adapts them too: {', '.join(padding[:4])}"
    if any(module.in_features is None for module in modules):
        yield "input sizes are not in this file: norms are bounds, taken with the widest input"


def _warnings(adapter: Adapter, modules: Sequence[ModuleFacts]) -> Iterator[str]:
    broken = [key for key, tensor in adapter.tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        yield f"{len(broken)} tensors hold NaN or infinity, first '{broken[0]}'"
    real = [module for module in modules if not module.padding]
    # a magnitude or a bias may have learned where the product has not
    zero = [m.path for m in real if m.spectrum and m.spectral == 0 and m.magnitude is None and not m.bias]
    if zero and len(zero) == len(real):
        yield "every update is zero: the adapter was never trained, or B was lost"
    elif zero:
        yield f"the update of {len(zero)} of {len(real)} modules is zero, first '{zero[0]}'"
    lone = [m for m in real if m.spectrum and m.rank >= 4 and 0 < m.effective_rank < m.rank / 8]
    if lone:
        yield f"{len(lone)} modules use less than an eighth of their rank, first '{lone[0].path}': a lower rank may do"
    if not modules and not adapter.contents.rows:
        yield "there is no low-rank update in the file"
    if "fingerprint" not in adapter.own:
        yield "no base fingerprint: that the base is the one it was trained on cannot be checked"
    if not adapter.raw.get("base_model_name_or_path"):
        yield "the base is not named"


def _shown(value: object) -> str:
    if value is None:
        return "not recorded"
    return count(value) if isinstance(value, int) else str(value)
