"""Every feature of the file format: a base, our configuration, and PEFT's words for the same adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from peft_judge import Feature

VOCAB = 41
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_hidden_layers": 2}
ENCODER: dict[str, Any] = {**HEADS, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48}


def llama(tied: bool = False) -> nn.Module:
    config = LlamaConfig(**ENCODER, num_key_value_heads=2, tie_word_embeddings=tied)
    return LlamaForCausalLM(config)


def gpt2(head: bool = False) -> nn.Module:
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=16, pad_token_id=0, num_labels=3)
    return GPT2ForSequenceClassification(config) if head else GPT2LMHeadModel(config)


def phi3() -> nn.Module:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return Phi3ForCausalLM(Phi3Config(**ENCODER, num_key_value_heads=2, **ids))


def roberta() -> nn.Module:
    return RobertaForSequenceClassification(RobertaConfig(**ENCODER, max_position_embeddings=20, num_labels=3))


def distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=16
    )
    return DistilBertForSequenceClassification(config)


def bert() -> nn.Module:
    return BertModel(BertConfig(**ENCODER, max_position_embeddings=16))


class Block(nn.Module):
    """Holds a layer of the same name as its parent's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class Odd(nn.Module):
    """Names that are suffixes of others, with and without a dot between, and one that holds regex characters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.block = Block()
        self.xfc = nn.Linear(8, 8)
        self.add_module("fc+", nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("fc+")(self.xfc(self.block(self.fc(x))))


class TiedWithBias(nn.Module):
    """A table that is also the output head, which has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig(vocab_size=VOCAB)
        self.emb = nn.Embedding(VOCAB, 8)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCAB)
        self.head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.emb(x)))


BASE: dict[str, Any] = {"rank": 3, "alpha": 7}
PEFT: dict[str, Any] = {"r": 3, "lora_alpha": 7}
FROZEN = (".base_layer.weight",)
FROZEN_NAMED = (*FROZEN, "lm_head.weight")


def feature(name: str, model: Any, ours: dict[str, Any], theirs: dict[str, Any] | None, **more: Any) -> Feature:
    theirs = None if theirs is None else {**PEFT, **theirs}
    return Feature(name=name, model=model, ours={**BASE, **ours}, theirs=theirs, **more)


QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CAUSAL = {"task_type": "CAUSAL_LM"}
SEQ = {"task_type": "SEQ_CLS"}
CONV = {"fan_in_fan_out": True}

