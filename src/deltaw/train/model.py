"""Loading the base: tokenizer, weights, device, number format, padding."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw.errors import ConfigError, ModelError, nearest
from deltaw.train.config import ModelConfig
from deltaw.train.method_config import BASE_METHODS

__all__ = [
    "Loaded",
    "base_config",
    "hushed",
    "label_options",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
]

PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|endoftext|>", "<|finetune_right_pad_id|>")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A base model ready for training.

    Args:
        model: on its device, in its dtype.
        device: where it is.
        dtype: of its weights.
        heads: modules that the weights did not contain and that were initialized fresh.
        notes: lines the user should see.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def pick_device(name: str) -> tuple[torch.device, str]:
    """Turn a device's name into a device that works.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        The device and why.

    Raises:
        ConfigError: if the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), "a GPU was found"
        return torch.device("cpu"), "no GPU was found"
    present = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    present += ["mps"] if torch.backends.mps.is_available() else []
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        raise ConfigError(
            "this machine has no such device",
            where="--device or [model] device",
            got=repr(name),
            expected=", ".join(["auto", *present]),
            hint="use --device auto",
        )
    return torch.device(wanted), "given"


def pick_dtype(name: str, device: torch.device, method: str) -> tuple[torch.dtype, str]:
    """Choose the base's number format.

    Args:
        name: ``auto``, ``float32`` or ``bfloat16``; float16 would need a loss scale that the state has to carry.
        device: where the model will be.
        method: as in ``--method``.

    Returns:
        The dtype and why.
    """
    if name != "auto":
        return DTYPES[name], "given"
    if device.type != "cuda":
        return torch.float32, f"float32 is the exact choice on {device.type}"
    if method in BASE_METHODS:
        what = "full fine-tuning keeps float32 weights" if method == "full" else "trained weights stay float32"
        return torch.float32, what
    return torch.bfloat16, "half the memory on a GPU; the adapter itself stays float32"


def _kind(path: str) -> str:
    """Whether a model is a directory here or a name on the hub."""
    return "directory" if Path(path).expanduser().is_dir() else "hub name"


def _place(path: str) -> str:
    """The path transformers is given."""
    place = Path(path).expanduser()
    return str(place) if place.exists() else path


def base_config(path: str) -> Any:
    """Read the base's configuration, without weights.

    Args:
        path: a local directory or a hub name.

    Returns:
        A transformers configuration.

    Raises:
        ModelError: if there is no such model, no configuration, or an architecture transformers does not know.
    """
    from transformers import AutoConfig

    place = Path(path).expanduser()
    if place.is_dir() and not (place / "config.json").is_file():
        raise ModelError(
            "the model directory has no configuration",
            where=str(place),
            got=", ".join(sorted(entry.name for entry in place.iterdir())[:6]) or "an empty directory",
            expected="config.json beside the weights",
            hint=_config_hint(place),
        )
    if not place.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(
            "there is no such model directory",
            where=path,
            got="nothing at this path",
            expected="a directory with config.json, weights and tokenizer",
            hint=f"closest here: {_siblings(place)}",
        )
    try:
        return AutoConfig.from_pretrained(_place(path))
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(path, error) from None


def _config_hint(place: Path) -> str:
    """Where the model could be instead: in a subdirectory, or this is an adapter."""
    if (place / "adapter_config.json").is_file():
        return "this is an adapter: give its base to --model and the adapter to --adapter"
    inside = sorted(entry.parent.name for entry in place.glob("*/config.json"))
    return f"a model is in the subdirectory {inside[0]!r}" if inside else "give the directory that holds config.json"


def _siblings(place: Path) -> str:
    parent = place.parent
    return nearest(place.name, (entry.name for entry in parent.iterdir())) if parent.is_dir() else "nothing"


def _not_loaded(path: str, error: Exception) -> ModelError:
    """Word what transformers said about a model it did not load."""
    text = str(error)
    if "does not recognize this architecture" in text or "model type" in text:
        kind = _declared_type(path)
        return ModelError(
            "the model's architecture is not supported by the installed transformers",
            where=path,
            got=f"model_type {kind!r}",
            expected="an architecture of transformers",
            hint="update transformers, or check model_type in config.json",
        )
    first = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
    return ModelError(
        "the model cannot be loaded",
        where=f"{path} ({_kind(path)})",
        got=first,
        expected="a local directory, or a name on the hub that is reachable or cached",
        hint=(
            "the files may be cut short: copy or download them again"
            if _kind(path) == "directory"
            else "check the name; without a network, download the model first and give its directory"
        ),
    )


def _declared_type(path: str) -> str:
    try:
        return str(json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError):
        return "unknown"


