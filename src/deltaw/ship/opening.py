"""Opening a base with its adapter for use: which base, which task, how many labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltaw.adapter import Adapter
from deltaw.attach import disabled
from deltaw.baselines import Stored, is_baseline
from deltaw.baselines import disabled as baseline_disabled
from deltaw.baselines import load as load_baseline
from deltaw.baselines import merge as merge_baseline
from deltaw.checkpoint import load
from deltaw.errors import CheckpointError, ConfigError
from deltaw.merge import merge
from deltaw.read import BASELINE_CONFIG, CONFIG
from deltaw.train.config import ModelConfig
from deltaw.train.imprint import FORM, LABELS, TASK, PromptForm
from deltaw.train.model import base_config, load_model, load_tokenizer, pick_device, pick_dtype
from deltaw.train.vocabulary import add_tokens, grow, tokens_of

__all__ = [
    "MERGED",
    "ModelChoice",
    "Opened",
    "base_alone",
    "base_of",
    "fold",
    "form_of",
    "labels_of",
    "open_model",
    "stored_dtype",
    "task_of",
]

MERGED = "deltaw_merge.json"
"""Beside a merged model: what was merged, how faithful it is, and the form of its prompts."""

Worn = Adapter | Stored
"""What an adapter directory may hold: a LoRA adapter, or one of the paper's baselines."""

_HEADS = ("score", "classifier", "classification_head")


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model is meant.

    Args:
        model: local directory or hub name of the base; None takes the one the adapter names.
        adapter: directory of a LoRA adapter or of a baseline, or None for the base alone.
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
        task: "causal", "classification" or "regression".
        labels: class names, for classification.
        heads: modules that the base's files do not hold: without an adapter that carries them they answer at random.
        form: how prompts were written in training, or None where nothing says it.
        report: what loading the adapter said, or None.
        new_tokens: tokens that the tokenizer and the model have beyond the base's.
    """

    model: Any
    tokenizer: Any
    source: str
    adapter: str | None
    task: str
    labels: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    form: PromptForm | None = None
    report: Any = None
    new_tokens: tuple[str, ...] = ()


def base_of(choice: ModelChoice) -> str:
    """Say which base is meant: the one given, or the one the adapter was trained on.

    Args:
        choice: the model and the adapter.

    Returns:
        A directory or hub name.

    Raises:
        ConfigError: if neither is given.
        CheckpointError: if the adapter cannot be read, or does not name its base.
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
    named = _open(choice.adapter).raw.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(
            "the adapter does not name its base",
            where=str(Path(choice.adapter) / (BASELINE_CONFIG if is_baseline(choice.adapter) else CONFIG)),
            got=f"base_model_name_or_path = {named!r}",
            expected="a directory or a hub name",
            hint="name the base with --model",
        )
    return str(named)


def _open(directory: str) -> Worn:
    """Read an adapter directory, whichever kind it is of."""
    path = Path(directory).expanduser()
    return Stored.open(path) if is_baseline(path) else Adapter.open(path)


def _carried(adapter: Worn | None) -> dict[str, torch.Tensor]:
    """Parameter name -> tensor of the modules that an adapter's files hold in full."""
    if adapter is None:
        return {}
    return adapter.carried if isinstance(adapter, Stored) else {**adapter.contents.base, **adapter.contents.rest}


def task_of(adapter: Worn | None, declared: Any) -> str:
    """Say what a model is for: what the adapter's file says, else its head, else the base's configuration.

    Args:
        adapter: the adapter, or None.
        declared: the base's transformers configuration.

    Returns:
        "causal" or "classification" (which covers regression here: one label).
    """
    noted = None if adapter is None else adapter.metadata.get(TASK)
    if noted in {"causal", "classification", "regression"}:
        return "causal" if noted == "causal" else "classification"
    stated = None if adapter is None else adapter.raw.get("task_type")
    if stated in {"CAUSAL_LM", "SEQ_CLS"}:
        return "causal" if stated == "CAUSAL_LM" else "classification"
    if adapter is not None and _head_size(adapter) is not None:
        return "classification"
    names = declared.architectures or []
    return "classification" if any(str(name).endswith("ForSequenceClassification") for name in names) else "causal"


def labels_of(adapter: Worn | None, declared: Any) -> tuple[str, ...]:
    """Name the classes: those the adapter was trained with, else the base's.

    Args:
        adapter: the adapter, or None.
        declared: the base's transformers configuration.

    Returns:
        Class names by position; one name for a regression.
    """
    own = tuple(str(name) for _, name in sorted((declared.id2label or {}).items()))
    if adapter is None:
        return own
    if adapter.metadata.get(TASK) == "regression":
        return own[:1] or ("LABEL_0",)
    if LABELS in adapter.metadata:
        return tuple(str(name) for name in json.loads(adapter.metadata[LABELS]))
    size = _head_size(adapter)
    return own if size is None or size == len(own) else tuple(f"LABEL_{index}" for index in range(size))


