"""Tiny models from fixed seeds, one per structure that the core must get right. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaw as dw
from deltaw.factors import Factors


class MLP(nn.Module):
    """Two linear layers with dropout and a norm between them."""

    def __init__(self, width: int = 8, dropout: float = 0.25) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.relu(self.norm(self.fc1(x)))))


def mlp(seed: int = 0, **kwargs: Any) -> MLP:
    torch.manual_seed(seed)
    return MLP(**kwargs)


def llama(tied: bool = False, layers: int = 2) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, attention_dropout=0.1,
        )
    ).eval()  # fmt: skip


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    config = GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def phi3() -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(4)
    config = Phi3Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval()


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(5)
    return BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=4)).eval()


class Lookup(nn.Module):
    """An embedding and a head."""

    def __init__(self, bias: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6, **kwargs)
        self.head = nn.Linear(6, 10, bias=bias)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def lookup(tied: bool = False, bias: bool = False, **kwargs: Any) -> Lookup:
    torch.manual_seed(6)
    model = Lookup(bias, **kwargs)
    if tied:
        model.head.weight = model.embed.weight
    return model


class SharedWeight(nn.Module):
    """Two linear modules over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.right(F.relu(self.left(x)))


class TwoNames(nn.Module):
    """One module object under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(F.relu(self.first(x)))


class Int8Linear(nn.Linear):
    """A quantized linear layer as libraries make them: integer weight, a scale, a forward of its own."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, source.bias is not None)
        scale = source.weight.detach().abs().amax(1, keepdim=True) / 127
        weight = (source.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        if source.bias is not None:
            self.bias = nn.Parameter(source.bias.detach().clone())

    def dense(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Holder(nn.Module):
    """One module under a chosen name, with a config beside it: enough for the slice layouts."""

    def __init__(self, name: str, module: nn.Module, **config: Any) -> None:
        super().__init__()
        self.add_module(name, module)
        self.name = name
        self.config = SimpleNamespace(**config)

    @property
    def site(self) -> nn.Module:
        return self.get_submodule(self.name)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def conv1d(n_in: int, n_out: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(n_out, n_in)
    nn.init.normal_(module.weight, std=0.3)
    nn.init.normal_(module.bias, std=0.3)
    return module


def factors(model: nn.Module, adapter: str | None = None) -> Iterator[tuple[str, Factors]]:
    """Every pair of factors, of one adapter or of all."""
    for path, module in model.named_modules():
        if isinstance(module, Factors) and (adapter is None or f".lora.{adapter}." in f".{path}."):
            yield path, module


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0, size: float = 0.2, adapter: str | None = None) -> None:
    """Give adapters values as training would: no factor is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    for _, pair in factors(model, adapter):
        for tensor in (pair.lora_A, pair.lora_B):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer as raw bytes; adapters included where attached."""
    return {
        key: tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for key, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    }


def base_bits(model: nn.Module) -> dict[str, bytes]:
    return {key: value for key, value in bits(model).items() if ".lora." not in f".{key}"}


def ids(vocab: int = 32, shape: tuple[int, ...] = (2, 7)) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(9))


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


def attach(model: nn.Module, name: str = "default", **config: Any) -> dw.AttachReport:
    data = {key: config.pop(key) for key in ("batches", "loss") if key in config}
    return dw.attach(model, dw.LoRAConfig(**config), name, **data)
