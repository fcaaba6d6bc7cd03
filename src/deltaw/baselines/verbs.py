"""The verbs of baselines: attach and detach, merge and unmerge, disabled, trainable. They mean what LoRA's mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from deltaw.attach import attach as attach_lora
from deltaw.attach import detach as detach_lora
from deltaw.attach import disabled as disabled_lora
from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import NAME, Method, Piece
from deltaw.baselines.worn import RECORD, Swap, Worn, expand, find_worn, make_swaps, worn_of
from deltaw.checkpoint import load as load_lora
from deltaw.errors import StateError
from deltaw.fingerprint import fingerprint
from deltaw.layers import kind_of
from deltaw.record import find_record
from deltaw.reports import count, plural, table
from deltaw.tree import base_modules, require_model

__all__ = [
    "BaselineReport",
    "Fitting",
    "FoldReport",
    "attach",
    "attached",
    "detach",
    "disabled",
    "fit",
    "infix_length",
    "inserted_positions",
    "merge",
    "put_on",
    "report_of",
    "trainable",
    "unmerge",
]


@dataclass(frozen=True, kw_only=True)
class BaselineReport:
    """What a baseline trains.

    Args:
        method: its name.
        parameters: what the paper counts: the method's own trained values, a LoRA adapter's among them.
        head: values of the modules trained in full beside it, which the paper does not count.
        total: values of the base.
        tensors: number of trained tensors.
        notes: how it starts, and what a user should know.
    """

    method: str
    parameters: int
    head: int
    total: int
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A small table and the notes."""
        share = f"{self.parameters / self.total:.4%} of the base's {count(self.total)}" if self.total else ""
        rows = [[self.method, count(self.parameters), count(self.head), share]]
        head = table(["baseline", "trained", "head beside it", "share"], rows)
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A method made for a model, nothing of it put on.

    Args:
        method: what is to be attached.
        pieces: module path -> piece.
        swaps: parameter name -> original and copy.
        notes: the method's.
        fingerprint: of the base.
    """

    method: Method
    pieces: dict[str, Piece]
    swaps: dict[str, Swap]
    notes: tuple[str, ...]
    fingerprint: dict[str, Any]

    def tensors(self) -> dict[str, Parameter]:
        """Name everything that will be trained, but for a LoRA adapter's factors.

        Returns:
            Parameter name -> parameter.
        """
        found = {name: swap.trained for name, swap in self.swaps.items()}
        for path, piece in self.pieces.items():
            prefix = f"{path}.{NAME}." if path else f"{NAME}."
            found |= {prefix + name: parameter for name, parameter in piece.named_parameters()}
        return found


class _Refusal:
    """Stands in for ``save_pretrained``, whose files would hold pieces that nothing reads."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise StateError(
            "save_pretrained does not know of the attached baseline",
            where="save_pretrained",
            got="a model with trained pieces that no from_pretrained would read",
            expected="the baseline's own files",
            hint="call deltaw.baselines.save(model, directory), or detach first.",
        )


def fit(root: nn.Module, method: Method) -> Fitting:
    """Make a method's pieces and copies for a model; the model is not touched.

    Args:
        root: the plain base, unwrapped.
        method: what is to be attached.

    Returns:
        What ``put_on`` puts on.

    Raises:
        StateError: if the model wears something already.
        ModelError: if the model lacks a part that the method needs.
        ConfigError: if a setting does not fit the model.
    """
    if find_worn(root) is not None or find_record(root) is not None:
        raise StateError(
            "the model wears something already",
            where=type(root).__name__,
            got=find_worn(root).method.name if find_worn(root) else "a LoRA adapter",  # type: ignore[union-attr]
            expected="a plain base",
            hint="detach it first; LoRA beside a prefix is LoRAPrefixEmbedding or LoRAPrefixLayer.",
        )
    anatomy = Anatomy(root)
    heads = expand(root, method.train_also)
    pieces = method.pieces(anatomy)
    swaps = make_swaps(root, method.tuned(anatomy), heads)
    # heads may be fresh in every process: they are no part of the base's identity; a LoRA adapter's file has its own
    fresh = {name.rpartition(".")[0] for name in heads}
    known = [(path, module) for path, module in base_modules(root) if kind_of(module) is not None and path not in fresh]
    sampled = {} if method.low_rank is not None else fingerprint(known)
    return Fitting(
        method=method, pieces=pieces, swaps=swaps, notes=method.notes(anatomy), fingerprint=sampled,
    )  # fmt: skip


