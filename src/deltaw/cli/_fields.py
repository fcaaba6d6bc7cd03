"""Flags made from the fields of a configuration group: one declaration for TOML, Python and the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from shlex import quote
from typing import Any, TypeVar

import click

from deltaw.errors import ConfigError
from deltaw.train.fields import FieldSpec, row_ids, specs, split

__all__ = ["field_options", "field_words", "take_fields"]

F = TypeVar("F", bound=Callable[..., object])

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "ints": int, "floats": float, "names": str}
_READERS: dict[str, Any] = {**_TYPES, "rows": row_ids}
_PAIRS = ("ints", "floats", "names", "rows")


_EXAMPLES = {"ints": "q_proj=16", "floats": "q_proj=16", "names": "a=b", "rows": "embed_tokens=32000,32005-32007"}


def field_options(group: type, section: str, skip: Collection[str] = ()) -> Callable[[F], F]:
    """Give a command one flag for each field of a group; a flag that is not given is None or empty.

    Args:
        group: a dataclass whose fields come from ``deltaw.train.fields.option``.
        section: its TOML section.
        skip: fields that get no flag.

    Returns:
        A decorator.
    """

    def decorate(function: F) -> F:
        for spec in reversed([spec for spec in specs(group, section) if spec.name not in skip]):
            function = _option(spec)(function)
        return function

    return decorate


def _option(spec: FieldSpec) -> Callable[[F], F]:
    name = f"{spec.section}__{spec.name}"
    text = spec.help
    if spec.kind == "bool":
        return click.option(f"{spec.flag}/--no-{spec.flag[2:]}", name, default=None, help=text)
    if spec.kind == "strings":
        return click.option(spec.flag, name, multiple=True, metavar="TEXT", help=_with_default(spec, text))
    if spec.kind in _PAIRS:
        return click.option(spec.flag, name, multiple=True, metavar="NAME=VALUE", help=text)
    kind = click.Choice(list(spec.choices)) if spec.choices else _TYPES[spec.kind]
    return click.option(spec.flag, name, type=kind, default=None, help=_with_default(spec, text))


def _with_default(spec: FieldSpec, text: str) -> str:
    if spec.default in (None, "", ()):
        return text
    shown = ", ".join(spec.default) if isinstance(spec.default, tuple) else spec.default
    return f"{text}  [default: {shown}]"


def take_fields(group: type, section: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of one group out of a command's flags.

    Args:
        group: the group given to ``field_options``.
        section: its TOML section.
        flags: all flags of the command; those of the group are removed.

    Returns:
        Field -> value, of the flags that were given.

    Raises:
        ConfigError: if a NAME=VALUE flag is none.
    """
    out = {}
    for spec in specs(group, section):
        value = flags.pop(f"{section}__{spec.name}", None)
        if value is None or value == ():
            continue
        if spec.commas:
            value = tuple(item for text in value for item in split(text))
        out[spec.name] = _pairs(spec, value) if spec.kind in _PAIRS else value
    return out


def _pairs(spec: FieldSpec, texts: Collection[str]) -> Mapping[str, Any]:
    table = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            if not (name and equals):
                raise ValueError
            table[name] = _READERS[spec.kind](value)
        except ValueError:
            raise ConfigError(
                f"{spec.flag} takes a name and a value",
                where=spec.flag,
                got=repr(text),
                expected=f"NAME=VALUE with {spec.expected().removeprefix('a table of ')}",
                hint=f"write it as in {spec.flag} {_EXAMPLES[spec.kind]}",
            ) from None
    return table


def field_words(group: type, section: str, given: Mapping[str, Any]) -> list[str]:
    """Write fields as the flags that would set them.

    Args:
        group: the group given to ``field_options``.
        section: its TOML section.
        given: field -> value, as from ``take_fields``.

    Returns:
        One text for each flag, quoted for a shell.
    """
    words = []
    for spec in specs(group, section):
        if spec.name in given:
            words += _words(spec, given[spec.name])
    return words


def _words(spec: FieldSpec, value: Any) -> list[str]:
    if spec.kind == "bool":
        return [spec.flag if value else f"--no-{spec.flag[2:]}"]
    if spec.kind == "rows":
        return [f"{spec.flag} {quote(name + '=' + ','.join(map(str, ids)))}" for name, ids in value.items()]
    if spec.kind in _PAIRS:
        return [f"{spec.flag} {quote(f'{name}={item}')}" for name, item in value.items()]
    if spec.commas:
        return [f"{spec.flag} {quote(','.join(value))}"]
    items = value if spec.kind == "strings" else (value,)
    return [f"{spec.flag} {quote(str(item))}" for item in items]
