"""loss.png: training and validation loss over steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from deltaw.disk import write_all

__all__ = ["plot_loss"]


def plot_loss(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the losses of a run into a PNG.

    Args:
        records: lines of metrics.jsonl.
        path: the file to write.
        title: over the plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, losses = _series(records, "step")
    valid, held = _series(records, "valid")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if steps:
        axes.plot(steps, losses, color="#9db7d5", lw=0.8, label="training, each step")
        axes.plot(steps, smoothed(losses), color="#1f5a96", label="training, smoothed")
    if valid:
        axes.plot(valid, held, color="#c4511d", marker="o", ms=4, label="validation")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.25)
    if steps or valid:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    # Without these two fields equal losses give equal files.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None, "Creation Time": None})
    write_all(path.parent, {path.name: buffer.getvalue()})


def _series(records: list[dict[str, Any]], kind: str) -> tuple[list[int], list[float]]:
    """Steps and losses of one kind of record."""
    chosen = [record for record in records if record["kind"] == kind]
    return [record["step"] for record in chosen], [record["loss"] for record in chosen]


def smoothed(values: list[float]) -> list[float]:
    """Smooth with an exponential mean whose start is corrected, over about a twentieth of the values.

    Args:
        values: any numbers.

    Returns:
        As many numbers.

    Example:
        >>> smoothed([1.0, 1.0, 1.0])
        [1.0, 1.0, 1.0]
    """
    decay = 1 - 1 / max(1, len(values) // 20)
    mean, out = 0.0, []
    for count, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        out.append(mean / (1 - decay**count) if decay else value)
    return out