def put_on(root: nn.Module, fitting: Fitting, low_rank: Path | None = None, allow_other_base: bool = False) -> Worn:
    """Put a fitting on its model.

    Args:
        root: the model it was made for.
        fitting: from ``fit``.
        low_rank: directory of the LoRA adapter to wear beside it, where the method has one; None makes a fresh one.
        allow_other_base: let that adapter be one of another base.

    Returns:
        The model's new record.
    """
    flags = {name: parameter.requires_grad for name, parameter in root.named_parameters()}
    if fitting.method.low_rank is None:
        root.requires_grad_(False)
    elif low_rank is None:
        attach_lora(root, fitting.method.low_rank)
    else:
        load_lora(root, low_rank, trainable=True, allow_other_base=allow_other_base)
    worn = Worn(
        method=fitting.method, places=tuple(fitting.pieces), swaps=fitting.swaps, flags=flags,
        fingerprint=fitting.fingerprint,
    )  # fmt: skip
    for path, piece in fitting.pieces.items():
        module = root.get_submodule(path)
        module.add_module(NAME, piece.train(module.training))
        piece.hook(module, root)
    for swap in fitting.swaps.values():
        swap.put(root, swap.trained)
    root.__dict__[RECORD] = worn
    if fitting.pieces and hasattr(root, "save_pretrained"):
        root.__dict__["save_pretrained"] = _Refusal()
    return worn


def attach(model: nn.Module, method: Method) -> BaselineReport:
    """Put a baseline on a model: the base is frozen, what the method trains is trainable.

    Pieces stand beside their modules, which keep class, path and keys. Where the method trains parameters of the base
    itself (full, top-blocks, bias, heads), copies take their places and the originals are kept as they are.

    Args:
        model: a plain transformers model; ``Full`` takes any module.
        method: one of ``BASELINES``, with its settings.

    Returns:
        What is trained, counted as the paper counts.

    Raises:
        StateError: if the model wears something already.
        ModelError: if the model lacks a part that the method needs.
        ConfigError: if a setting does not fit the model.

    Example:
        >>> from deltaw.baselines import Full
        >>> net = nn.Linear(2, 2); attach(net, Full()).parameters
        6
    """
    root = require_model(model)
    fitting = fit(root, method)
    put_on(root, fitting)
    return report_of(root, fitting.notes)


def report_of(root: nn.Module, notes: tuple[str, ...]) -> BaselineReport:
    """Count what a model with a baseline trains.

    Args:
        root: the model.
        notes: lines to add.

    Returns:
        The report.
    """
    worn = worn_of(root, "count")
    own = worn.tensors(root)
    # a LoRA adapter counts its copies of whole modules as heads too
    beside = {name: p for name, p in root.named_parameters() if p.requires_grad and name not in own}
    copies = sum(p.numel() for name, p in beside.items() if ".module." in name)
    head = sum(swap.trained.numel() for swap in worn.swaps.values() if swap.head) + copies
    everything = sum(p.numel() for p in own.values()) + sum(p.numel() for p in beside.values())
    pieces = sum(p.numel() for name, p in own.items() if name not in worn.swaps)
    total = sum(p.numel() for _, p in root.named_parameters()) - pieces - sum(p.numel() for p in beside.values())
    return BaselineReport(
        method=worn.method.name, parameters=everything - head, head=head, total=total,
        tensors=len(own) + len(beside), notes=notes,
    )  # fmt: skip


def attached(model: nn.Module) -> Method | None:
    """Say which baseline a model wears.

    Args:
        model: any model.

    Returns:
        The method with its settings, or None.
    """
    worn = find_worn(model)
    return None if worn is None else worn.method


def inserted_positions(model: nn.Module) -> int:
    """Count the positions that a model puts into every input.

    Args:
        model: any model.

    Returns:
        lp + li; 0 for a model without a prefix.
    """
    return int(getattr(attached(model), "inserted", 0))


def infix_length(model: nn.Module) -> int:
    """Count the positions that a model puts between context and completion.

    Args:
        model: any model.

    Returns:
        li; 0 for a model without a prefix.
    """
    return int(getattr(attached(model), "infix_length", 0))


