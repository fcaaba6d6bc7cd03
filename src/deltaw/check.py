"""check: what would go wrong in silence, found and named.

Run it after the first backward; before that, gradients cannot be judged and the other findings still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltaw.layer import is_lora, is_shadowed
from deltaw.record import Record, record_of
from deltaw.tree import CONTAINER, base_modules, require_model

__all__ = ["CHECKS", "CheckReport", "Problem", "check"]


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        kind: short name of the problem.
        where: module path or parameter name.
        what: what was found.
        hint: what to do.
    """

    kind: str
    where: str
    what: str
    hint: str

    def __str__(self) -> str:
        """Two lines."""
        return f"{self.kind}: '{self.where}': {self.what}\n  hint: {self.hint}"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings.

    Args:
        problems: what was found; empty is good.
        judged: whether gradients were there to judge.
    """

    problems: tuple[Problem, ...]
    judged: bool

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def __str__(self) -> str:
        """Every finding, or one line."""
        tail = "" if self.judged else "\nnote: no gradient yet; check again after the first backward"
        return ("\n".join(map(str, self.problems)) or "no problem found") + tail


def _entries(record: Record) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(path, base module, adapter name, adapter module)."""
    for path, module in record.modules.items():
        for name, entry in (module._modules[CONTAINER]._modules if CONTAINER in module._modules else {}).items():  # type: ignore[union-attr]
            if entry is not None:
                yield path, module, name, entry


def _untrained(model: nn.Module, record: Record) -> Iterator[Problem]:
    """After a backward: adapters without a gradient were bypassed, or their block was recomputed without one."""
    active = {name for name, _ in record.current()}
    found = [(p, n, key, q) for p, _, n, e in _entries(record) for key, q in e.named_parameters() if q.requires_grad]
    if not any(q.grad is not None for *_, q in found):
        return
    for path, name, key, parameter in found:
        if parameter.grad is None and name in active:
            yield Problem(
                "untrained",
                f"{path}.{CONTAINER}.{name}.{key}",
                "no gradient after a backward",
                "its module was bypassed (weight read directly) or ran under reentrant checkpointing; use "
                "use_reentrant=False, or exclude the module.",
            )


def _changed(model: nn.Module, record: Record) -> Iterator[Problem]:
    """Modules that were replaced, re-classed or given a forward of their own since the attach."""
    present = dict(base_modules(model))
    for path, module in record.modules.items():
        if present.get(path) is not module:
            yield Problem(
                "replaced",
                path,
                "another module stands here since the attach",
                "detach before replacing modules, then attach again.",
            )
        elif not is_lora(module) and not any("_deltaw_base" in cls.__dict__ for cls in type(module).__mro__):
            yield Problem(
                "bypassed",
                path,
                f"its class is {type(module).__name__} now",
                "attach after the library that changes classes, or detach first.",
            )
        if is_shadowed(module):
            yield Problem(
                "shadowed",
                path,
                "an instance attribute 'forward' hides the adapter",
                "delete the attribute, or patch before attach.",
            )


def _placed(model: nn.Module, record: Record) -> Iterator[Problem]:
    """Adapters on another device than their weight."""
    for path, module, name, entry in _entries(record):
        weight: Any = module._parameters.get("weight")
        parameter = next(entry.parameters(), None)
        if weight is not None and parameter is not None and weight.device != parameter.device and not weight.is_meta:
            where, what = f"{path}.{CONTAINER}.{name}", f"on {parameter.device}, its weight on {weight.device}"
            hint = "move the whole model with model.to(device)."
            yield Problem("misplaced", where, what, hint)


def _precision(model: nn.Module, record: Record) -> Iterator[Problem]:
    """Trainable factors in a dtype in which small updates vanish."""
    for path, _, name, entry in _entries(record):
        for key, p in entry.named_parameters():
            if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16) and key.startswith(("lora_", "bias")):
                where, what = f"{path}.{CONTAINER}.{name}.{key}", f"trained in {p.dtype}"
                hint = "cast the base before attach, not after: factors are fp32 and cast in the forward."
                yield Problem("low precision", where, what, hint)


def _values(model: nn.Module, record: Record) -> Iterator[Problem]:
    """Adapters that are broken, or that do nothing and are not being trained."""
    idle: dict[str, bool] = {}
    for path, _, name, entry in _entries(record):
        for key, p in entry.named_parameters():
            if p.is_meta:
                continue
            if not bool(torch.isfinite(p).all()):
                yield Problem(
                    "not finite",
                    f"{path}.{CONTAINER}.{name}.{key}",
                    "NaN or infinity",
                    "go back to an earlier checkpoint and lower the learning rate.",
                )
        pairs: list[Any] = list(getattr(entry, "parts", tuple)())
        zero = bool(pairs) and not any(all(not t.is_meta and bool(t.any()) for t in pair.factors) for pair in pairs)
        training = any(p.requires_grad for p in entry.parameters())
        idle[name] = idle.get(name, True) and zero and not training
    for name, nothing in idle.items():
        if nothing:
            yield Problem(
                "does nothing",
                name,
                "every update is zero and none is trained",
                "the file may hold an untrained adapter; check where it was saved.",
            )


def _base_trains(model: nn.Module, record: Record) -> Iterator[Problem]:
    """Base parameters that require gradients."""
    for path, module in base_modules(model):
        for key, p in module._parameters.items():
            if p is not None and p.requires_grad:
                yield Problem(
                    "base trains",
                    f"{path}.{key}",
                    "a base parameter requires gradients",
                    "call requires_grad_(False) on it; use train_also to train a module in full.",
                )


CHECKS: tuple[Callable[[nn.Module, Record], Iterator[Problem]], ...] = (
    _untrained,
    _changed,
    _placed,
    _precision,
    _values,
    _base_trains,
)


def check(model: nn.Module) -> CheckReport:
    """Look for adapters that are bypassed, untrained, shadowed, misplaced, broken or without effect.

    Args:
        model: an attached model, best after its first backward.

    Returns:
        The findings.

    Raises:
        StateError: if nothing is attached or the model is merged.

    Example:
        >>> import deltaw as dw
        >>> net = nn.Sequential(nn.Linear(2, 2)); _ = dw.attach(net); net(torch.ones(1, 2)).sum().backward()
        >>> print(check(net))
        no problem found
    """
    root = require_model(model)
    record = record_of(root, "check")
    record.require_unmerged("check")
    judged = any(p.grad is not None for _, _, _, e in _entries(record) for p in e.parameters())
    return CheckReport(problems=tuple(p for one in CHECKS for p in one(root, record)), judged=judged)