FEATURES: tuple[Feature, ...] = (
    feature("linear", llama, {"targets": QV}, {"target_modules": QV, **CAUSAL}),
    feature("all-linear", llama, {}, {"target_modules": "all-linear"}),
    feature("conv1d", gpt2, {"targets": ["c_attn", "c_proj"]}, {"target_modules": ["c_attn", "c_proj"], **CONV}),
    feature(
        "mixed-layouts",
        lambda: gpt2(head=True),
        {"targets": ["c_attn", "score"]},
        {"target_modules": ["c_attn", "score"], **CONV},
    ),
    feature(
        "embed_tokens",
        llama,
        {"targets": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        extra_keys=FROZEN_NAMED,
    ),
    feature("embedding", gpt2, {"targets": ["wpe", "c_attn"]}, {"target_modules": ["wpe", "c_attn"], **CONV}),
    feature("lm_head", llama, {"targets": ["lm_head"]}, {"target_modules": ["lm_head"]}, extra_keys=FROZEN_NAMED),
    feature("slices", gpt2, {"targets": ["c_attn[q,v]"]}, None),
    feature(
        "slice-ranks",
        gpt2,
        {"targets": ["c_attn[q,v]"], "rank_pattern": {"c_attn[v]": 2}},
        None,
        scaling={"": 1.0},
        folded=True,
    ),
    feature(
        "slices-stabilized", gpt2, {"targets": ["c_attn[q,k]"], "rank_stabilized": True}, None, scaling={"": 7 / 3**0.5}
    ),
    feature("grouped-slices", phi3, {"targets": ["qkv_proj[q,v]", "o_proj"]}, None),
    feature("halves", phi3, {"targets": ["gate_up_proj[up]"]}, None),
    feature(
        "rank-stabilized",
        llama,
        {"targets": QV, "rank_stabilized": True},
        {"target_modules": QV, "use_rslora": True},
        scaling={"": 7 / 3**0.5},
    ),
    feature(
        "patterns",
        llama,
        {
            "targets": ALL,
            "rank_pattern": {"layers.1.*.q_proj": 5, "k_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.v_proj": 11, "k_proj": 1.5},
        },
        {
            "target_modules": ALL,
            "rank_pattern": {r"layers\.1\..*q_proj": 5, "k_proj": 2},
            "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 11, "k_proj": 1.5},
        },
        scaling={r"1\..*q_proj": 7 / 5, "k_proj": 1.5 / 2, r"0\..*v_proj": 11 / 3},
    ),
    feature(
        "patterns-stabilized",
        llama,
        {"targets": QV, "rank_pattern": {"q_proj": 6}, "rank_stabilized": True},
        {"target_modules": QV, "rank_pattern": {"q_proj": 6}, "use_rslora": True},
        scaling={"q_proj": 7 / 6**0.5, "": 7 / 3**0.5},
    ),
    feature(
        "bias-lora-only",
        gpt2,
        {"targets": ["c_attn"], "bias": "lora_only"},
        {"target_modules": ["c_attn"], "bias": "lora_only", **CONV},
    ),
    feature(
        "bias-all", gpt2, {"targets": ["c_attn"], "bias": "all"}, {"target_modules": ["c_attn"], "bias": "all", **CONV}
    ),
    feature(
        "bias-all-encoder", bert, {"targets": ["query"], "bias": "all"}, {"target_modules": ["query"], "bias": "all"}
    ),
    feature(
        "head",
        lambda: gpt2(head=True),
        {"targets": ["c_attn"], "train_also": ["score"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["score"], **CONV, **SEQ},
    ),
    feature(
        "head-without-task",
        lambda: gpt2(head=True),
        {"targets": ["c_attn"], "train_also": ["score"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["score"], **CONV},
    ),
    feature(
        "head-of-layers",
        roberta,
        {"targets": ["query", "value"], "train_also": ["classifier"]},
        {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], **SEQ},
    ),
    feature(
        "head-bare-suffix",
        distilbert,
        {"targets": ["q_lin"], "train_also": ["classifier"]},
        {"target_modules": ["q_lin"], "modules_to_save": ["classifier"], **SEQ},
    ),
    feature(
        "head-and-bias",
        distilbert,
        {"targets": ["q_lin"], "train_also": ["classifier", "pre_classifier"], "bias": "all"},
        {"target_modules": ["q_lin"], "modules_to_save": ["classifier", "pre_classifier"], "bias": "all", **SEQ},
        # PEFT's substring match also writes the biases inside its own wrappers
        extra_keys=("modules_to_save.bias", "original_module.bias"),
    ),
    feature("head-only", distilbert, {"rank": 0, "train_also": ["classifier"]}, None),
    feature(
        "tied",
        lambda: llama(tied=True),
        {"targets": ["embed_tokens", "q_proj"], "ties": "share"},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        extra_keys=FROZEN_NAMED,
    ),
    feature(
        "tied-head-bias",
        TiedWithBias,
        {"targets": ["emb", "mid"], "ties": "share", "bias": "all"},
        {"target_modules": ["emb", "mid", "head"], "bias": "all"},
    ),
    feature("dropout", llama, {"targets": QV, "dropout": 0.25}, {"target_modules": QV, "lora_dropout": 0.25}),
    feature(
        "exclude",
        llama,
        {"targets": QV, "exclude": ["layers.0.self_attn.q_proj"]},
        {"target_modules": QV, "exclude_modules": ["layers.0.self_attn.q_proj"]},
    ),
    feature("layers", llama, {"targets": QV, "layers": [1]}, {"target_modules": QV, "layers_to_transform": [1]}),
    feature(
        "gaussian", llama, {"targets": QV, "init": "gaussian"}, {"target_modules": QV, "init_lora_weights": "gaussian"}
    ),
    feature("odd-root", Odd, {"targets": ["re:fc"]}, {"target_modules": "fc"}, tokens=False),
    feature("odd-suffix", Odd, {"targets": ["fc"]}, {"target_modules": ["fc"]}, tokens=False),
    feature("odd-regex", Odd, {"targets": ["fc+", "xfc"]}, {"target_modules": ["fc+", "xfc"]}, tokens=False),
    feature(
        "odd-patterns",
        Odd,
        {"targets": ["fc", "xfc"], "rank_pattern": {"re:fc": 5}, "alpha_pattern": {"block.fc": 2}},
        {"target_modules": ["fc", "xfc"], "rank_pattern": {"^fc": 5}, "alpha_pattern": {"block.fc": 2}},
        tokens=False,
        scaling={r"^fc$": 7 / 5, r"block\.fc": 2 / 3},
    ),
)