def trainable(model: nn.Module) -> list[tuple[str, Parameter]]:
    """Exactly the parameters that require gradients, each once.

    Args:
        model: a model with a baseline.

    Returns:
        (name, parameter), in module order; give the parameters to the optimizer.

    Raises:
        StateError: if no baseline is attached, or it is merged.
    """
    worn_of(model, "train").require_unmerged("train")
    return [(name, p) for name, p in require_model(model).named_parameters() if p.requires_grad]


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Run the base alone in this block; a LoRA adapter beside the baseline is off too.

    Parameters are exchanged in the model itself: the block holds for all threads.

    Args:
        model: a model with a baseline.

    Yields:
        None: while the base is alone.

    Raises:
        StateError: if no baseline is attached, or it is merged.
    """
    worn, root = worn_of(model, "disable"), require_model(model)
    worn.require_unmerged("disable")
    beside = nullcontext() if worn.method.low_rank is None else disabled_lora(root)
    worn.off += 1
    try:
        _switch(root, worn)
        with beside:
            yield
    finally:
        worn.off -= 1
        _switch(root, worn)


def _switch(root: nn.Module, worn: Worn) -> None:
    """Let the model be what the record's count of ``disabled`` blocks says."""
    for _, piece in worn.pieces(root):
        piece.off = bool(worn.off)
    for swap in worn.swaps.values():
        swap.put(root, swap.original if worn.off else swap.trained)


def detach(model: nn.Module) -> BaselineReport:
    """Take a baseline off: the base is what it was before ``attach``, bit for bit, down to what was trainable.

    What was trained is gone unless it was saved. Full fine-tuning and the last blocks too: their copies are dropped
    and the originals stand in their places again.

    Args:
        model: a model with a baseline.

    Returns:
        What was trained.

    Raises:
        StateError: if no baseline is attached, or it is merged.
    """
    worn, root = worn_of(model, "detach"), require_model(model)
    worn.require_unmerged("detach")
    report = report_of(root, ())
    pieces = dict(worn.pieces(root))
    for module in root.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) in pieces.values()]:
                del hooks[key]
                for marks in _hook_marks(module):
                    marks.pop(key, None)
    for path in pieces:
        del root.get_submodule(path)._modules[NAME]
    for swap in worn.swaps.values():
        swap.put(root, swap.original)
    del root.__dict__[RECORD]
    if isinstance(root.__dict__.get("save_pretrained"), _Refusal):
        del root.__dict__["save_pretrained"]
    if find_record(root) is not None:
        detach_lora(root)
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(worn.flags.get(name, parameter.requires_grad))
    return report


def _hook_marks(module: nn.Module) -> tuple[dict[int, bool], ...]:
    """torch's notes on hooks, by the hook's number."""
    return (
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks_with_kwargs,
    )


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What ``merge`` or ``unmerge`` did.

    Args:
        method: the baseline.
        tensors: number of tensors written.
        merged: whether the trained values stand in the base now.
    """

    method: str
    tensors: int
    merged: bool

    def __str__(self) -> str:
        """One line."""
        what = "stand in the base's own parameters" if self.merged else "are the base's own again"
        return f"{self.method}: the values of {plural(self.tensors, 'tensor')} {what}"


@torch.no_grad()
def merge(model: nn.Module) -> FoldReport:
    """Write what was trained into the base, which then is a plain model.

    Args:
        model: a model with a baseline that trains parameters of the base: full, top-blocks or bias.

    Returns:
        What was written.

    Raises:
        StateError: if the method has no plain model (adapters, prefixes), or the model is merged already.
    """
    worn, root = worn_of(model, "merge"), require_model(model)
    worn.require_unmerged("merge")
    if worn.method.unmergeable:
        raise StateError(
            f"{worn.method.name} cannot be merged",
            where=f"{worn.method.name} on {type(root).__name__}",
            got=worn.method.unmergeable,
            expected="a method that trains the base's own parameters: full, top-blocks or bias",
            hint="keep the model with what is attached; deltaw.baselines.save writes it.",
        )
    for swap in worn.swaps.values():
        swap.kept = swap.original.detach().clone()
        swap.original.copy_(swap.trained)
        swap.put(root, swap.original)
    worn.merged = True
    return FoldReport(method=worn.method.name, tensors=len(worn.swaps), merged=True)


@torch.no_grad()
def unmerge(model: nn.Module) -> FoldReport:
    """Undo ``merge``: the base's own bits are written back, and the copies stand beside them again.

    Args:
        model: a merged model.

    Returns:
        What was written.

    Raises:
        StateError: if the model is not merged.
    """
    worn, root = worn_of(model, "unmerge"), require_model(model)
    if not worn.merged:
        raise StateError(
            "cannot unmerge: nothing is merged",
            where=worn.method.name,
            got="the base beside what is trained",
            expected="a merged model",
            hint="call deltaw.baselines.merge(model) first.",
        )
    for swap in worn.swaps.values():
        assert swap.kept is not None
        swap.original.copy_(swap.kept)
        swap.kept = None
        swap.put(root, swap.trained)
    worn.merged = False
    return FoldReport(method=worn.method.name, tensors=len(worn.swaps), merged=False)
