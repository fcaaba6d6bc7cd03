"""The paper's models: their shapes, where q, k, v and o live in them, and how their weights are loaded.

A shape is a transformers config written in ``deltaw.presets``; on the meta device it is a real module tree without
storage, so that GPT-3 is planned and counted by the code that would train it. Weights come from a local directory or
the hub through transformers. ``tiny_model`` makes small random models of the same families.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.errors import ConfigError, ModelError, nearest
from deltaw.paper.roles import DEBERTA, GPT2, LLAMA, targets_for
from deltaw.presets import preset

if TYPE_CHECKING:
    from torch import nn

    from deltaw.sites import Plan

__all__ = [
    "PAPER_MODELS", "PaperModel", "bias_parameters", "bias_values", "block_parameters", "block_values", "blocks_of",
    "body_parameters", "head_parameters", "lora_parameters", "lora_plan", "meta_model_of", "paper_model", "targets_of",
    "tiny_model", "total_parameters",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    """One of the paper's models.

    Args:
        name: its preset.
        title: as the paper's tables call it.
        rank: r of the paper's main setting with q and v adapted, erratum ERR2 heeded; for GPT-3 the one whose bytes
            section 4.2 counts.
        body: path of the module that the formulas of totals speak of.
        head: what is trained beside the adapter, as patterns; empty for language models.
        hub: name of the published weights on the hub; empty where there are none.
    """

    name: str
    title: str
    rank: int
    body: str
    head: tuple[str, ...] = ()
    hub: str = ""

    @property
    def family(self) -> str:
        """The transformers model type."""
        return str(preset(self.name).config["model_type"])

    @property
    def width(self) -> int:
        """Width d."""
        return self._size("n_embd", "hidden_size")

    @property
    def layers(self) -> int:
        """Number of blocks L."""
        return self._size("n_layer", "num_hidden_layers")

    @property
    def positions(self) -> int:
        """Rows of the table of positions T."""
        return self._size("n_positions", "max_position_embeddings")

    @property
    def vocabulary(self) -> int:
        """Rows of the table of tokens V."""
        return self._size("vocab_size")

    def _size(self, *names: str) -> int:
        config = preset(self.name).config
        return int(next(config[name] for name in names if name in config))


_GPT: dict[str, Any] = {"body": "transformer"}
_ROBERTA: dict[str, Any] = {"body": "roberta", "head": ("classifier",)}
_DEBERTA: dict[str, Any] = {"body": "deberta", "head": ("pooler.dense", "classifier")}

PAPER_MODELS: dict[str, PaperModel] = {
    model.name: model
    for model in (
        PaperModel(name="gpt2", title="GPT-2 S", rank=4, hub="openai-community/gpt2", **_GPT),
        PaperModel(name="gpt2-medium", title="GPT-2 M", rank=4, hub="openai-community/gpt2-medium", **_GPT),
        PaperModel(name="gpt2-large", title="GPT-2 L", rank=4, hub="openai-community/gpt2-large", **_GPT),
        PaperModel(name="roberta-base", title="RoBERTa base", rank=8, hub="FacebookAI/roberta-base", **_ROBERTA),
        PaperModel(name="roberta-large", title="RoBERTa large", rank=8, hub="FacebookAI/roberta-large", **_ROBERTA),
        PaperModel(
            name="deberta-v2-xxlarge", title="DeBERTa XXL", rank=16, hub="microsoft/deberta-v2-xxlarge", **_DEBERTA
        ),
        PaperModel(name="gpt3-175b", title="GPT-3 175B", rank=4, **_GPT),
    )
}

_BERT = {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"}

# model type -> matrix -> the module that is it
_PLACES: dict[str, dict[str, str]] = {
    "gpt2": GPT2,
    "roberta": _BERT,
    "bert": _BERT,
    "deberta-v2": DEBERTA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


def paper_model(name: str) -> PaperModel:
    """Look up one of the paper's models.

    Args:
        name: a key of ``PAPER_MODELS``.

    Returns:
        The model.

    Raises:
        ConfigError: if the paper has none of that name.

    Example:
        >>> paper_model("gpt2-large").width
        1280
    """
    if name not in PAPER_MODELS:
        raise ConfigError(
            f"the paper has no model {name!r}",
            where="model",
            got=repr(name),
            expected=f"one of {', '.join(PAPER_MODELS)}",
            hint=f"closest: {nearest(name, PAPER_MODELS)}",
        )
    return PAPER_MODELS[name]


def targets_of(family: str, matrices: str = "qv") -> list[str]:
    """Say how a model family names attention matrices, as targets of ``LoRAConfig``.

    Args:
        family: a transformers model type.
        matrices: letters of q, k, v and o.

    Returns:
        Targets, one for each module type; slices where the projection is fused.

    Raises:
        ConfigError: if a letter is none of the four, or stands there twice, or there is none.
        ModelError: if the family's names are not known here.

    Source:
        Section 4.2: each of Wq, Wk, Wv and Wo counts as one d x d matrix.

    Example:
        >>> targets_of("gpt2", "qv"), targets_of("gpt2", "qkvo"), targets_of("roberta", "vo")
        (['c_attn[q,v]'], ['c_attn[q,k,v]', 'attn.c_proj'], ['value', 'attention.output.dense'])
    """
    if not matrices or set(matrices) - set("qkvo") or len(set(matrices)) < len(matrices):
        raise ConfigError(
            "these are no attention matrices",
            where="matrices",
            got=repr(matrices),
            expected="letters of q, k, v and o, each at most once",
            hint="use qv for the paper's default, qkvo for all four",
        )
    if family not in _PLACES:
        raise ModelError(
            "how this family names its attention matrices is not known",
            where="model_type",
            got=repr(family),
            expected=f"one of {', '.join(_PLACES)}",
            hint="give targets of LoRAConfig yourself; deltaw plan MODEL lists the modules",
        )
    return list(targets_for(_PLACES[family], matrices))


def meta_model_of(name: str, labels: int | None = None) -> Any:
    """Build one of the paper's models on the meta device, once for each call of its kind.

    Args:
        name: a key of ``PAPER_MODELS``.
        labels: labels of a classifier's head; None keeps the config's.

    Returns:
        A transformers model whose parameters have shapes and no storage. It is shared: do not attach to it.

    Raises:
        ConfigError: if the paper has none of that name.
    """
    return _built(paper_model(name).name, labels)


@functools.lru_cache(maxsize=16)
def _built(name: str, labels: int | None) -> Any:
    from deltaw.train.shape import meta_model

    return meta_model(name, labels=labels)


def lora_plan(name: str, matrices: str, rank: int, *, labels: int | None = None, head: bool = False) -> Plan:
    """Plan an adapter on one of the paper's models; nothing is attached.

    Args:
        name: a key of ``PAPER_MODELS``.
        matrices: letters of q, k, v and o.
        rank: r.
        labels: labels of a classifier's head.
        head: whether the classifier's head (and DeBERTa's pooler) is trained beside it.

    Returns:
        What ``deltaw.plan`` finds on the module tree.
    """
    import deltaw as dw

    known = paper_model(name)
    config = dw.LoRAConfig(
        targets=targets_of(known.family, matrices), rank=rank, train_also=list(known.head) if head else []
    )
    return dw.plan(meta_model_of(name, labels), config)


def lora_parameters(name: str, matrices: str, rank: int) -> int:
    """Count the values of an adapter as it would be attached.

    Args:
        name: a key of ``PAPER_MODELS``.
        matrices: letters of q, k, v and o.
        rank: r.

    Returns:
        Trained values, the head not among them.
    """
    return lora_plan(name, matrices, rank).parameters


def head_parameters(name: str, labels: int) -> int:
    """Count what is trained beside an adapter on a classifier.

    Args:
        name: a classifier among ``PAPER_MODELS``.
        labels: number of labels.

    Returns:
        Values of the head, and of DeBERTa's pooler.
    """
    beside = lora_plan(name, "qv", 1, labels=labels, head=True)
    return sum(p.numel() for _, module in beside.copies for p in module.parameters())


def total_parameters(name: str) -> int:
    """Count all values of a model, shared ones once.

    Args:
        name: a key of ``PAPER_MODELS``.

    Returns:
        Values.
    """
    return sum(p.numel() for p in meta_model_of(name).parameters())


def body_parameters(name: str) -> int:
    """Count the values of a model without its head.

    Args:
        name: a key of ``PAPER_MODELS``.

    Returns:
        Values.
    """
    return sum(p.numel() for p in meta_model_of(name).get_submodule(paper_model(name).body).parameters())


def bias_parameters(name: str) -> int:
    """Count the bias values that bias-only training trains.

    Args:
        name: a key of ``PAPER_MODELS``.

    Returns:
        Values.
    """
    return bias_values(meta_model_of(name))


def block_parameters(name: str, last: int) -> int:
    """Count the values of the last blocks.

    Args:
        name: a key of ``PAPER_MODELS``.
        last: how many.

    Returns:
        Values.
    """
    return block_values(meta_model_of(name), last)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Find the blocks of a transformers model.

    Args:
        model: the model.

    Returns:
        Its blocks, first to last.

    Raises:
        ModelError: if it has no list of as many modules as its config says.
    """
    from torch.nn import ModuleList

    number = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, ModuleList) and len(module) == number]
    if not lists:
        raise ModelError(
            "the model's blocks cannot be found",
            where=type(model).__name__,
            got=f"no list of {number} modules",
            expected="a transformers model whose blocks are one list",
            hint="use a model of transformers, loaded from its config",
        )
    return list(lists[0])


