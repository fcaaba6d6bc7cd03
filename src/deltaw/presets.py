"""Shapes of well-known models, as transformers config dictionaries: what a plan needs where nothing is downloaded.

A preset is a shape, never weights. The first seven are the models of the paper; GPT-3 is written as a GPT-2 with its
sizes, which has the same matrices. Sizes are those of the published ``config.json`` files, GPT-3's those of Brown et
al. 2020, arXiv:2005.14165, table 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deltaw.errors import ConfigError, nearest

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of one model.

    Args:
        config: transformers config, ``model_type`` among its keys.
        task: "causal" for a language model, "classification" for a sequence classifier.
        note: whose model it is, one line.
        paper: the adaptation the paper reports for it, as flags of ``deltaw plan``; empty where there is none.
    """

    config: dict[str, Any] = field(repr=False)
    task: str
    note: str
    paper: str = ""


def _gpt2(width: int, layers: int, heads: int, *, context: int = 1024) -> dict[str, Any]:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context, "vocab_size": 50257}
    return {"model_type": "gpt2", **sizes, "tie_word_embeddings": True, "bos_token_id": 50256, "eos_token_id": 50256}


def _roberta(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "roberta",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }


def _llama(width: int, inner: int, layers: int, *, head_dim: int, factor: float, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


_DEBERTA_XXL = {
    "model_type": "deberta-v2",
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
    "pooler_hidden_size": 1536,
    "pooler_hidden_act": "gelu",
}

_QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

_GPT2_PAPER = "--target 'c_attn[q,v]' --rank 4 --alpha 32"
_ROBERTA_PAPER = "--target query --target value --rank 8 --alpha {} --labels 3 --train-also classifier"
_DEBERTA_PAPER = (
    "--target query_proj --target value_proj --rank 16 --alpha 32 --labels 3 --train-also classifier "
    "--train-also pooler.dense"
)

PRESETS: dict[str, Preset] = {
    "gpt2": Preset(config=_gpt2(768, 12, 12), task="causal", note="GPT-2, 124M", paper=_GPT2_PAPER),
    "gpt2-medium": Preset(config=_gpt2(1024, 24, 16), task="causal", note="GPT-2 medium, 355M", paper=_GPT2_PAPER),
    "gpt2-large": Preset(config=_gpt2(1280, 36, 20), task="causal", note="GPT-2 large, 774M", paper=_GPT2_PAPER),
    "roberta-base": Preset(
        config=_roberta(768, 12, 12), task="classification", note="RoBERTa base, 125M", paper=_ROBERTA_PAPER.format(8)
    ),
    "roberta-large": Preset(
        config=_roberta(1024, 24, 16),
        task="classification",
        note="RoBERTa large, 355M",
        paper=_ROBERTA_PAPER.format(16),
    ),
    "deberta-v2-xxlarge": Preset(
        config=_DEBERTA_XXL, task="classification", note="DeBERTa v2 XXL, 1.5B", paper=_DEBERTA_PAPER
    ),
    "gpt3-175b": Preset(
        config=_gpt2(12288, 96, 96, context=2048),
        task="causal",
        note="GPT-3 175B, as a GPT-2 of its sizes",
        paper=_GPT2_PAPER,
    ),
    "llama-3.2-1b": Preset(
        config=_llama(2048, 8192, 16, head_dim=64, factor=32.0, tied=True), task="causal", note="Llama 3.2 1B"
    ),
    "llama-3.1-8b": Preset(
        config=_llama(4096, 14336, 32, head_dim=128, factor=8.0, tied=False), task="causal", note="Llama 3.1 8B"
    ),
    "qwen3-8b": Preset(config=_QWEN3_8B, task="causal", note="Qwen3 8B"),
}


def preset(name: str) -> Preset:
    """Look up one preset.

    Args:
        name: a key of ``PRESETS``.

    Returns:
        The preset.

    Raises:
        ConfigError: if there is none of that name.

    Example:
        >>> preset("gpt3-175b").config["n_embd"]
        12288
    """
    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset {name!r}",
            where="preset",
            got=repr(name),
            expected=f"one of {', '.join(PRESETS)}",
            hint=f"closest: {nearest(name, PRESETS)}; a local directory with a config.json works too",
        )
    return PRESETS[name]
