"""Training: from a model and a file of rows to a verified adapter.

``TrainConfig`` groups the settings, ``run`` carries them out, ``Callback`` hears what happens on the way. Names load
what they need when they are first used, so that the command line can read the settings without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltaw.train.batches import Batch
    from deltaw.train.callbacks import Callback, StepRecord, ValidRecord
    from deltaw.train.config import AdapterConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from deltaw.train.driver import run
    from deltaw.train.isolation import Isolation, segment_mask
    from deltaw.train.packed import pack
    from deltaw.train.packing import fill_rows
    from deltaw.train.report import RunReport
    from deltaw.train.settings import from_values, read_toml, to_toml
    from deltaw.train.signals import StopOnSignal
    from deltaw.train.trial import find_isolation, trial_rows

__all__ = [
    "AdapterConfig", "Batch", "Callback", "DataConfig", "Isolation", "ModelConfig", "OptimConfig", "RunConfig",
    "RunReport", "StepRecord", "StopOnSignal", "TrainConfig", "ValidRecord", "fill_rows", "find_isolation",
    "from_values", "pack", "read_toml", "run", "segment_mask", "to_toml", "trial_rows",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Callback", "StepRecord", "ValidRecord"), "callbacks"),
    **dict.fromkeys(
        ("AdapterConfig", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig", "TrainConfig"), "config"
    ),
    **dict.fromkeys(("from_values", "read_toml", "to_toml"), "settings"),
    **dict.fromkeys(("Isolation", "segment_mask"), "isolation"),
    **dict.fromkeys(("find_isolation", "trial_rows"), "trial"),
    "Batch": "batches",
    "RunReport": "report",
    "StopOnSignal": "signals",
    "fill_rows": "packing",
    "pack": "packed",
    "run": "driver",
}


def __getattr__(name: str) -> Any:
    """Load a name's module when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
