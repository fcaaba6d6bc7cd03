"""What the analyses' commands share: where table and figure go, and lists of numbers on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltaw.cli._common import Output, as_path, next_commands
from deltaw.errors import ConfigError

if TYPE_CHECKING:
    from deltaw.paper.analyses.result import Analysis

__all__ = ["base_subject", "byte_count", "numbers", "output_option", "publish", "timing_options", "title_of"]

F = TypeVar("F", bound=Callable[..., object])

output_option: Callable[[F], F] = click.option(
    "-o", "--output", metavar="DIR", help="Write table and figure there: .txt, .csv, .json, .png, .svg."
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|MB|GB|TB)?", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def timing_options(function: F) -> F:
    """Give a command ``--device``, ``--dtype`` and ``--seed``.

    Args:
        function: the function under ``click.command``.

    Returns:
        The same function, with the options added.
    """
    dtypes = click.Choice(["float32", "bfloat16", "float16"])
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of tokens and random weights."),
        click.option("--dtype", type=dtypes, default="float32", show_default=True, help="Of the base's weights."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    ):
        function = option(function)
    return function


def base_subject(source: str, *, device: str, dtype: str, seed: int) -> Any:
    """Bring up the model to time.

    Args:
        source: directory, cached hub name, or preset.
        device: as typed.
        dtype: as typed.
        seed: of random weights.

    Returns:
        The model.
    """
    import torch

    from deltaw.cli._common import hush
    from deltaw.paper.analyses.subjects import subject
    from deltaw.train.model import pick_device

    hush()
    return subject(source, device=pick_device(device)[0], dtype=getattr(torch, dtype), seed=seed)


def title_of(source: str) -> str:
    """What a title calls a model: the last name of its directory, or a name as it is.

    Args:
        source: as typed.

    Returns:
        The name.
    """
    place = as_path(source)
    return place.resolve().name if place.is_dir() else source


def publish(out: Output, result: Analysis, output: str | None, *following: str) -> None:
    """Print a result and, where asked, write its files.

    Args:
        out: where words go.
        result: the result.
        output: the directory as typed, or None.
        *following: what to run now.
    """
    files = result.save(as_path(output)) if output is not None else ()
    out.say(result)
    if files:
        out.say(f"wrote {', '.join(file.name for file in files[:5])}"
                f"{f' and {len(files) - 5} more' if len(files) > 5 else ''} to {output}")  # fmt: skip
    out.say(next_commands(*following))
    out.finish({**result.payload(), "files": files})


def numbers(text: str, flag: str, count: int | None = None) -> tuple[int, ...]:
    """Read a list of counts, such as 1,16,32.

    Args:
        text: as typed.
        flag: for the message.
        count: how many there must be; None takes any number.

    Returns:
        The numbers.

    Raises:
        ConfigError: if it is no such list.

    Example:
        >>> numbers("1, 16,32", "--batch")
        (1, 16, 32)
    """
    parts = [part.strip() for part in text.split(",")]
    good = all(part.isdecimal() and int(part) >= 1 for part in parts)
    if not good or len(parts) != (count or len(parts)):
        raise ConfigError(
            "this is no list of counts",
            where=flag,
            got=repr(text),
            expected=f"{count or 'one or more'} whole numbers of at least 1, with commas between them",
            hint=f"for example {flag} {','.join(['1', '8', '64'][: count or 3])}.",
        )
    return tuple(map(int, parts))


def byte_count(text: str, flag: str) -> int:
    """Read a number of bytes, such as 350GB.

    Args:
        text: as typed; units are powers of 1000.
        flag: for the message.

    Returns:
        Bytes.

    Raises:
        ConfigError: if it is none.

    Example:
        >>> byte_count("37.5 MB", "--adapter-bytes"), byte_count("12", "--adapter-bytes")
        (37500000, 12)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            "this is no number of bytes",
            where=flag,
            got=repr(text),
            expected="a number with B, kB, MB, GB or TB, in powers of 1000",
            hint=f"for example {flag} 35MB.",
        )
    return round(float(found[1]) * _BYTES[(found[2] or "B").lower()])
