"""The flags that say which model, and which rows of words the verbs print about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deltaw.ship.opening import ModelChoice, Opened

__all__ = ["model_options", "open_causal", "take_model"]

F = TypeVar("F", bound=Callable[..., object])

NAMES = ("model", "adapter", "device", "dtype", "allow_other_base")


def model_options(function: F) -> F:
    """Give a command the flags of ``ModelChoice``.

    Args:
        function: the function under ``click.command``.

    Returns:
        The same function, with the options added.
    """
    dtypes = click.Choice(["auto", "float32", "bfloat16", "float16"])
    for option in (
        click.option("--allow-other-base", is_flag=True, help="Accept an adapter trained on another base."),
        click.option("--dtype", type=dtypes, default="auto", show_default=True,
                     help="auto: float32 on a CPU, bfloat16 on a GPU; in merge, the base's own."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option("--adapter", metavar="DIR", help="Directory of a LoRA adapter or of a baseline."),
        click.option("--model", metavar="DIR|NAME", help="Base model; default: the one the adapter names."),
    ):  # fmt: skip
        function = option(function)
    return function


def take_model(flags: dict[str, Any]) -> ModelChoice:
    """Take the flags of ``model_options`` out of a command's flags.

    Args:
        flags: all flags of the command; those of the model are removed.

    Returns:
        The choice.
    """
    from deltaw.ship.opening import ModelChoice

    return ModelChoice(**{name: flags.pop(name) for name in NAMES})


def open_causal(choice: ModelChoice) -> Opened:
    """Open a model that is to write text.

    Args:
        choice: which model.

    Returns:
        The model, in eval mode, its adapter active.
    """
    from deltaw.cli._common import hush
    from deltaw.ship.opening import open_model

    hush()
    return open_model(choice, task="causal")
