"""What a run tells while it runs; override what you want to hear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Callback", "Callbacks", "StepRecord", "ValidRecord"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step.

    Args:
        step: counted from 1.
        total: steps of the run.
        epoch: passes over the rows so far, fractional.
        loss: mean over the window's trained tokens (or rows), before the step.
        lr: the rate used.
        grad_norm: of all trained parameters, before clipping.
        trained: trained tokens (or rows) of the window.
        tokens: all its tokens, context included, padding left out.
        seconds: wall time of the step.
    """

    step: int
    total: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    trained: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ValidRecord:
    """One validation.

    Args:
        step: steps done.
        metrics: ``loss`` and what the task has beside it.
        best: whether no earlier one was as good, by the loss or the metric that ``run.best_by`` names.
        seconds: wall time.
    """

    step: int
    metrics: dict[str, float]
    best: bool
    seconds: float


class Callback:
    """Hears everything a run has to say; every method does nothing by itself."""

    def on_section(self, title: str, body: object) -> None:
        """Hear a finding, before step 1 or after the last.

        Args:
            title: a word or two.
            body: text, or something with a good ``str``.
        """

    def on_start(self, total: int, done: int) -> None:
        """Hear that the steps begin.

        Args:
            total: steps of the run.
            done: steps done before, by the run that is resumed.
        """

    def on_step(self, record: StepRecord) -> None:
        """Hear of a step.

        Args:
            record: its numbers.
        """

    def on_valid(self, record: ValidRecord) -> None:
        """Hear of a validation.

        Args:
            record: its numbers.
        """

    def on_save(self, path: Path) -> None:
        """Hear that a state was saved.

        Args:
            path: its directory.
        """

    def on_end(self, report: Any) -> None:
        """Hear that the run is over, finished or interrupted.

        Args:
            report: the ``RunReport``.
        """

    def wants_stop(self) -> bool:
        """Say whether the run should save its state and stop; asked before every batch.

        Returns:
            True to stop.
        """
        return False


class Callbacks(Callback):
    """Several callbacks as one.

    Args:
        members: told in this order.
    """

    def __init__(self, members: tuple[Callback, ...]) -> None:
        self.members = members

    def on_section(self, title: str, body: object) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_section(title, body)

    def on_start(self, total: int, done: int) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_start(total, done)

    def on_step(self, record: StepRecord) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_step(record)

    def on_valid(self, record: ValidRecord) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_valid(record)

    def on_save(self, path: Path) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_save(path)

    def on_end(self, report: Any) -> None:
        """Tell every member."""
        for member in self.members:
            member.on_end(report)

    def wants_stop(self) -> bool:
        """Ask every member; one that wants to stop is enough."""
        return any(member.wants_stop() for member in self.members)
