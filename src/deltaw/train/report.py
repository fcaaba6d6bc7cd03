"""What a run returns: numbers, files, and what to do next."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.reports import figures, plural
from deltaw.train.probe import duration
from deltaw.train.sample import Sample, quoted

__all__ = ["RunReport", "metric", "metrics_line", "shell"]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What came of a run; ``str`` is the closing page.

    Args:
        output: the output directory.
        method: as in ``--method``.
        steps: optimizer steps done, resumed ones included.
        total: steps that were planned.
        interrupted: whether the run was stopped from outside; it can be resumed.
        early: whether validation stopped improving.
        dry: whether everything ended before step 1.
        state: the state saved last.
        before: validation before step 1.
        after: validation of what was saved.
        last: validation after the last step, where an earlier step was better.
        best_step: the step that was saved.
        best_by: what made it the best.
        sample_before: an answer before step 1.
        sample_after: the answer to the same prompt after.
        applied: such as ``applied to 30/30 modules``.
        fidelity: one line on the merge of the adapter.
        seconds: wall time of the steps of this process.
        parameters: values that were trained.
        tokens: tokens that went through the model in them.
        peak_bytes: highest memory use.
        choices: every setting that was chosen or given, by configuration key.
        files: what was written, by name.
        next_commands: what can be run now.
        notes: lines the user should see.
    """

    output: Path
    method: str
    steps: int
    total: int
    interrupted: bool = False
    early: bool = False
    dry: bool = False
    state: Path | None = None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_by: str = "loss"
    sample_before: Sample | None = None
    sample_after: Sample | None = None
    applied: str = ""
    fidelity: str = ""
    seconds: float = 0.0
    parameters: int = 0
    tokens: int = 0
    peak_bytes: int = 0
    choices: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.dry:
            return f"dry run: {plural(self.total, 'step')} planned, nothing was written; drop --dry-run to train"
        lines = [
            f"{'interrupted' if self.interrupted else 'finished'} after {self.steps} of {plural(self.total, 'step')}"
        ]
        if self.early:
            lines[0] += ": validation stopped improving"
        lines += self._numbers()
        if self.sample_before is not None and self.sample_after is not None:
            first, second = self.sample_before, self.sample_after
            lines += ["", f"prompt:   {quoted(second.prompt)}", f"expected: {quoted(second.expected)}"]
            lines += [f"before:   {quoted(first.answer)}", f"after:    {quoted(second.answer)}"]
        lines += ["", *(line for line in (self.applied, self.fidelity, *self.notes) if line)]
        if self.files:
            lines.append(f"written to {self.output}: {', '.join(self.files)}")
        if self.next_commands:
            lines += ["next:", *(f"  {line}" for line in self.next_commands)]
        return "\n".join(lines)

    def _numbers(self) -> list[str]:
        lines = []
        if self.before and self.after:
            lines.append(f"validation before: {metrics_line(self.before)}")
            by = "" if self.best_by == "loss" else f" by {self.best_by}"
            chosen = f" (step {self.best_step}, the best{by})" if self.last else ""
            lines.append(f"validation after:  {metrics_line(self.after)}{chosen}{_change(self.before, self.after)}")
        if self.last:
            lines.append(f"the last step had: {metrics_line(self.last)}")
        if self.tokens and self.seconds:
            speed = self.tokens / self.seconds
            peak = f", peak memory {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""
            lines.append(f"{duration(self.seconds)} with validations and states, {speed:,.0f} tokens/s{peak}")
        return lines


def metrics_line(metrics: dict[str, float]) -> str:
    """Write metrics on one line.

    Args:
        metrics: name -> value.

    Returns:
        Text.

    Example:
        >>> metrics_line({"loss": 1.25, "perplexity": 3.4903})
        'loss 1.2500, perplexity 3.490'
    """
    return ", ".join(f"{name} {metric(name, value)}" for name, value in metrics.items())


def metric(name: str, value: float) -> str:
    """Write one metric: four decimals, and perplexity, which has no upper end, four significant figures.

    Args:
        name: which.
        value: of it.

    Returns:
        Text.
    """
    return figures(value) if name == "perplexity" or abs(value) >= 1e4 else f"{value:.4f}"


def _change(before: dict[str, float], after: dict[str, float]) -> str:
    """How far the loss fell, in percent."""
    start, end = before["loss"], after["loss"]
    if not start or not math.isfinite(start) or not math.isfinite(end):
        return ""
    if start == end:
        return ", unchanged"
    return f", {abs(1 - end / start):.1%} {'lower' if end <= start else 'HIGHER'}"


def shell(text: object) -> str:
    """Quote a word for a command line.

    Args:
        text: a path or value.

    Returns:
        The word, quoted where it must be.
    """
    import shlex

    return shlex.quote(str(text))


def payload(report: RunReport) -> dict[str, Any]:
    """Reduce a report to what JSON can hold.

    Args:
        report: the report.

    Returns:
        Plain values.
    """
    import dataclasses

    return dict(json.loads(json.dumps(dataclasses.asdict(report), default=str)))
