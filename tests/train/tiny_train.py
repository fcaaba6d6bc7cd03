"""A tiny random Llama, a tokenizer trained on its rows, and rows that it can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

COLORS = ("red", "green", "blue", "black", "white", "pink")
THINGS = ("hat", "car", "cup", "dog", "cat", "box", "pen", "bag")


def pairs() -> list[dict[str, str]]:
    rows = [(color, thing) for color in COLORS for thing in THINGS]
    return [
        {"prompt": f"the {thing} is {color} . what is the {thing} ?", "completion": f" the {thing} is {color} ."}
        for color, thing in rows
    ]


def labelled() -> list[dict[str, str]]:
    return [
        {"text": f"the {thing} is {color}", "label": "warm" if color in ("red", "pink") else "cold"}
        for color in COLORS
        for thing in THINGS
    ]


def scored() -> list[dict[str, Any]]:
    return [
        {"text": f"the {thing} is {color}", "label": COLORS.index(color) / 4} for color in COLORS for thing in THINGS
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([row["prompt"] + row["completion"] for row in pairs()] * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=64)


def make_model(vocabulary: int, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)
