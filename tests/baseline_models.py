"""Tiny models of each family, and every baseline with settings that fit them."""

from __future__ import annotations

from typing import Any

import torch

import deltaw as dw
from deltaw import baselines as bl

VOCABULARY, LAYERS, WIDTH = 61, 3, 16


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=48))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS,
                    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=48, attention_bias=True)
    )  # fmt: skip


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "max_position_embeddings": 48, "num_labels": 3,
}  # fmt: skip


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**SMALL))


def roberta() -> Any:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**SMALL))


def deberta() -> Any:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, conv_kernel_size=3,
        position_biased_input=False,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(config)


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert, "roberta": roberta, "deberta": deberta}
CAUSAL = ("gpt2", "llama")


def make(family: str, spread: float = 4.0) -> Any:
    """A model with spread-out outputs, in eval mode."""
    torch.manual_seed(3)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids(rows: int = 2, tokens: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def method(name: str, **more: Any) -> bl.Method:
    """A baseline with settings that fit the tiny models."""
    settings: dict[str, dict[str, Any]] = {
        "top-blocks": {"blocks": 2},
        "prefix-embedding": {"prefix_length": 3, "infix_length": 2},
        "prefix-layer": {"prefix_length": 3, "infix_length": 2},
        "adapter-h": {"bottleneck": 4},
        "adapter-l": {"bottleneck": 4},
        "adapter-p": {"bottleneck": 4},
        "adapter-d": {"bottleneck": 4, "drop_layers": 1},
    }
    lora = {"lora": dw.LoRAConfig(rank=2, targets=["re:.*(attn|attention).*(attn|proj|query|value|dense)"], seed=0)}
    prefix = {"prefix_length": 3, "infix_length": 2}
    settings |= {"lora+prefix-embedding": prefix | lora, "lora+prefix-layer": prefix | lora}
    return bl.BASELINES[name](**{**settings.get(name, {}), **more})


def shake(model: Any, seed: int = 5) -> None:
    """Move everything that is trained away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in bl.trainable(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
