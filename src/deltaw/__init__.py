"""LoRA for PyTorch: attach a low-rank update to any model, train it, prove what it does, then merge or export it.

The names load on first use, so that ``import deltaw`` costs nothing and the command line starts without torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from deltaw.version import __version__

if TYPE_CHECKING:
    from deltaw.adapter import Adapter
    from deltaw.algebra import CombineReport, ExtractReport, combine, extract
    from deltaw.attach import (
        AttachReport,
        DetachReport,
        activate,
        active,
        attach,
        attached,
        detach,
        disabled,
        draws,
        freeze,
        route,
        set_draws,
        trainable,
        unfreeze,
    )
    from deltaw.bank import AdapterBank
    from deltaw.check import CheckReport, Problem, check
    from deltaw.checkpoint import LoadReport, SaveReport, load, save
    from deltaw.config import LoRAConfig
    from deltaw.errors import DeltawError
    from deltaw.gather import eva_ranks
    from deltaw.head import linear_cross_entropy
    from deltaw.merge import MergeReport, UnmergeReport, merge, unmerge
    from deltaw.optim import param_groups
    from deltaw.sites import Plan, Site
    from deltaw.targets import plan

_HOME = {
    "Adapter": "adapter",
    "AdapterBank": "bank",
    "AttachReport": "attach",
    "CheckReport": "check",
    "CombineReport": "algebra",
    "DeltawError": "errors",
    "DetachReport": "attach",
    "ExtractReport": "algebra",
    "LoRAConfig": "config",
    "LoadReport": "checkpoint",
    "MergeReport": "merge",
    "Plan": "sites",
    "Problem": "check",
    "SaveReport": "checkpoint",
    "Site": "sites",
    "UnmergeReport": "merge",
    "activate": "attach",
    "active": "attach",
    "attach": "attach",
    "attached": "attach",
    "check": "check",
    "combine": "algebra",
    "detach": "attach",
    "disabled": "attach",
    "draws": "attach",
    "extract": "algebra",
    "eva_ranks": "gather",
    "freeze": "attach",
    "linear_cross_entropy": "head",
    "load": "checkpoint",
    "merge": "merge",
    "param_groups": "optim",
    "plan": "targets",
    "route": "attach",
    "save": "checkpoint",
    "set_draws": "attach",
    "trainable": "attach",
    "unfreeze": "attach",
    "unmerge": "merge",
}

__all__ = [
    "Adapter",
    "AdapterBank",
    "AttachReport",
    "CheckReport",
    "CombineReport",
    "DeltawError",
    "DetachReport",
    "ExtractReport",
    "LoRAConfig",
    "LoadReport",
    "MergeReport",
    "Plan",
    "Problem",
    "SaveReport",
    "Site",
    "UnmergeReport",
    "__version__",
    "activate",
    "active",
    "attach",
    "attached",
    "check",
    "combine",
    "detach",
    "disabled",
    "draws",
    "eva_ranks",
    "extract",
    "freeze",
    "linear_cross_entropy",
    "load",
    "merge",
    "param_groups",
    "plan",
    "route",
    "save",
    "set_draws",
    "trainable",
    "unfreeze",
    "unmerge",
]


class _Package(types.ModuleType):
    """The package, where a verb wins over the submodule of the same name (``attach``, ``merge``, ``check``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Ignore the import system's binding of a submodule that would hide a verb."""
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'deltaw' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"deltaw.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
