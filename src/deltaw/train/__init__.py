"""Training: from a model and a file of rows to a verified adapter.

``TrainConfig`` groups the settings, ``run`` carries them out, ``Callback`` hears what happens on the way. Names load
what they need when they are first used, so that the command line can read the settings without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltaw.train.callbacks import Callback, StepRecord, ValidRecord
    from deltaw.train.config import AdapterConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from deltaw.train.driver import run
    from deltaw.train.report import RunReport
    from deltaw.train.settings import from_values, read_toml, to_toml
    from deltaw.train.signals import StopOnSignal

__all__ = [
    "AdapterConfig", "Callback", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig", "RunReport", "StepRecord",
    "StopOnSignal", "TrainConfig", "ValidRecord", "from_values", "read_toml", "run", "to_toml",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Callback", "StepRecord", "ValidRecord"), "callbacks"),
    **dict.fromkeys(
        ("AdapterConfig", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig", "TrainConfig"), "config"
    ),
    **dict.fromkeys(("from_values", "read_toml", "to_toml"), "settings"),
    "RunReport": "report",
    "StopOnSignal": "signals",
    "run": "driver",
}


def __getattr__(name: str) -> Any:
    """Load a name's module when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
