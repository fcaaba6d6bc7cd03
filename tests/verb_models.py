"""Tiny model and adapter directories for the tests of the verbs, made in a temporary place."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaw as dw
from deltaw.blocks import Block, put_in

sys.path.insert(0, str(Path(__file__).parent / "train" / "data"))
from templates_for_tests import CHATML
from tokenizers_for_tests import byte_tokenizer

DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "max_position_embeddings": 96}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 96}  # fmt: skip


def base_dir(
    place: Path,
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    chat: bool = False,
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a model with its tokenizer; spread-out logits, so that greedy choices are clear."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    if chat:
        tokenizer.chat_template = CHATML
    values = {"llama": DECODER, "gpt2": GPT2, "bert": BERT}[kind]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                                  **{**values, **ids, **sizes})  # fmt: skip
    torch.manual_seed(seed)
    family = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    model = family.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    model.to(dtype).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def adapter_dir(base: Path, place: Path, *, scale: float = 0.3, seed: int = 1, **config: Any) -> Path:
    """Write an adapter of a base with values that are not zero; ``scale`` 0 leaves B zero."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    declared = AutoConfig.from_pretrained(base)
    family = AutoModelForSequenceClassification if declared.model_type == "bert" else AutoModelForCausalLM
    model = family.from_pretrained(base, dtype="auto").eval()
    dw.attach(model, dw.LoRAConfig(**{"rank": 3, "alpha": 5, "seed": seed, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in dw.trainable(model):
            if name.endswith("lora_B") or ".module." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    dw.save(model, place)
    return place


def bend_merges(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let every merge add a multiple of what it should."""
    module = importlib.import_module("deltaw.changes")

    def bent(kind: Any, site: Any, entries: Any, block: Block, stored: torch.Tensor) -> None:
        before = stored.clone()
        put_in(kind, site, entries, block, stored)
        stored.add_((stored - before) * (factor - 1))

    monkeypatch.setattr(module, "put_in", bent)
