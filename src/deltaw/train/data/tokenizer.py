"""Load a tokenizer, and name its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deltaw.errors import ModelError

__all__ = ["context_length", "load_tokenizer", "tokenizer_hash"]


def load_tokenizer(model: str | Path) -> Any:
    """Load the tokenizer of a model.

    Args:
        model: a directory, which may hold nothing but tokenizer files, or a transformers name.

    Returns:
        A transformers tokenizer.

    Raises:
        ModelError: if there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(str(model))
    except Exception as error:
        file = Path(model) / "tokenizer.json"
        if file.is_file() and not (Path(model) / "tokenizer_config.json").is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(file))
        raise ModelError(
            "the tokenizer cannot be loaded",
            where=str(model),
            got=" ".join(str(error).split())[:200],
            expected="a directory with tokenizer.json, or the name of a model that is reachable or cached",
            hint="check the path; for a hub name, check the connection and HF_HUB_OFFLINE.",
        ) from error


def context_length(model: str | Path, tokenizer: Any, ceiling: int = 2048) -> tuple[int, str]:
    """Choose a maximum length: what the model can read, with a ceiling on the cost of one example.

    Args:
        model: the directory; its ``config.json`` is read where there is one.
        tokenizer: its tokenizer.
        ceiling: tokens at most.

    Returns:
        The length in tokens, and where it is from.
    """
    lengths = {"the tokenizer's model_max_length": int(tokenizer.model_max_length)}
    file = Path(model) / "config.json"
    if file.is_file():
        config = json.loads(file.read_text("utf-8"))
        for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
            if isinstance(config.get(key), int):
                lengths[f"the model's {key}"] = config[key]
                break
    reason = min(lengths, key=lambda name: lengths[name])
    return (lengths[reason], reason) if lengths[reason] <= ceiling else (ceiling, "the default ceiling")


def tokenizer_hash(tokenizer: Any) -> str:
    """Name the content of a tokenizer: vocabulary, rules, special tokens and chat template.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        32 hexadecimal digits; truncation and padding, which calls change, do not count.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = sorted(tokenizer.get_vocab().items(), key=lambda item: int(item[1]))
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    parts = [type(tokenizer).__name__, content, special, getattr(tokenizer, "chat_template", None)]
    # What the class adds around a text is not in every backend's description.
    parts.append(list(tokenizer("a", verbose=False)["input_ids"]))
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
