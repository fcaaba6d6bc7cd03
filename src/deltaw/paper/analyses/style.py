"""One look for all figures: colors that stay apart in grey, marks beside colors, bytes that depend on numbers alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "LINES", "MARKS", "SEQUENTIAL", "STYLE", "WARM", "brief", "heat", "look", "render"]

COLORS = ("#12355b", "#c4511d", "#5b9bd0", "#8c2f5b", "#e3a72f", "#2f6b4f", "#7a7a7a", "#b9b9b9")
"""Their lightness differs, so that neighbors stay apart without color."""
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
SEQUENTIAL, WARM = "Blues", "OrRd"
"""Color maps whose lightness falls steadily: shares, and what is lost."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "figure.titlesize": 10.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    # outlines are named by a hash, which is drawn anew each time unless it is salted
    "svg.hashsalt": "deltaw",
    "savefig.dpi": 130,
}

_FEW = 30
"""Up to so many cells a heat map says its numbers."""


def brief(label: str, most: int = 28) -> str:
    """The end of a dotted path that still tells which module it is.

    Args:
        label: module path.
        most: characters at most, where whole names can be left out.

    Returns:
        The path without its first names.

    Example:
        >>> brief("roberta.encoder.layer.11.attention.self.query")
        '11.attention.self.query'
    """
    while len(label) > most and "." in label:
        label = label.partition(".")[2]
    return label


def look(place: int) -> dict[str, Any]:
    """How the n-th series is drawn.

    Args:
        place: from 0 on.

    Returns:
        Color, mark and line style, for ``Axes.plot``; no two of the first 64 series have both color and mark alike.
    """
    again = place // len(COLORS)
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKS[(place + again) % len(MARKS)],
        "linestyle": LINES[(place + again) % len(LINES)],
        "markersize": 5,
    }


def render(draw: Callable[[Figure], None], size: tuple[float, float], form: str) -> bytes:
    """Draw a figure into memory, without a display and without touching matplotlib's settings.

    Args:
        draw: draws into an empty figure.
        size: width and height in inches.
        form: "png" or "svg".

    Returns:
        The file's content.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a file that said when and by what it was made would differ each time
    unsaid = {"png": ("Software", "Creation Time"), "svg": ("Date", "Creator")}[form]
    buffer = io.BytesIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **STYLE}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(buffer, format=form, metadata=dict.fromkeys(unsaid))
    return buffer.getvalue()


def heat(
    axes: Axes,
    grid: Sequence[Sequence[float]],
    *,
    x: Sequence[object],
    y: Sequence[object],
    limits: tuple[float, float],
    colors: str = SEQUENTIAL,
    form: str = "{:.2f}",
) -> Any:
    """A heat map with its ticks at the cells, and its numbers in them where there are few.

    Args:
        axes: where to draw.
        grid: rows from the top.
        x: labels of the columns.
        y: labels of the rows.
        limits: values at the ends of the color map.
        colors: name of the color map.
        form: how a number is written.

    Returns:
        The image, for a color bar.
    """
    image = axes.imshow(
        grid, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto", origin="upper", interpolation="nearest"
    )
    for spine in axes.spines.values():
        spine.set_visible(True)
    xs, ys = _every(len(x)), _every(len(y))
    axes.set_xticks(xs, [str(x[place]) for place in xs])
    axes.set_yticks(ys, [str(y[place]) for place in ys])
    if len(x) * len(y) <= _FEW:
        middle = (limits[0] + limits[1]) / 2
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                ink = "white" if value > middle else "black"
                axes.text(column, row, form.format(value), ha="center", va="center", color=ink, fontsize=7)
    return image


def _every(number: int) -> list[int]:
    """Places of at most nine ticks, the first among them, evenly apart."""
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1 << 30) if number <= 9 * s)
    return sorted({0, *range(step - 1, number, step)}) if step > 1 else list(range(number))
