"""Plain-text tables and figures: how every report prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["count", "figures", "plural", "size", "table"]


def count(number: int) -> str:
    """A whole number with thousands separators.

    Args:
        number: any integer.

    Returns:
        Text.

    Example:
        >>> count(1234567)
        '1,234,567'
    """
    return f"{number:,}"


def plural(number: int, word: str) -> str:
    """A number of things.

    Args:
        number: how many.
        word: one of them.

    Returns:
        Text.

    Example:
        >>> plural(1, "step"), plural(1200, "step")
        ('1 step', '1,200 steps')
    """
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def figures(value: float) -> str:
    """A measured number with four significant figures.

    Args:
        value: any number.

    Returns:
        Text.

    Example:
        >>> figures(0.98765), figures(5.0), figures(70123.4), figures(1.5e9)
        ('0.9877', '5.000', '70,120', '1.5e+09')
    """
    if abs(value) >= 1e6 or value != value:
        return f"{value:.4g}"
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{value:#.4g}"


def size(num_bytes: float) -> str:
    """A number of bytes in the unit that suits it (powers of 1024).

    Args:
        num_bytes: bytes.

    Returns:
        Text such as ``1.5 MiB``.

    Example:
        >>> size(1536), size(3)
        ('1.5 KiB', '3 B')
    """
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}" if units[0] != "B" else f"{int(value)} B"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align columns: text to the left, numbers to the right.

    Args:
        header: column titles.
        rows: cells; integers get thousands separators.

    Returns:
        Lines joined by newlines, without trailing blanks.

    Example:
        >>> print(table(("name", "n"), [("a", 10), ("bb", 2000)]))
        name      n
        a        10
        bb    2,000
    """
    body = [list(row) for row in rows]
    cells = [list(header)] + [[count(c) if isinstance(c, int) else str(c) for c in row] for row in body]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(body) and all(isinstance(row[i], int | float) for row in body) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