def load_tokenizer(path: str) -> tuple[Any, str]:
    """Load the tokenizer and settle which token pads, without adding one.

    Args:
        path: a local directory or a hub name.

    Returns:
        The tokenizer, and one line about padding.

    Raises:
        ModelError: if there is no tokenizer, or no token that could pad.
    """
    from transformers import AutoTokenizer

    try:
        with hushed():
            tokenizer = AutoTokenizer.from_pretrained(_place(path))
    except Exception as error:
        # tokenizers and its converters raise bare Exception for a broken file.
        raise ModelError(
            "the tokenizer cannot be loaded",
            where=path,
            got=(str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            expected="tokenizer.json or the files of a transformers tokenizer",
            hint="copy the tokenizer files of the model into its directory",
        ) from None
    return tokenizer, _settle_padding(tokenizer, path)


def _settle_padding(tokenizer: Any, path: str) -> str:
    """Give the tokenizer a pad token out of its own vocabulary; embeddings are never resized."""
    if tokenizer.pad_token_id is not None:
        return f"padding with {tokenizer.pad_token!r}, on the right"
    vocabulary = tokenizer.get_vocab()
    named = next((name for name in PAD_NAMES if name in vocabulary), None)
    token = named or tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if token is None:
        raise ModelError(
            "the tokenizer has no token to pad with",
            where=path,
            got="no pad, end, unknown or begin token",
            expected="one special token in the vocabulary",
            hint='add "pad_token" to tokenizer_config.json, naming a token of the vocabulary',
        )
    tokenizer.pad_token = token
    return f"padding with {token!r}, on the right (the tokenizer names no pad token; padding is masked either way)"


def load_model(
    config: ModelConfig, *, task: str, method: str, device: torch.device, dtype: torch.dtype, pad_id: int,
    labels: Sequence[str] = (),
) -> Loaded:  # fmt: skip
    """Load the base's weights.

    Args:
        config: path and checkpointing.
        task: ``causal``, ``classification`` or ``regression``.
        method: as in ``--method``.
        device: where it goes.
        dtype: of its weights.
        pad_id: the tokenizer's pad token.
        labels: class names, for classification.

    Returns:
        The model and what was noticed.

    Raises:
        ModelError: if the architecture has no such task, or weights are missing.
    """
    import transformers

    declared = base_config(config.path)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if task == "causal":
        auto = transformers.AutoModelForCausalLM
    else:
        auto = transformers.AutoModelForSequenceClassification
        options |= label_options(task, labels)
    if type(declared) not in auto._model_mapping:
        raise ModelError(
            f"the architecture has no head for {task}",
            where=config.path,
            got=f"model_type {declared.model_type!r}",
            expected="an architecture with one in transformers",
            hint="use --task classification or regression" if task == "causal" else "use a model with a classifier",
        )
    _refuse_encoder(declared, task, config.path)
    try:
        with hushed():
            model, info = auto.from_pretrained(_place(config.path), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(config.path, error) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("safetensors", "safetensors_rust", "pickle", "_pickle"):
            raise
        raise _not_loaded(config.path, error) from None
    heads = _fresh_heads(model, info, task, config.path)
    model.to(device)
    if task != "causal":
        model.config.pad_token_id = pad_id
    if config.gradient_checkpointing:
        _checkpoint(model, config.path)
    return Loaded(model=model, device=device, dtype=dtype, heads=heads, notes=_notes(info, heads))


def _refuse_encoder(declared: Any, task: str, path: str) -> None:
    """Refuse to train an encoder that sees the tokens it should predict."""
    import transformers

    encoder = type(declared) in transformers.AutoModelForMaskedLM._model_mapping
    if task == "causal" and encoder and not getattr(declared, "is_decoder", False):
        raise ModelError(
            "the model is an encoder: it sees the tokens that it would have to predict",
            where=path,
            got=f"model_type {declared.model_type!r}, is_decoder false",
            expected="a decoder, for prompts and completions",
            hint="use labeled rows with --task classification or regression, or a decoder model",
        )


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silence transformers' own log lines and bars; what matters of them is returned as notes.

    Yields:
        None: while transformers is silent.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def label_options(task: str, labels: Sequence[str]) -> dict[str, Any]:
    """What a classifier's configuration is told of the labels.

    Args:
        task: "classification" or "regression".
        labels: class names.

    Returns:
        Options of transformers' ``from_pretrained``.
    """
    if task == "regression":
        return {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
        "ignore_mismatched_sizes": True,
    }


def _fresh_heads(model: Any, info: dict[str, Any], task: str, path: str) -> tuple[str, ...]:
    """Modules whose weights the files lack: a classifier's new head; anything else is an error."""
    missing = set(info.get("missing_keys", ())) | {
        key[0] if isinstance(key, tuple) else key for key in info.get("mismatched_keys", ())
    }
    if task == "causal" and model.config.tie_word_embeddings:
        missing -= set(getattr(model, "_tied_weights_keys", None) or ())
    body = getattr(model, "base_model_prefix", "") + "."
    absent = sorted(key for key in missing if task == "causal" or (key.startswith(body) and ".pooler." not in key))
    if absent:
        raise ModelError(
            "the model's files lack weights",
            where=path,
            got=f"{len(absent)} missing: " + ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else ""),
            expected=f"every weight of {type(model).__name__}",
            hint="complete the files, or check that config.json belongs to these weights",
        )
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in sorted(missing)))


def _checkpoint(model: Any, path: str) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            "the model does not support gradient checkpointing",
            where=path,
            got=type(model).__name__,
            expected="a model whose blocks can be recomputed",
            hint="drop --gradient-checkpointing and lower --batch-size",
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _notes(info: dict[str, Any], heads: Sequence[str]) -> tuple[str, ...]:
    """Lines on what was made fresh and what the files hold beyond the model."""
    lines = []
    if heads:
        lines.append(f"newly initialized and trained in full: {', '.join(heads)}")
    unexpected = sorted(info.get("unexpected_keys", ()))
    if unexpected:
        shown = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        lines.append(f"{len(unexpected)} tensors of the files are not used by this model: {shown}")
    return tuple(lines)
