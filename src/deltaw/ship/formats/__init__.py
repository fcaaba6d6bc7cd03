"""Adapters of others: one importer a file, all behind ``open_any``.

To add a format: one file with a ``Format``, one line in ``FORMATS``. ``detect`` says why a file is of its format, or
None, and claims no file of another; ``read`` fills a ``Draft``. Checks against the base, errors, the adapter and the
report are common to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError, ConfigError, nearest
from deltaw.peft_config import from_peft
from deltaw.read import WEIGHTS
from deltaw.ship.formats.build import Imported, Mapped, build, unused
from deltaw.ship.formats.contract import Ask, Format, Source, parse_enable
from deltaw.ship.formats.diffusers import DIFFUSERS
from deltaw.ship.formats.draft import Draft
from deltaw.ship.formats.kohya import KOHYA
from deltaw.ship.formats.litgpt import LITGPT
from deltaw.ship.formats.loralib import LORALIB
from deltaw.ship.formats.mlx import MLX
from deltaw.ship.formats.peft import GROUPED, PLAIN
from deltaw.ship.formats.source import read_source
from deltaw.ship.formats.torchtune import TORCHTUNE
from deltaw.ship.formats.tree import Node, Tree

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FORMATS",
    "Ask",
    "Format",
    "Imported",
    "Mapped",
    "Node",
    "Source",
    "Tree",
    "checked_alpha",
    "detect",
    "open_any",
    "parse_enable",
    "read_any",
]

FORMATS: dict[str, Format] = {
    form.name: form for form in (PLAIN, GROUPED, LORALIB, LITGPT, KOHYA, DIFFUSERS, TORCHTUNE, MLX)
}
"""Importers by name."""


def open_any(
    path: str | Path,
    *,
    model: nn.Module | Iterable[str] | Tree | None = None,
    alpha: float | None = None,
    enable: str | Iterable[bool] | None = None,
    part: str | None = None,
    lora_only: bool = False,
    format: str | None = None,
    base_name: str | None = None,
) -> Adapter:
    """Open an adapter that any of the known tools wrote.

    Args:
        path: a file of tensors, or a directory with one.
        model: the base, on any device (meta will do), or the names of its modules: names are resolved and sizes checked
            against it.
        alpha: LoRA's alpha, for formats that do not store it.
        enable: trained parts of fused projections, for formats that do not store them: "q,v", or one bool per part.
        part: the component of a pipeline to take, such as "unet".
        lora_only: leave heads, biases and base weights in the file aside.
        format: name of the importer; detected where it is not given.
        base_name: what to write as the adapter's base.

    Returns:
        The adapter, in PEFT's terms.

    Raises:
        CheckpointError: if the file is damaged, of no known format, or holds a tensor without a place.
        ConfigError: if an argument is wrong or makes no difference.
    """
    ask = _ask(model, alpha, enable, part, lora_only, base_name)
    return read_any(path, ask, format=format).adapter


def read_any(path: str | Path, ask: Ask, *, format: str | None = None) -> Imported:
    """Open an adapter of others and say what became of every tensor.

    Args:
        path: a file of tensors, or a directory with one.
        ask: what a file cannot say itself.
        format: name of the importer; detected where it is not given.

    Returns:
        The adapter with a report.

    Raises:
        CheckpointError: if the file is damaged, of no known format, or holds a tensor without a place.
        ConfigError: if an argument is wrong or makes no difference.
    """
    source = read_source(path)
    form, reason = _choose(source, format)
    draft = Draft(where=str(source.path), title=form.title, tree=ask.tree, notes=list(source.notes))
    if form is PLAIN and "peft_type" in source.config:
        return _as_it_is(source, draft, ask, form, reason)
    form.read(source, ask, draft)
    return build(draft, ask, form, reason)


def detect(source: Source) -> dict[str, str]:
    """Every format a file may be of.

    Args:
        source: the file.

    Returns:
        Name -> why.
    """
    found = {name: form.detect(source.tensors, source.config) for name, form in FORMATS.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _choose(source: Source, asked: str | None) -> tuple[Format, str]:
    if asked is not None:
        if asked not in FORMATS:
            raise ConfigError(
                "there is no such format",
                where="--from",
                got=repr(asked),
                expected=f"one of {', '.join(FORMATS)}",
                hint=f"nearest: {nearest(asked, FORMATS, 1)}; without --from it is detected.",
            )
        return FORMATS[asked], "asked for"
    found = detect(source)
    if len(found) == 1:
        name, reason = next(iter(found.items()))
        return FORMATS[name], reason
    sample = sorted(source.tensors)
    raise CheckpointError(
        "the file may be of several formats" if found else "the file is of no format that deltaw knows",
        where=str(source.path),
        got=", ".join(sample[:3]) + (f", and {len(sample) - 3} more keys" if len(sample) > 3 else ""),
        expected="; ".join(f"{name}: {why}" for name, why in found.items())
        if found
        else f"one of {', '.join(FORMATS)}",
        hint="say which with --from NAME." if found else "see docs/formats.md for what each format looks like.",
    )


def _as_it_is(source: Source, draft: Draft, ask: Ask, form: Format, reason: str) -> Imported:
    """A complete PEFT directory needs no conversion: the adapter is the one that ``Adapter.open`` returns."""
    unused(draft, ask)
    if source.path == source.path.parent / WEIGHTS:
        adapter = Adapter.open(source.path.parent)
    else:
        from_peft(dict(source.config), str(source.path))
        adapter = Adapter(tensors=source.tensors, raw=source.config, metadata=source.metadata, where=str(source.path))
    if ask.base_name is not None:
        raw = {**adapter.raw, "base_model_name_or_path": ask.base_name}
        adapter = Adapter(tensors=adapter.tensors, raw=raw, metadata=adapter.metadata, where=adapter.where)
    mapped = []
    for path in adapter.modules():
        lora_A, lora_B = adapter.factors(path)
        shape = (lora_A[0].numel(), lora_B.shape[0])
        rank, scaling = lora_A.shape[0], adapter.scaling(path)
        mapped.append(Mapped(origin=path, path=path, rank=rank, scaling=scaling, shape=shape))
    rest = {**adapter.contents.base, **adapter.contents.rest}
    whole = [Mapped(origin=k, path=k, rank=0, scaling=1.0, shape=tuple(t.shape)) for k, t in sorted(rest.items())]
    return Imported(
        adapter=adapter,
        format=form.name,
        title=form.title,
        reason=reason,
        mapped=tuple(mapped),
        whole=tuple(whole),
        notes=("PEFT's own layout: tensors and configuration are taken as they are", *draft.notes),
        left=(),
    )


def _ask(
    model: nn.Module | Iterable[str] | Tree | None,
    alpha: float | None,
    enable: str | Iterable[bool] | None,
    part: str | None,
    lora_only: bool,
    base_name: str | None,
) -> Ask:
    tree: Tree | None = None
    base: Mapping[str, Any] = {}
    if isinstance(model, Tree):
        tree = model
    elif model is not None and hasattr(model, "named_modules"):
        tree = Tree.of_model(cast("nn.Module", model))
        to_dict = getattr(getattr(model, "config", None), "to_dict", None)
        base = to_dict() if callable(to_dict) else {}
    elif model is not None:
        tree = Tree.of_names(model)
    return Ask(
        tree=tree,
        base=base,
        base_name=base_name,
        alpha=checked_alpha(alpha),
        enable=parse_enable(enable) if isinstance(enable, str) else None if enable is None else tuple(enable),
        part=part,
        lora_only=lora_only,
    )


def checked_alpha(alpha: float | None) -> float | None:
    """Refuse an alpha that scales nothing.

    Args:
        alpha: as given.

    Returns:
        The same.

    Raises:
        ConfigError: if it is not a positive number.
    """
    if alpha is not None and not 0 < alpha < float("inf"):
        raise ConfigError(
            "alpha cannot be this",
            where="--alpha",
            got=repr(alpha),
            expected="a positive number",
            hint="give the alpha of the training run; the update is scaled by alpha / rank.",
        )
    return alpha
