"""The table of rows."""

from __future__ import annotations

from deltaw.errors import ConfigError, nearest
from deltaw.paper.reproduce import e2e, glue, measured
from deltaw.paper.reproduce.row import Row

__all__ = ["ROWS", "row_named"]

ROWS: dict[str, Row] = {row.name: row for row in (*e2e.ROWS, *glue.ROWS, *measured.ROWS)}


def row_named(name: str) -> Row:
    """Find a row.

    Args:
        name: its name.

    Returns:
        The row.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    if name not in ROWS:
        raise ConfigError(
            f"there is no row {name!r}",
            where="deltaw paper run",
            got=name,
            expected=f"one of {len(ROWS)} rows; closest: {nearest(name, ROWS)}",
            hint="`deltaw paper run --list` lists them",
        )
    return ROWS[name]
