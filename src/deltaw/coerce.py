"""What users write into LoRAConfig, brought to one form, or refused by the field's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltaw.errors import ConfigError

__all__ = ["as_flag", "as_layers", "as_mapping", "as_names", "as_patterns", "as_rows", "as_seed"]

_SEEDS = range(-(2**63), 2**64)
"""What torch's generators take."""


def _refuse(name: str, value: object, expected: str, hint: str) -> ConfigError:
    return ConfigError(
        "this value is of the wrong kind", where=f"LoRAConfig.{name}", got=repr(value), expected=expected, hint=hint
    )


def _several(value: object) -> tuple[Any, ...] | None:
    """The items of a sequence or a set, or None; sets in sorted order, so that every process sees the same."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return None
    return tuple(sorted(value, key=str)) if isinstance(value, set | frozenset) else tuple(value)


def as_patterns(name: str, value: object) -> tuple[Any, ...]:
    """One pattern or several; a lone string is one pattern, not its letters.

    Args:
        name: the field.
        value: what was given.

    Returns:
        Strings, types and predicates.

    Raises:
        ConfigError: if it is something else.

    Example:
        >>> as_patterns("targets", "q_proj"), as_patterns("targets", ["q", "v"])
        (('q_proj',), ('q', 'v'))
    """
    lone = isinstance(value, str | type) or callable(value)
    found: tuple[Any, ...] | None = () if value is None else (value,) if lone else _several(value)
    if found is None or not all(isinstance(item, str | type) or callable(item) for item in found):
        raise _refuse(
            name, value, "patterns: names, types or predicates", 'write a name or a list, such as ["q_proj"].'
        )
    return found


def as_mapping(name: str, value: object) -> dict[str, Any]:
    """A mapping whose keys are patterns.

    Args:
        name: the field.
        value: what was given.

    Returns:
        A dictionary.

    Raises:
        ConfigError: if it is no mapping of strings.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _refuse(name, value, "pattern -> value", 'write {"q_proj": ...}, or leave the field out.')
    return dict(value)


def as_rows(name: str, value: object) -> dict[str, tuple[Any, ...]]:
    """Token ids by pattern.

    Args:
        name: the field.
        value: what was given.

    Returns:
        Pattern -> ids, not checked yet.

    Raises:
        ConfigError: if it is no mapping of strings to sequences.
    """
    found = {key: _several(rows) for key, rows in as_mapping(name, value).items()}
    if any(rows is None for rows in found.values()):
        raise _refuse(name, value, "pattern -> token ids", 'write {"embed_tokens": [32000, 32001]}.')
    return {key: rows or () for key, rows in found.items()}


def as_names(name: str, value: object) -> tuple[str, ...]:
    """Names in a sequence, or in one string with commas or plus signs between them.

    Args:
        name: the field.
        value: what was given.

    Returns:
        The names.

    Raises:
        ConfigError: if they are no strings.

    Example:
        >>> as_names("variant", "dora + lora_bias")
        ('dora', 'lora_bias')
    """
    found = value.replace("+", ",").split(",") if isinstance(value, str) else _several(value)
    if found is None or not all(isinstance(item, str) for item in found):
        raise _refuse(name, value, "names", 'write a name such as "dora", or a list of names.')
    return tuple(item.strip() for item in found)


def as_layers(name: str, value: object) -> tuple[int, ...] | str | None:
    """Indices of blocks.

    Args:
        name: the field.
        value: what was given.

    Returns:
        Indices, a string to be read against the model, or None for all.

    Raises:
        ConfigError: if they are no whole numbers.
    """
    if value is None or isinstance(value, str):
        return value
    found = (value,) if isinstance(value, int) else _several(value)
    if found is None or not all(isinstance(index, int) and not isinstance(index, bool) for index in found):
        raise ConfigError(
            "a block index is a whole number",
            where=f"LoRAConfig.{name}",
            got=repr(value),
            expected="integers",
            hint='write integers, "0-3,7" or "last:4".',
        )
    return tuple(found)


def as_flag(name: str, value: object) -> bool:
    """A yes or no.

    Args:
        name: the field.
        value: what was given.

    Returns:
        The same.

    Raises:
        ConfigError: if it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise _refuse(name, value, "True or False", "write True or False.")
    return value


def as_seed(name: str, value: object) -> int | None:
    """A seed.

    Args:
        name: the field.
        value: what was given.

    Returns:
        The same.

    Raises:
        ConfigError: if torch's generators do not take it.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value not in _SEEDS:
        raise _refuse(name, value, "a whole number of at most 64 bits, or None", "use any small number, such as 0.")
    return value
