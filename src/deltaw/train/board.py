"""The numbers of a run as tensorboard events."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError
from deltaw.train.callbacks import Callback, StepRecord, ValidRecord

__all__ = ["TensorboardCallback"]


class TensorboardCallback(Callback):
    """Writes losses, rates and speeds for tensorboard.

    Args:
        directory: where the events go.

    Raises:
        ConfigError: if tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard is not installed",
                where="--tensorboard or [run] tensorboard",
                got="no module named tensorboard",
                expected="the package tensorboard",
                hint="pip install 'deltaw[tensorboard]', or drop --tensorboard",
            ) from None
        self._open: Callable[[], Any] = functools.partial(SummaryWriter, str(directory))
        self._writer: Any = None

    def on_start(self, total: int, done: int) -> None:
        """Open the event file; steps after ``done`` that an earlier process wrote are superseded."""
        self._writer = self._open()

    def on_step(self, record: StepRecord) -> None:
        """Write a step's numbers."""
        for name in ("loss", "lr", "grad_norm"):
            self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)
        self._writer.add_scalar("train/tokens_per_second", record.tokens / max(record.seconds, 1e-9), record.step)

    def on_valid(self, record: ValidRecord) -> None:
        """Write a validation's numbers."""
        if self._writer is not None:
            for name, value in record.metrics.items():
                self._writer.add_scalar(f"valid/{name}", value, record.step)

    def on_end(self, report: Any) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
