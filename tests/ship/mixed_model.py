"""A transformers model of every kind of layer that no small language model has: convolutions, torch's attention."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from verb_models import base_dir


class MixedConfig(PretrainedConfig):
    model_type = "deltaw_mixed"

    def __init__(self, vocab_size: int = 300, hidden_size: int = 24, **rest: Any) -> None:
        super().__init__(**rest)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class MixedForCausalLM(PreTrainedModel):
    config_class = MixedConfig

    def __init__(self, config: MixedConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size, max_norm=9.0)
        self.conv = nn.Conv1d(size, size, 3, padding=1)
        self.grouped = nn.Conv1d(size, size, 3, padding=1, groups=4)
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(size)
        self.head = nn.Linear(size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, **rest: Any) -> Any:
        x = self.embed(input_ids)
        x = x + self.grouped(self.conv(x.transpose(1, 2)).tanh()).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return SimpleNamespace(logits=self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)))


AutoConfig.register("deltaw_mixed", MixedConfig, exist_ok=True)
AutoModelForCausalLM.register(MixedConfig, MixedForCausalLM, exist_ok=True)


def mixed_dir(place: Path, dtype: torch.dtype) -> Path:
    """Write such a model beside a tokenizer."""
    base_dir(place)
    torch.manual_seed(0)
    model = MixedForCausalLM(MixedConfig()).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(place)
    return place
