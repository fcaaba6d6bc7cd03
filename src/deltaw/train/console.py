"""The run on a terminal: sections before step 1, one live line while it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from deltaw.train.callbacks import Callback, StepRecord, ValidRecord
from deltaw.train.probe import duration
from deltaw.train.report import metrics_line

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["ConsoleReporter"]

# On a pipe or a file a live line would be a thousand lines: one is printed for each tenth of the run instead.
PLAIN_LINES = 10


class ConsoleReporter(Callback):
    """Prints what a run tells.

    Args:
        console: where to.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._valid, self._loss, self._rate, self._begin, self._steps = "", 0.0, 0.0, 0.0, 0

    def on_section(self, title: str, body: object) -> None:
        """Print a finding under its title."""
        self._stop_bar()
        self.console.print(Text(title, style="bold"))
        # A Text keeps its marks; anything else is printed as it is, without rich's own markup.
        text = body if isinstance(body, Text) else Text(str(body).rstrip())
        for line in text.split("\n"):
            self.console.print(Text("  ") + line)
        self.console.print()

    def on_start(self, total: int, done: int) -> None:
        """Open the progress bar."""
        self._begin, self._total = time.perf_counter(), total
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"), console=self.console,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=total, completed=done, left="?")
        self._progress.start()

    def on_step(self, record: StepRecord) -> None:
        """Move the bar, or print a line now and then."""
        self._steps += 1
        # Of a twentieth of the run, ten steps at most: a longer mean would show a short run losses long past.
        part = max(1 / self._steps, 1 / max(1, min(10, record.total // 20)))
        self._loss += part * (record.loss - self._loss)
        rate = record.tokens / max(record.seconds, 1e-9)
        self._rate += part * (rate - self._rate)
        left = (time.perf_counter() - self._begin) / self._steps * (record.total - record.step)
        words = f"loss {self._loss:.4f}{self._valid}  {self._rate:,.0f} tokens/s"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=record.step, description=words, left=duration(left))
        elif record.step == record.total or record.step % max(1, record.total // PLAIN_LINES) == 0:
            self.console.print(f"step {record.step}/{record.total}  {words}  lr {record.lr:.3g}  left {duration(left)}")

    def on_valid(self, record: ValidRecord) -> None:
        """Print a validation; the bar shows the newest."""
        self._valid = f"  val {record.metrics['loss']:.4f}"
        best = "  best so far" if record.best and record.step else ""
        self.console.print(Text(f"step {record.step}: validation {metrics_line(record.metrics)}{best}"))

    def on_end(self, report: Any) -> None:
        """Print the closing page."""
        self._stop_bar()
        self.console.print()
        self.console.print(Text(str(report)))

    def close(self) -> None:
        """Give the terminal back, after an error too."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