def form_of(adapter: Worn | None, source: str) -> PromptForm | None:
    """Say how prompts were written in training: what the adapter's file says, or what a merged model's record does.

    Args:
        adapter: the adapter, or None.
        source: directory or hub name of the base.

    Returns:
        The form, or None.
    """
    if adapter is not None:
        return PromptForm.loads(adapter.metadata.get(FORM, ""))
    try:
        found = json.loads((Path(source).expanduser() / MERGED).read_text(encoding="utf-8"))
        return PromptForm.loads(str(found.get(FORM, "")))
    except (OSError, ValueError, AttributeError):
        return None


def _head_size(adapter: Worn) -> int | None:
    """Outputs of a classifier's head that the adapter carries: the smallest of its matrices."""
    sizes = [
        tensor.shape[0]
        for name, tensor in _carried(adapter).items()
        if name.partition(".")[0] in _HEADS and tensor.dim() == 2
    ]
    return min(sizes, default=None)


def open_model(choice: ModelChoice, *, task: str | None = None, labels: Sequence[str] | None = None) -> Opened:
    """Load base, tokenizer and, where one is given, the adapter.

    Args:
        choice: which model.
        task: "causal", "classification" or "regression"; None finds out.
        labels: class names; None finds out.

    Returns:
        The model in eval mode.

    Raises:
        ConfigError: if no model is given, or the device does not exist.
        ModelError: if the base cannot be loaded.
        CheckpointError: if the adapter cannot be read or does not fit.
    """
    adapter = None if choice.adapter is None else _open(choice.adapter)
    source = base_of(choice)
    declared = base_config(source)
    kind = task or task_of(adapter, declared)
    names = () if kind == "causal" else tuple(labels_of(adapter, declared) if labels is None else labels)
    if kind == "classification" and len(names) == 1:
        kind = "regression"
    device, _ = pick_device(choice.device)
    # float16 is good for using a model, though not for training one
    half = choice.dtype == "float16"
    dtype = torch.float16 if half else pick_dtype(choice.dtype, device, "lora")[0]
    tokenizer, _ = load_tokenizer(source)
    base = load_model(
        ModelConfig(path=source),
        task=kind,
        method="lora",
        device=device,
        dtype=dtype,
        pad_id=tokenizer.pad_token_id,
        labels=names,
    )
    new = add_tokens(tokenizer, () if adapter is None else tokens_of(adapter.metadata))
    grow(base.model, new, source)
    report: Any = None
    if isinstance(adapter, Stored):
        report = load_baseline(base.model, adapter, allow_other_base=choice.allow_other_base)
    elif choice.adapter is not None:
        path = Path(choice.adapter).expanduser()
        report = load(base.model, path, allow_other_base=choice.allow_other_base)
    _refuse_fresh_head(base.heads, adapter, source)
    return Opened(
        model=base.model.eval(),
        tokenizer=tokenizer,
        source=source,
        adapter=choice.adapter,
        task=kind,
        labels=names,
        heads=base.heads,
        form=form_of(adapter, source),
        report=report,
        new_tokens=new.texts,
    )


def _refuse_fresh_head(heads: Sequence[str], adapter: Worn | None, source: str) -> None:
    """A head that neither the base nor the adapter has would answer at random."""
    carried = tuple(_carried(adapter))
    missing = [head for head in heads if not any(name.startswith(f"{head}.") for name in carried)]
    if missing:
        raise CheckpointError(
            "the model has a head that was never trained",
            where=f"{source}: {', '.join(missing)}",
            got="weights neither in the base's files nor in the adapter's",
            expected="an adapter that carries the trained head",
            hint="train with --train-also " + missing[0] + ", or name a base that has its head",
        )


def base_alone(opened: Opened) -> AbstractContextManager[object]:
    """Switch off what a model wears, for a block.

    Args:
        opened: a model with an adapter or a baseline.

    Returns:
        A context manager.
    """
    return baseline_disabled(opened.model) if is_baseline(str(opened.adapter)) else disabled(opened.model)


def fold(opened: Opened) -> object:
    """Fold what a model wears into its weights.

    Args:
        opened: a model with an adapter or a baseline.

    Returns:
        The verb's report.

    Raises:
        StateError: if there is no plain model that computes the same, as with bottlenecks and prefixes.
    """
    return merge_baseline(opened.model) if is_baseline(str(opened.adapter)) else merge(opened.model)


def stored_dtype(source: str) -> torch.dtype:
    """Dtype in which a base's weights are stored, as its configuration says.

    Args:
        source: local directory or hub name.

    Returns:
        The dtype; float32 where the configuration says none.
    """
    dtype = base_config(source).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
