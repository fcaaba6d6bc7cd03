"""What the verbs of adapter algebra share: the output directory, and the names of adapters on a command line."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltaw.cli._common import Output, as_path, next_commands
from deltaw.errors import ConfigError

if TYPE_CHECKING:
    from deltaw.adapter import Adapter

__all__ = ["facts", "free_place", "open_adapter", "output_option", "quoted", "rows", "say_written"]

F = TypeVar("F", bound=Callable[..., object])

output_option: Callable[[F], F] = click.option(
    "-o", "--output", required=True, metavar="DIR", help="Directory to make; it must not exist."
)


def open_adapter(source: str) -> Adapter:
    """Open an adapter by its directory.

    Args:
        source: what was typed.

    Returns:
        The adapter.
    """
    from deltaw.adapter import Adapter

    return Adapter.open(as_path(source))


def free_place(output: str) -> Path:
    """Refuse an output that exists, before anything is computed.

    Args:
        output: what was typed.

    Returns:
        The path.

    Raises:
        ConfigError: if something is there already.
    """
    place = as_path(output)
    if place.exists():
        raise ConfigError(
            "the output exists already",
            where=str(place),
            got="a directory" if place.is_dir() else "a file",
            expected="a path where nothing is",
            hint="choose another --output, or move the old one away.",
        )
    return place


def quoted(path: object) -> str:
    """A path as it is typed in a shell.

    Args:
        path: any path.

    Returns:
        The word.
    """
    return shlex.quote(str(path))


def facts(adapter: Adapter, place: Path, written: int) -> dict[str, Any]:
    """What a program wants to know about a written adapter.

    Args:
        adapter: the adapter.
        place: its directory.
        written: bytes of its files.

    Returns:
        The facts.
    """
    return {"path": place, "bytes": written, "hash": adapter.hash, "parameters": adapter.parameters}


def say_written(out: Output, adapter: Adapter, place: Path, written: int, *following: str) -> None:
    """Close a verb: what was written, and what to run now.

    Args:
        out: where words go.
        adapter: the adapter.
        place: its directory.
        written: bytes of its files.
        *following: complete command lines.
    """
    from deltaw.reports import size

    out.say(f"wrote {size(written)} to {place}, hash {adapter.hash[:12]}", next_commands(*following))


def rows(modules: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Reports of modules as plain rows.

    Args:
        modules: dataclasses.

    Returns:
        One dictionary for each.
    """
    return [dataclasses.asdict(module) for module in modules]
