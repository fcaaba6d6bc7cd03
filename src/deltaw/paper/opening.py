"""Opening the paper's models with their weights: a local directory or a hub name, through transformers.

The loading itself is ``deltaw.train.model``'s, so that a missing tensor or an unknown architecture ends in the same
error here as in training; this page adds what the paper's parts ask: which of its shapes it is, its own class names, a
tokenizer where there is one, and logits on a fixed input to compare two loads by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, ModelError
from deltaw.paper.models import PAPER_MODELS

__all__ = ["FixedLogits", "Opened", "fixed_logits", "gpt2_tokenizer", "open_model", "shape_name"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spm.model")
_BPE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model with its weights.

    Args:
        source: where it came from.
        model: a transformers model in eval mode.
        tokenizer: its tokenizer, or None where the directory has none.
        task: "causal" or "classification".
        shape: which of the paper's models has these sizes; empty where none has.
        notes: what was made fresh, left out or missing.
    """

    source: str
    model: Any
    tokenizer: Any
    task: str
    shape: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FixedLogits:
    """What a model says to a fixed input.

    Args:
        ids: the input.
        top: (id, logit) of the largest, at the last position or over the labels, largest first.
        total: sum of all logits in float64: one figure to compare two loads by.
    """

    ids: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    total: float

    def __str__(self) -> str:
        """Two lines."""
        shown = ", ".join(f"{index}: {value:.6f}" for index, value in self.top)
        return f"input: {' '.join(map(str, self.ids))}\nlogits: {shown}; sum of all {self.total:.6f}"


def shape_name(config: Any) -> str:
    """Find the paper's model of a config's sizes.

    Args:
        config: a transformers config.

    Returns:
        A key of ``PAPER_MODELS``, or an empty string.

    Example:
        >>> from deltaw.train.shape import shape_config
        >>> shape_name(shape_config("gpt2-large"))
        'gpt2-large'
    """
    sizes = tuple(getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    for name, known in PAPER_MODELS.items():
        if config.model_type == known.family and sizes == (known.width, known.layers, known.vocabulary):
            return name
    return ""


def open_model(
    source: str, *, task: str = "auto", labels: Sequence[str] = (), device: str = "cpu", dtype: str = "float32"
) -> Opened:
    """Load a model and, where there is one, its tokenizer.

    Args:
        source: a local directory or a hub name.
        task: "causal", "classification", or "auto": what the config's ``architectures`` says.
        labels: class names of a new head; none keeps the config's.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "float32" or "bfloat16".

    Returns:
        The model in eval mode.

    Raises:
        ConfigError: if the task, the device or the dtype does not exist, or the task cannot be told.
        ModelError: if there is no such model, or tensors are missing.

    Example:
        >>> import tempfile
        >>> from deltaw.paper.models import tiny_model
        >>> with tempfile.TemporaryDirectory() as place:
        ...     tiny_model("gpt2").save_pretrained(place)
        ...     open_model(place).task
        'causal'
    """
    from deltaw.train.config import ModelConfig
    from deltaw.train.model import DTYPES, base_config, load_model, pick_device

    if dtype not in DTYPES:
        raise ConfigError(
            f"there is no number format {dtype!r} here",
            where="dtype",
            got=repr(dtype),
            expected=" or ".join(DTYPES),
            hint="use float32 to compare logits",
        )
    config = base_config(source)
    task = _task(config, task, source)
    if task == "causal" and labels:
        raise ConfigError(
            "a language model has no class names",
            where="labels",
            got=", ".join(labels),
            expected="labels with the task classification",
            hint="leave labels out, or set task to classification",
        )
    names = list(labels) or [str(config.id2label[index]) for index in range(config.num_labels)]
    pad = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    loaded = load_model(
        ModelConfig(path=source), task=task, method="lora", device=pick_device(device)[0], dtype=DTYPES[dtype],
        pad_id=pad, labels=names if task == "classification" else (),
    )  # fmt: skip
    tokenizer, said = _tokenizer(source)
    return Opened(
        source=source, model=loaded.model.eval(), tokenizer=tokenizer, task=task, shape=shape_name(config),
        notes=(*loaded.notes, *said),
    )  # fmt: skip


def _task(config: Any, task: str, source: str) -> str:
    if task in ("causal", "classification"):
        return task
    names = list(config.architectures or [])
    if task == "auto" and any(name.endswith("ForSequenceClassification") for name in names):
        return "classification"
    if task == "auto" and any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return "causal"
    raise ConfigError(
        "what the model is for cannot be told" if task == "auto" else f"there is no task {task!r} here",
        where=f"{source}: architectures" if task == "auto" else "task",
        got=(", ".join(names) or "nothing") if task == "auto" else repr(task),
        expected="a ...ForSequenceClassification or a ...LMHeadModel"
        if task == "auto"
        else "causal, classification, auto",
        hint="set the task: classification for RoBERTa and DeBERTa (a new head), causal for GPT-2",
    )


def _tokenizer(source: str) -> tuple[Any, tuple[str, ...]]:
    from deltaw.train.model import load_tokenizer

    place = Path(source).expanduser()
    if place.is_dir() and not any((place / name).is_file() for name in _TOKENIZER_FILES):
        return None, ("no tokenizer in this directory: give ids instead of text",)
    tokenizer, said = load_tokenizer(source)
    return tokenizer, (said,)


def fixed_logits(model: Any, ids: Sequence[int], top: int = 5) -> FixedLogits:
    """Ask a model for its logits on one input.

    Args:
        model: a transformers model.
        ids: token ids.
        top: how many of the largest logits to name.

    Returns:
        The largest and the sum of all.

    Raises:
        ConfigError: if there are no ids, one is outside the vocabulary, or ``top`` is below 1.

    Example:
        >>> from deltaw.paper.models import tiny_model
        >>> len(fixed_logits(tiny_model("roberta", labels=3), [1, 2, 3]).top)
        3
    """
    import torch

    vocabulary = model.config.vocab_size
    if not ids or not all(0 <= index < vocabulary for index in ids):
        raise ConfigError(
            "these ids are no input",
            where="ids",
            got=" ".join(map(str, ids)) or "nothing",
            expected=f"one or more ids from 0 to {vocabulary - 1}",
            hint="use ids of the model's own vocabulary",
        )
    if top < 1:
        raise ConfigError(
            "top cannot be below 1", where="top", got=str(top), expected="a whole number from 1 up", hint="use 5"
        )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.tensor([list(ids)], device=device)).logits.double().cpu()
    finally:
        model.train(was_training)
    last = logits[0, -1] if logits.dim() == 3 else logits[0]
    values, places = last.topk(min(top, last.numel()))
    pairs = tuple(zip(places.tolist(), values.tolist(), strict=True))
    return FixedLogits(ids=tuple(ids), top=pairs, total=float(logits.sum()))


