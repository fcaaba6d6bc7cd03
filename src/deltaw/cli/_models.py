"""Opening a model and its adapter for the verbs that use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from deltaw.errors import CheckpointError, ConfigError

__all__ = ["ModelChoice", "Opened", "base_of", "model_options", "open_model"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The flags that say which model.

    Args:
        model: local directory or hub name of the base; None takes the one the adapter names.
        adapter: adapter directory, or None for the base alone.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16 or float16.
        allow_other_base: wear an adapter that was trained on a base with another fingerprint.
    """

    model: str | None = None
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    allow_other_base: bool = False


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model ready for use, in eval mode, its adapter active where there is one.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        source: where the base came from.
        adapter: where the adapter came from, or None.
        report: what loading the adapter said, or None.
    """

    model: Any
    tokenizer: Any
    source: str
    adapter: str | None
    report: object | None


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
        click.option("--dtype", type=dtypes, default="auto", show_default=True, help="Number format of the base."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option("--adapter", metavar="DIR", help="Adapter directory."),
        click.option("--model", metavar="DIR|NAME", help="Base model; default: the one the adapter names."),
    ):
        function = option(function)
    return function


def base_of(choice: ModelChoice) -> str:
    """Say which base is meant: the one given, or the one the adapter was trained on.

    Args:
        choice: the flags.

    Returns:
        A directory or hub name.

    Raises:
        ConfigError: if neither is given.
        CheckpointError: if the adapter does not name its base.
    """
    if choice.model is not None:
        return choice.model
    if choice.adapter is None:
        raise ConfigError(
            "no model is given",
            where="--model",
            got="neither --model nor --adapter",
            expected="a base model, an adapter that names its base, or both",
            hint="add --model DIR, --adapter DIR, or both",
        )
    file = Path(choice.adapter) / "adapter_config.json"
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "the adapter's configuration cannot be read",
            where=str(file),
            got=f"{type(error).__name__}: {error}",
            expected="a JSON object with base_model_name_or_path",
            hint="check the path after --adapter, or name the base with --model",
        ) from None
    if not named:
        raise CheckpointError(
            "the adapter does not name its base",
            where=str(file),
            got=f"base_model_name_or_path = {named!r}",
            expected="a directory or a hub name",
            hint="name the base with --model",
        )
    return str(named)


def open_model(choice: ModelChoice, *, task: str = "causal") -> Opened:
    """Load base, tokenizer and, where one is given, the adapter.

    Args:
        choice: the flags.
        task: "causal", "classification" or "regression".

    Returns:
        The model in eval mode.

    Raises:
        ModelError: if the base cannot be loaded.
        CheckpointError: if the adapter cannot.
    """
    import deltaw as dw
    from deltaw.cli._common import hush

    hush()
    source = base_of(choice)
    model, tokenizer = _load_base(source, choice, task)
    report = None
    if choice.adapter is not None:
        report = dw.load(model, choice.adapter, allow_other_base=choice.allow_other_base)
    return Opened(model=model.eval(), tokenizer=tokenizer, source=source, adapter=choice.adapter, report=report)


def _load_base(source: str, choice: ModelChoice, task: str) -> tuple[Any, Any]:
    from deltaw.train.config import ModelConfig
    from deltaw.train.model import base_config, load_model, load_tokenizer, pick_device, pick_dtype

    declared = base_config(source)
    device, _ = pick_device(choice.device)
    dtype, _ = pick_dtype(choice.dtype, device, "lora")
    tokenizer, _ = load_tokenizer(source)
    labels = () if task == "causal" else [str(name) for _, name in sorted((declared.id2label or {}).items())]
    loaded = load_model(
        ModelConfig(path=source),
        task=task,
        method="lora",
        device=device,
        dtype=dtype,
        pad_id=tokenizer.pad_token_id,
        labels=labels,
    )
    return loaded.model, tokenizer
