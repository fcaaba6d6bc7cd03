"""Declaring, checking and converting the fields of a configuration group.

A field carries its own help, flag, choices and range, so that the TOML reader, the command line and the checks all
speak of one declaration.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from deltaw.errors import ConfigError, nearest

__all__ = ["FieldSpec", "check_group", "option", "row_ids", "specs", "split"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """What is known of one field: enough to parse it, check it and describe it.

    Args:
        section: the TOML section, "" for a standalone group.
        name: the TOML key.
        kind: one of ``str int float bool strings ints floats names rows``; the last four are mappings from names.
        optional: whether None (chosen for the user) is a value.
        default: value where nothing is given.
        flag: the long option, with its dashes.
        help: one line for ``--help``.
        choices: the only values allowed, or ().
        low: smallest value allowed, or None.
        high: largest value allowed, or None.
        above: the value must be greater than this, or None.
        commas: a string is a list with commas.
    """

    section: str
    name: str
    kind: str
    optional: bool
    default: Any
    flag: str
    help: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    above: float | None
    commas: bool

    @property
    def key(self) -> str:
        """The dotted name, as in ``optim.lr``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def expected(self) -> str:
        """Describe the values allowed, for an error message.

        Returns:
            One phrase.
        """
        words = {
            "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false",
            "strings": "a list of strings", "ints": "a table of whole numbers", "floats": "a table of numbers",
            "names": "a table of strings", "rows": "a table of lists of whole numbers >= 0",
        }[self.kind]  # fmt: skip
        if self.choices:
            words = ("some of " if self.kind == "strings" else "one of ") + ", ".join(self.choices)
        bounds = [
            f"{sign} {value:g}"
            for sign, value in ((">", self.above), (">=", self.low), ("<=", self.high))
            if value is not None
        ]
        return " ".join([words, *([" and ".join(bounds)] if bounds else [])])


def option(
    default: Any,
    help: str,
    *,
    flag: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    commas: bool = False,
) -> Any:
    """Declare one field of a configuration group.

    Args:
        default: value where nothing is given; None means chosen for the user.
        help: one line for ``--help``.
        flag: the long option; the field's name with dashes where empty.
        choices: the only values allowed.
        low: smallest value allowed.
        high: largest value allowed.
        above: the value must be greater than this.
        commas: a string is a list with commas.

    Returns:
        A dataclass field.
    """
    metadata = {
        "help": help, "flag": flag, "choices": choices, "low": low, "high": high, "above": above, "commas": commas,
    }  # fmt: skip
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_KINDS = {str: "str", int: "int", float: "float", bool: "bool"}
_MAPPINGS = {int: "ints", float: "floats", str: "names", tuple[int, ...]: "rows"}


