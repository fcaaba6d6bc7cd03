"""check: what would go wrong in silence, found and named.

Run it after the first backward; before that, gradients cannot be judged and the other findings still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltaw.checks.finding import Problem, View
from deltaw.checks.numbers import broken, idle, misplaced, precision, stray_copies
from deltaw.checks.ranks import drifted, unwrapped
from deltaw.checks.reach import changed, untrained, vanished
from deltaw.checks.ties import tied, untied
from deltaw.checks.training import base_trains, inactive, unoptimized
from deltaw.record import record_of
from deltaw.tree import require_model

__all__ = ["CHECKS", "CheckReport", "Problem", "check"]

CHECKS: tuple[Callable[[View], Iterator[Problem]], ...] = (
    untrained,
    vanished,
    changed,
    misplaced,
    precision,
    stray_copies,
    broken,
    idle,
    inactive,
    unoptimized,
    base_trains,
    tied,
    untied,
    unwrapped,
    drifted,
)
"""Every search, in the order in which findings are told."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings.

    Args:
        problems: what is wrong; empty is good.
        judged: whether gradients were there to judge.
        remarks: what may be meant and is worth knowing.
    """

    problems: tuple[Problem, ...]
    judged: bool
    remarks: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        """Every finding, or one line."""
        lines = [*map(str, self.problems)] or ["no problem found"]
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(
            lines + ([] if self.judged else ["note: no gradient yet; check again after the first backward"])
        )


def check(model: nn.Module, *, optimizer: Any = None, across_ranks: bool = False) -> CheckReport:
    """Look for adapters that are bypassed, untrained, unsynchronized, tied, misplaced, broken or without effect.

    Args:
        model: an attached model, best after its first backward; with several processes, the wrapper itself.
        optimizer: the optimizer in use; it must hold what is trained.
        across_ranks: compare adapters and gradients between processes; every process must call at the same time.

    Returns:
        The findings.

    Raises:
        StateError: if nothing is attached or the model is merged.

    Example:
        >>> import torch, deltaw as dw
        >>> net = nn.Sequential(nn.Linear(2, 2)); _ = dw.attach(net); net(torch.ones(1, 2)).sum().backward()
        >>> print(check(net))
        no problem found
    """
    root = require_model(model)
    record = record_of(root, "check")
    record.require_unmerged("check")
    view = View(given=model, root=root, record=record, optimizer=optimizer, across_ranks=across_ranks)
    found = [problem for search in CHECKS for problem in search(view)]
    return CheckReport(
        problems=tuple(problem for problem in found if not problem.meant),
        judged=view.judged(),
        remarks=tuple(problem for problem in found if problem.meant),
    )
