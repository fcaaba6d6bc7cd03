"""Click's complaints about a command line, in the four-part form of ``deltaw.errors``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches

import click

from deltaw.cli._group import VERBS
from deltaw.errors import ConfigError, nearest
from deltaw.train.settings import alias_of

__all__ = ["explain"]


def explain(error: click.UsageError, words: Sequence[str]) -> ConfigError:
    """Turn one usage error into ours.

    Args:
        error: what click raised.
        words: the command line after the program's name.

    Returns:
        The error to raise instead; its exit code is 2.
    """
    context = error.ctx
    where = context.command_path if context is not None else _guess(words)
    typed = shlex.join(["deltaw", *words])
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error, where, typed)
    if context is not None and isinstance(context.command, click.Group):
        # Not a class of its own before click 8.2; the message has always quoted the name.
        unknown = re.match(r"No such command '(.*)'", error.message)
        return _unknown_verb(context, unknown.group(1) if unknown else "", where, typed)
    if isinstance(error, click.MissingParameter):
        return _missing(error, where, typed)
    if isinstance(error, click.BadParameter):
        return ConfigError(
            f"an option of {where!r} has a value it cannot take",
            where=_name(error.param, error.param_hint),
            got=error.message.rstrip("."),
            expected=_kind(error.param),
            hint=_nearest_choice(error, where),
        )
    return ConfigError(
        f"the command line of {where!r} cannot be read",
        where=where,
        got=f"{typed} ({error.format_message().rstrip('.')})",
        expected=_usage(context, where),
        hint=f"see {where} --help",
    )


def _nearest_choice(error: click.BadParameter, where: str) -> str:
    """The closest of the values an option takes, where what was typed resembles one."""
    typed = re.match(r"'(.*)' is not one of", error.message)
    if typed is None or not isinstance(error.param, click.Parameter) or not isinstance(error.param.type, click.Choice):
        return f"see {where} --help"
    return f"closest: {nearest(typed.group(1), map(str, error.param.type.choices), 1)}; see {where} --help"


def _guess(words: Sequence[str]) -> str:
    """The verb that was meant, where click does not say."""
    verb = next((word for word in words if word in VERBS), None)
    return f"deltaw {verb}" if verb else "deltaw"


def _unknown_option(error: click.NoSuchOption, where: str, typed: str) -> ConfigError:
    known = _options(error.ctx)
    # Where nothing is close, nearest() lists the first few: no answer to "did you mean".
    similar = get_close_matches(error.option_name, known, n=3, cutoff=0.6)
    close = nearest(error.option_name, similar) if similar else ""
    alias = alias_of(error.option_name)
    if alias is not None and alias.flag in known:
        close = repr(alias.flag)
    return ConfigError(
        f"{where!r} has no option {error.option_name!r}",
        where=where,
        got=typed,
        expected=f"one of its {len(known)} options" + (f"; closest: {close}" if close else ""),
        hint=f"did you mean {close.partition(',')[0]}? See {where} --help" if close else f"see {where} --help",
    )


def _unknown_verb(context: click.Context, tried: str, where: str, typed: str) -> ConfigError:
    assert isinstance(context.command, click.Group)
    known = context.command.list_commands(context)
    return ConfigError(
        f"{where!r} has no command {tried!r}" if tried else f"{where!r} needs a command",
        where=where,
        got=typed,
        expected=f"one of {', '.join(known)}",
        hint=f"did you mean {nearest(tried, known, 1)}? See {where} --help" if tried else f"see {where} --help",
    )


def _missing(error: click.MissingParameter, where: str, typed: str) -> ConfigError:
    name = _name(error.param, error.param_hint)
    return ConfigError(
        f"{where!r} needs {name}",
        where=where,
        got=typed,
        expected=_usage(error.ctx, where),
        hint=f"add {name}; see {where} --help",
    )


def _options(context: click.Context | None) -> list[str]:
    if context is None:
        return list(VERBS)
    names = {name for param in context.command.get_params(context) for name in (*param.opts, *param.secondary_opts)}
    return sorted(name for name in names if name.startswith("--"))


def _usage(context: click.Context | None, where: str) -> str:
    return context.get_usage().removeprefix("Usage: ") if context is not None else f"{where} [OPTIONS]"


def _name(param: click.Parameter | None, hint: Sequence[str] | str | None) -> str:
    if param is not None:
        return param.human_readable_name if isinstance(param, click.Argument) else param.opts[-1]
    return hint if isinstance(hint, str) else " / ".join(hint or ["a parameter"])


def _kind(param: click.Parameter | None) -> str:
    if param is None:
        return "a value of its type"
    if isinstance(param.type, click.Choice):
        return f"one of {', '.join(map(str, param.type.choices))}"
    return str(param.type.name)
