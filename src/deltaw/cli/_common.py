"""What the verbs share: the options every verb has, and the one way they print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["Output", "as_path", "common_options", "hush", "next_commands", "plain", "stops_as_interrupts"]

F = TypeVar("F", bound=Callable[..., object])


def common_options(function: F) -> F:
    """Give a command ``--quiet``, ``--json`` and ``--debug``.

    The command receives ``quiet`` and ``as_json`` (both bool); ``--debug`` is read by ``deltaw.cli.main`` itself.

    Args:
        function: the function under ``click.command``.

    Returns:
        The same function, with the options added.
    """
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
    ):
        function = option(function)
    return function


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where a verb's words go.

    Args:
        quiet: print nothing but errors.
        as_json: print one JSON object at the end and nothing else.
    """

    quiet: bool = False
    as_json: bool = False

    @property
    def talks(self) -> bool:
        """Whether text for people is printed at all."""
        return not (self.quiet or self.as_json)

    def say(self, *parts: object) -> None:
        """Print parts for people, one a line: reports by their ``str``.

        Args:
            *parts: what to print.
        """
        if self.talks:
            for part in parts:
                print(part, flush=True)

    def finish(self, payload: Mapping[str, Any]) -> None:
        """Print the result for programs, where ``--json`` asked for it.

        Args:
            payload: the object; reports, paths and numbers that are not finite are made plain first.
        """
        if self.as_json:
            print(json.dumps(plain(payload), indent=2, allow_nan=False), flush=True)


def plain(value: object) -> Any:
    """Reduce a value to what JSON can hold.

    Args:
        value: reports (dataclasses), mappings, sequences, paths, numbers, text.

    Returns:
        The same in dict, list, str, int, float, bool and None; a float that is not finite becomes its name, because
        JSON has no word for it and null would hide it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def next_commands(*lines: str) -> str:
    """The closing lines of a verb: what to run now.

    Args:
        *lines: complete command lines.

    Returns:
        The block to print.
    """
    return "\n".join(["next:", *(f"  {line}" for line in lines)])


def hush() -> None:
    """Silence the progress bars and log lines of transformers: the verbs say themselves what happened."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def as_path(value: str | Path) -> Path:
    """Read a path of the command line; ``~`` is the home directory.

    Args:
        value: what was typed.

    Returns:
        The path.
    """
    return Path(value).expanduser()


@contextlib.contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Let a polite kill (SIGTERM) end a verb as Ctrl-C does, so that what it began to write is cleared away.

    Yields:
        None: while it does; off the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
