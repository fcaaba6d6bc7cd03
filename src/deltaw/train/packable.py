"""Whether the rows of a run are packed: asked for by the user, possible for the task, heeded by the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.errors import ConfigError
from deltaw.train.isolation import Isolation
from deltaw.train.trial import find_isolation, trial_rows

if TYPE_CHECKING:
    from torch import nn

    from deltaw.train.config import TrainConfig

__all__ = ["Packing", "check_task", "settle_packing"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What came of the setting.

    Args:
        asked: the setting; None where the user said nothing.
        isolation: how the model keeps packed examples apart; None where rows are not packed.
        reason: how, or why not; empty where it was not tried.
    """

    asked: bool | None = None
    isolation: Isolation | None = None
    reason: str = ""

    @property
    def note(self) -> str:
        """A line for the user where packing was asked for and is not done; else empty."""
        refused = self.asked and self.isolation is None
        return f"rows are not packed, although --packing asks for it: {self.reason}" if refused else ""


def check_task(config: TrainConfig, task: str) -> None:
    """Refuse packing for heads that read one position of each row, before anything is loaded.

    Args:
        config: the user's settings.
        task: ``causal``, ``classification`` or ``regression``.

    Raises:
        ConfigError: if packing is asked for and the task has no prediction for each token.
    """
    if config.optim.packing and task != "causal":
        raise ConfigError(
            "--packing needs a prediction for each token",
            where="optim.packing",
            got=f"task {task}: its head reads one position of each row, so that a row holds one example",
            expected="a language model (--task causal)",
            hint="drop --packing; --batch-tokens N alone fills batches of rows of similar length",
        )


def settle_packing(config: TrainConfig, task: str, model: nn.Module, examples: Any) -> Packing | None:
    """Try packing on the model where it is asked for.

    Args:
        config: the user's settings.
        task: ``causal``, ``classification`` or ``regression``.
        model: the base, on its device.
        examples: the training examples, with ``lengths``.

    Returns:
        What came of it; None where the task knows no packing.
    """
    asked = config.optim.packing
    if task != "causal":
        return None
    if not asked:
        return Packing(asked=asked)
    rows = trial_rows([int(length) for length in examples.lengths])
    isolation, reason = find_isolation(model, [examples[row] for row in rows])
    return Packing(asked=asked, isolation=isolation, reason=reason)
