"""What deltaw notes in a file's metadata, checked before anyone believes it.

Nothing there is needed to apply an adapter rightly; a damaged note is refused, because what it said (slices, ties, the
base's fingerprint) would otherwise be lost in silence.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any

from deltaw.errors import CheckpointError
from deltaw.fingerprint import SAMPLES

__all__ = ["read_notes"]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _factor(value: Any) -> bool:
    return _number(value) and value != 0


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _by_path(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _fields(**checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(check(value.get(name)) for name, check in checks.items())


def _rows(value: Any) -> bool:
    pairs = _each(lambda pair: _each(lambda n: n == 0 or _size(n))(pair) and len(pair) == 2 and pair[0] < pair[1])
    return pairs(value) and len(value) > 0


def _sample(value: Any) -> bool:
    """A weight's shape, and some of its values or None; a broken base's are not finite."""
    numbers = _each(lambda n: isinstance(n, int | float))
    if not (isinstance(value, list) and len(value) == 2 and numbers(value[0])):
        return False
    return value[1] is None or (numbers(value[1]) and len(value[1]) == SAMPLES)


def _fingerprint(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("dtype", "")) and _by_path(_sample)(value.get("sites", {}))


_NOTES: dict[str, Callable[[Any], bool]] = {
    "along": _each(_text),
    "config_sha256": _text,
    "fingerprint": _fingerprint,
    "padded": _by_path(_fields(rank=_size, scaling=_factor, alpha=lambda v: v is None or _factor(v))),
    "raw": _each(_text),
    "slices": _by_path(_each(_fields(name=_text, rank=_size, alpha=_factor, scaling=_factor, rows=_rows))),
    "starts": _by_path(_fields(rank=_size, alpha=_factor)),
    "twins": _by_path(_text),
    "unworn": _each(_text),
    "variant": _each(_text),
    "version": _text,
}
"""What each note must look like; a note of another name is another version's and is left alone."""


def read_notes(text: str | None, where: str) -> dict[str, Any]:
    """Parse deltaw's entry of a file's metadata.

    Args:
        text: the entry, or None where there is none.
        where: the file, for messages.

    Returns:
        name -> note; empty for files of others.

    Raises:
        CheckpointError: if the entry is damaged.

    Example:
        >>> read_notes('{"twins": {"head": "embed"}}', "here")
        {'twins': {'head': 'embed'}}
    """
    wrong = () if text is None else _wrong(text)
    if wrong:
        raise CheckpointError(
            "what deltaw noted in the file's metadata is damaged",
            where=where,
            got=", ".join(wrong),
            expected="what save() wrote there",
            hint="copy the adapter again; without its entry 'deltaw' in the metadata the file reads as any PEFT file.",
        )
    return {} if text is None else json.loads(text)


@functools.lru_cache(maxsize=8)
def _wrong(text: str) -> tuple[str, ...]:
    """Names of damaged notes."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return ("no JSON object",)
    return tuple(repr(name) for name, check in _NOTES.items() if name in found and not check(found[name]))
