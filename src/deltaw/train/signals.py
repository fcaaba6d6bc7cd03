"""Ctrl-C and a polite kill as a callback: the run saves its state and stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from deltaw.train.callbacks import Callback

__all__ = ["StopOnSignal"]


class StopOnSignal(Callback):
    """Wants to stop after SIGINT or SIGTERM; the second signal ends the process as usual, saving nothing.

    It takes over the signals when the steps begin: before that there is nothing to save, and a signal acts at once.
    Used as a context manager, so that the handlers before are put back. Off the main thread it does nothing.

    Example:
        >>> with StopOnSignal() as stop:
        ...     stop.wants_stop()
        False
    """

    def __init__(self) -> None:
        self.stopping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        """Promise to put the handlers back."""
        return self

    def on_start(self, total: int, done: int) -> None:
        """Take over the two signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True

    def wants_stop(self) -> bool:
        """Say whether a signal came.

        Returns:
            True after the first.
        """
        return self.stopping