def _kind(hint: Any) -> tuple[str, bool]:
    """Name the kind of a type hint and whether it may be None."""
    optional = False
    if isinstance(hint, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        assert len(members) == 1
        hint, optional = members[0], True
    if hint in _KINDS:
        return _KINDS[hint], optional
    if typing.get_origin(hint) is tuple:
        return "strings", optional
    return _MAPPINGS[typing.get_args(hint)[1]], optional


@functools.cache
def specs(group: type, section: str = "") -> tuple[FieldSpec, ...]:
    """Describe every field of a group.

    Args:
        group: a dataclass whose fields come from ``option``.
        section: the TOML section it is read from.

    Returns:
        One description per field, in order.
    """
    hints = typing.get_type_hints(group)
    out = []
    for item in dataclasses.fields(group):
        kind, optional = _kind(hints[item.name])
        made = item.default_factory
        default = item.default if made is dataclasses.MISSING else made()
        meta = dict(item.metadata)
        meta["flag"] = meta["flag"] or "--" + item.name.replace("_", "-")
        out.append(FieldSpec(section=section, name=item.name, kind=kind, optional=optional, default=default, **meta))
    return tuple(out)


_WRONG = object()


def _scalar(kind: str, value: Any) -> Any:
    """The value as its kind, or ``_WRONG``; true is no number and 3.0 is no whole number."""
    if kind == "bool":
        return value if isinstance(value, bool) else _WRONG
    if kind == "str":
        return value if isinstance(value, str) else _WRONG
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _WRONG
    if kind == "int":
        return value if isinstance(value, int) else _WRONG
    return float(value)


_ITEM = {"strings": "str", "ints": "int", "floats": "float", "names": "str"}


def _convert(spec: FieldSpec, value: Any) -> Any:
    """The value in its own type, or ``_WRONG``."""
    if value is None:
        return None if spec.optional else _WRONG
    if spec.kind == "strings":
        if isinstance(value, str):
            value = split(value) if spec.commas else [value]
        if not isinstance(value, (list, tuple)):
            return _WRONG
        items = tuple(_scalar("str", item) for item in value)
        return _WRONG if _WRONG in items else items
    if spec.kind == "rows":
        return _rows(value)
    if spec.kind in _ITEM:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return _WRONG
        table = {name: _scalar(_ITEM[spec.kind], item) for name, item in value.items()}
        return _WRONG if _WRONG in table.values() else table
    return _scalar(spec.kind, value)


def split(text: str) -> list[str]:
    """Read a list with commas.

    Args:
        text: as written.

    Returns:
        The items, without the space around them.

    Example:
        >>> split("dora, lora_bias")
        ['dora', 'lora_bias']
    """
    return [item.strip() for item in text.split(",")]


def row_ids(text: str) -> tuple[int, ...]:
    """Read token ids.

    Args:
        text: ids and ranges with commas; a range includes its end.

    Returns:
        The ids.

    Raises:
        ValueError: if the text is none.

    Example:
        >>> row_ids("7,10-12")
        (7, 10, 11, 12)
    """
    found: list[int] = []
    for item in split(text):
        first, dash, last = item.partition("-")
        start, stop = int(first), int(last if dash else first)
        if stop < start:
            raise ValueError
        found += range(start, stop + 1)
    return tuple(found)


def _rows(value: Any) -> Any:
    """A table of token ids, each entry a list or a text of ids and ranges; or ``_WRONG``."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return _WRONG
    table: dict[str, tuple[int, ...]] = {}
    for name, ids in value.items():
        try:
            table[name] = row_ids(ids) if isinstance(ids, str) else tuple(ids)
        except (TypeError, ValueError):
            return _WRONG
        if not table[name] or not all(type(item) is int and item >= 0 for item in table[name]):
            return _WRONG
    return table


def _in_range(spec: FieldSpec, value: Any) -> bool:
    """Whether a converted value keeps to the choices and bounds."""
    if value is None:
        return True
    if spec.choices and not _chosen(spec, value):
        return False
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    return (
        value == value
        and (spec.low is None or value >= spec.low)
        and (spec.high is None or value <= spec.high)
        and (spec.above is None or value > spec.above)
    )


def _chosen(spec: FieldSpec, value: Any) -> bool:
    """Whether a value, or every item of a list, is one of the choices."""
    items = value if isinstance(value, tuple) else (value,)
    return bool(items) and all(item in spec.choices for item in items)


def _stray(spec: FieldSpec, given: Any) -> str | None:
    """The first text that is none of the choices."""
    items = split(given) if isinstance(given, str) else given if isinstance(given, (list, tuple)) else ()
    return next((item for item in items if isinstance(item, str) and item not in spec.choices), None)


def check_group(group: Any, section: str) -> None:
    """Convert and check every field of a frozen group in place; called from ``__post_init__``.

    Args:
        group: the dataclass instance.
        section: the TOML section, for messages.

    Raises:
        ConfigError: naming the key, for a wrong type, an unknown choice or a value out of range.
    """
    kind: type = type(group)
    for spec in specs(kind, section):
        given = getattr(group, spec.name)
        value = _convert(spec, given)
        if value is _WRONG or not _in_range(spec, value):
            hint = f"set {spec.flag}, or `{spec.name}` under [{section}] in the TOML file"
            stray = _stray(spec, given) if spec.choices else None
            if stray is not None:
                hint = f"closest: {nearest(stray, spec.choices, 1)}; {hint}"
            raise ConfigError(
                f"`{spec.key}` has a wrong value",
                where=f"{spec.flag} or [{section}] {spec.name}",
                got=repr(given),
                expected=spec.expected(),
                hint=hint,
            )
        object.__setattr__(group, spec.name, value)
