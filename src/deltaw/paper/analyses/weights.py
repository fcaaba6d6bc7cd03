"""The weights that an adapter changes, read from the base's files: nothing is loaded that is not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.parts import parts_of
from deltaw.errors import CheckpointError
from deltaw.fit import fit
from deltaw.paper.analyses.base import AgainstBase, against_base
from deltaw.paper.analyses.pieces import chosen, pieces_of
from deltaw.ship.ondisk import Unstreamable, on_disk
from deltaw.ship.opening import labels_of, task_of
from deltaw.sites import BaseView
from deltaw.train.config import ModelConfig
from deltaw.train.model import base_config, load_model

__all__ = ["base_model", "subspace_base", "weights_of"]


def base_model(source: str, adapter: Adapter) -> Any:
    """The base of an adapter, its parameters views of its files where that can be.

    Args:
        source: local directory or hub name.
        adapter: the adapter, which may say what the base is for.

    Returns:
        A model in eval mode; nothing may write to its parameters.

    Raises:
        ModelError: if the base cannot be loaded.
    """
    declared = base_config(source)
    task = task_of(adapter, declared)
    labels = () if task == "causal" else labels_of(adapter, declared)
    task = "regression" if task == "classification" and len(labels) == 1 else task
    try:
        return on_disk(source, task=task, labels=labels, dtype=torch.float32).model
    except Unstreamable:
        cpu = torch.device("cpu")
        loaded = load_model(
            ModelConfig(path=source), task=task, method="lora", device=cpu, dtype=torch.float32,
            pad_id=declared.pad_token_id or 0, labels=labels,
        )  # fmt: skip
        return loaded.model.eval()


def weights_of(
    model: Any, adapter: Adapter, *, allow_other_base: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The matrices that an adapter changes.

    Args:
        model: its base.
        adapter: the adapter.
        allow_other_base: accept a base that differs from the one recorded.

    Returns:
        Label, as ``pieces_of`` has it, -> W of shape (O, K), a view where it can be; and notes.

    Raises:
        CheckpointError: if the adapter does not fit.
    """
    landed = fit(model, adapter, allow_other_base=allow_other_base)
    found: dict[str, Tensor] = {}
    for site in landed.plan.sites:
        for part in site.parts:
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.rows]) if part.rows else None
            label = f"{site.path}[{part.name}]" if part.name else site.path
            found[label] = BaseView(site.kind, site.module, rows).matrix().flatten(1)
    return found, tuple(landed.notes)


def subspace_base(
    adapter: Adapter,
    source: str,
    *,
    modules: Sequence[str] = (),
    directions: Sequence[int] = (),
    side: str = "A",
    seed: int = 0,
    allow_other_base: bool = False,
) -> AgainstBase:
    """Figure 8 and Table 7 for an adapter and the base in a directory.

    Args:
        adapter: the adapter.
        source: its base: local directory or hub name.
        modules: names or globs; empty means all.
        directions: numbers of directions for Table 7; empty takes each update's rank.
        side: "A" or "B", of the overlaps.
        seed: of what is random.
        allow_other_base: accept a base that differs from the one recorded.

    Returns:
        The tables and grids.

    Raises:
        ModelError: if the base cannot be loaded.
        CheckpointError: if the adapter does not fit it, or is no LoRA.
        ConfigError: if a name matches nothing, or more directions are asked for than an update has.
    """
    pieces = pieces_of(adapter)
    wanted = chosen(pieces, modules, adapter.where)
    weights, notes = weights_of(base_model(source, adapter), adapter, allow_other_base=allow_other_base)
    lost = [label for label in wanted if label not in weights]
    if lost:
        raise CheckpointError(
            "the base has no weight of its own for an update",
            where=f"{adapter.where} on {source}",
            got=", ".join(map(repr, lost[:3])),
            expected="a weight for every update",
            hint="a weight that two modules share is looked at under its first path: choose others with --module.",
        )
    magnitudes = parts_of(adapter).magnitudes
    if magnitudes:
        notes += (f"DoRA: Delta W is B A alone; the magnitudes of {len(magnitudes)} modules are not in it",)
    return against_base(
        {label: pieces[label] for label in wanted},
        weights,
        directions=directions,
        side=side,
        seed=seed,
        names=(adapter.where, source),
        notes=notes,
    )