def gpt2_tokenizer(directory: str | Path) -> Any:
    """Read GPT-2's byte-level BPE from stored files, without a config beside them.

    Args:
        directory: holds ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``, or, as in microsoft/LoRA,
            ``encoder.json`` with ``vocab.bpe``.

    Returns:
        A fast transformers tokenizer that begins, ends and pads with ``<|endoftext|>``.

    Raises:
        ModelError: if the directory holds none of these, or a file is broken.

    Source:
        Radford et al. 2019; the vocabulary of 50,257 entries, the last of which is ``<|endoftext|>``.
    """
    from transformers import PreTrainedTokenizerFast

    place = Path(directory).expanduser()
    names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    pair = next((pair for pair in _BPE_PAIRS if set(pair) <= set(names)), None)
    if "tokenizer.json" not in names and pair is None:
        raise ModelError(
            "there are no files of GPT-2's tokenizer",
            where=str(place),
            got=", ".join(names[:6]) or "nothing",
            expected="tokenizer.json, or vocab.json and merges.txt, or encoder.json and vocab.bpe",
            hint="copy them from GPT-2, or from examples/NLG/vocab of microsoft/LoRA",
        )
    try:
        core = _from_json(place / "tokenizer.json") if pair is None else _from_pair(place / pair[0], place / pair[1])
    except Exception as error:
        # tokenizers raises bare Exception for a broken file.
        raise ModelError(
            "the tokenizer cannot be read",
            where=str(place),
            got=(str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            expected="files of a byte-level BPE",
            hint="the files may be cut short: copy them again",
        ) from None
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def _from_json(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _from_pair(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core