def bias_values(model: nn.Module) -> int:
    """Count the biases of a model's blocks and of its embeddings; the norm behind the last block is left out.

    Args:
        model: a transformers model.

    Returns:
        Values.

    Source:
        The paper's counts: 11 d a block on GPT-3, and d of the norm over the embeddings on RoBERTa.
    """
    before = [module for path, module in model.named_modules() if path.rpartition(".")[2] == "embeddings"]
    parts = [*blocks_of(model), *before]
    named = ((key, p) for part in parts for key, p in part.named_parameters())
    return sum(p.numel() for key, p in named if key.rpartition(".")[2] == "bias")


def block_values(model: nn.Module, last: int) -> int:
    """Count the values of a model's last blocks.

    Args:
        model: a transformers model.
        last: how many.

    Returns:
        Values.
    """
    return sum(p.numel() for block in blocks_of(model)[-last:] for p in block.parameters())


_TINY: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
    "roberta": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 66,
    },
    "deberta-v2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 64, "position_buckets": 8, "pooler_hidden_size": 32,
    },
}  # fmt: skip


def tiny_model(family: str, *, labels: int | None = None, vocabulary: int = 128, seed: int = 0) -> Any:
    """Make a small random model of one of the paper's families, with the switches of the published one.

    Args:
        family: "gpt2", "roberta" or "deberta-v2".
        labels: labels of a classifier's head; None makes GPT-2 a language model and gives the others two.
        vocabulary: rows of the table of tokens.
        seed: of its weights; the global random state is left as it was.

    Returns:
        A transformers model in eval mode, float32, on the CPU.

    Raises:
        ConfigError: if the paper has no such family.

    Example:
        >>> tiny_model("roberta", labels=3).num_labels
        3
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    if family not in _TINY:
        raise ConfigError(
            f"the paper has no models of the family {family!r}",
            where="family",
            got=repr(family),
            expected=f"one of {', '.join(_TINY)}",
            hint=f"closest: {nearest(family, _TINY, 1)}",
        )
    published = next(model for model in PAPER_MODELS.values() if model.family == family)
    values = {**preset(published.name).config, **_TINY[family], "vocab_size": vocabulary}
    values.pop("model_type")
    config = AutoConfig.for_model(family, **values)
    causal = labels is None and family == "gpt2"
    if not causal:
        config.num_labels = labels or 2
        config.pad_token_id = config.pad_token_id if config.pad_token_id is not None else 0
    build = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build.from_config(config, dtype=torch.float32).eval()
