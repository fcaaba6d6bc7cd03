"""The models that every library is judged on, and adapters in words that belong to no library. Nothing is downloaded.

Every model is made from a fixed seed, so that two processes get the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 37


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An adapter as both libraries can make it.

    Args:
        targets: names, matched as the dotted endings of module paths.
        rank: inner dimension.
        alpha: numerator of the scaling.
        stabilized: scaling by alpha / sqrt(rank).
        dropout: on the term's input.
        variant: "lora", "dora" or "bias" (a bias on B).
        init: "default", "gaussian", "pissa", "olora", "orthogonal" or "eva".
        bias: which biases of the base are trained: "none", "all", "lora_only".
        exclude: names taken out of the targets.
        whole: modules trained in full.
        rows: table -> trained token ids.
        rank_pattern: name -> rank.
        alpha_pattern: name -> alpha.
        ties: None, "share" (one update on all users of a weight) or "separate".
        replication: ranges of layers to stack with shared weights, or empty.
    """

    targets: tuple[str, ...] = ()
    rank: int = 4
    alpha: float = 10.0
    stabilized: bool = False
    dropout: float = 0.0
    variant: str = "lora"
    init: str = "default"
    bias: str = "none"
    exclude: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    rows: dict[str, list[int]] = field(default_factory=dict)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    ties: str | None = None
    replication: tuple[tuple[int, int], ...] = ()

    def but(self, **changes: Any) -> Spec:
        return replace(self, **changes)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Table(nn.Module):
    """An embedding and a head; ``tied`` gives both one weight, as language models do."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table, self.mid, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, 8), nn.Linear(8, VOCAB, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.table(ids))))


class Conv(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], groups: int = 1) -> None:
        super().__init__()
        self.conv, self.last = kind(4, 8, 3, padding=1, groups=groups), kind(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.conv(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.attn.in_proj_bias, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OneWeight(nn.Module):
    """Two linear modules over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.right(torch.tanh(self.left(x)))


class TwoNames(nn.Module):
    """One module object under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.first(x)))


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class Blocks(nn.Module):
    """Two blocks, run under one kind of activation checkpointing or none."""

    def __init__(self, mode: str = "none") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Step() for _ in range(2))
        self.head, self.mode = nn.Linear(8, 3), mode

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        for block in self.blocks:
            x = block(x) if self.mode == "none" else checkpoint(block, x, use_reentrant=self.mode == "reentrant")
        return self.head(x)


class Siblings(nn.Module):
    """Three projections that read one tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + self.k(x) + self.v(x)


class Collides(nn.Module):
    """Modules and parameters whose names are those of adapters and of adapters' keys."""

    def __init__(self) -> None:
        super().__init__()
        self.default, self.lora, self.lora_A = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.base_layer, self.sql = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for module in (self.default, self.lora, self.lora_A, self.base_layer):
            x = torch.tanh(module(x))
        return x * self.sql


def llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def replicate(model: Any, ranges: tuple[tuple[int, int], ...]) -> None:
    """Stack layers of a Llama again: modules of their own over the same weights."""
    layers, stacked = model.model.layers, []
    for number in (index for start, stop in ranges for index in range(start, stop)):
        memo = {id(p): p for p in layers[number].parameters()}
        stacked.append(copy.deepcopy(layers[number], memo))
        stacked[-1].self_attn.layer_idx = len(stacked) - 1
    model.model.layers, model.config.num_hidden_layers = nn.ModuleList(stacked), len(stacked)


def made(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    """A base in eval mode whose values depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(4))


def output(out: Any) -> Tensor:
    """Logits, whatever the model wraps them in."""
    return out if isinstance(out, Tensor) else out.logits


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, an input and an adapter on it."""

    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    spec: Spec

    def base(self) -> nn.Module:
        return made(self.make)


def _case(make: Callable[[], nn.Module], x: Callable[[], Tensor], *targets: str, **fields: Any) -> Case:
    return Case(make=make, x=x, spec=Spec(targets=targets, **fields))


_MLP = floats(3, 8)
LAYERS: dict[str, Case] = {
    "linear": _case(Mlp, _MLP, "one", "two"),
    "rank-stabilized": _case(Mlp, _MLP, "one", "two", stabilized=True),
    "hf-conv1d": _case(gpt2, tokens, "c_attn", "c_proj"),
    "llama": _case(llama, tokens, "q_proj", "v_proj", "down_proj"),
    "embedding": _case(Table, tokens, "table", "mid"),
    "conv1d": _case(lambda: Conv(nn.Conv1d), floats(2, 4, 7), "conv"),
    "conv2d": _case(lambda: Conv(nn.Conv2d), floats(2, 4, 5, 5), "conv", "last"),
    "conv3d": _case(lambda: Conv(nn.Conv3d), floats(2, 4, 3, 3, 3), "conv"),
    "conv2d-groups": _case(lambda: Conv(nn.Conv2d, 2), floats(2, 4, 5, 5), "conv"),
    "attention": _case(Attention, floats(2, 5, 8), "attn"),
    "dora": _case(Mlp, _MLP, "one", "two", variant="dora"),
    "dora-conv2d": _case(lambda: Conv(nn.Conv2d), floats(2, 4, 5, 5), "conv", variant="dora"),
    "bias-on-b": _case(Mlp, _MLP, "one", "two", variant="bias"),
}
"""One case for each kind of layer, and for the variants that change what a merge is."""

FEATURES: dict[str, Case] = {
    **{name: LAYERS[name] for name in LAYERS if name not in ("linear", "dora-conv2d", "conv2d-groups")},
    "plain": LAYERS["linear"],
    "patterns": _case(llama, tokens, "q_proj", "v_proj", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3.0}),
    "bias-all": _case(Mlp, _MLP, "one", bias="all"),
    "bias-lora-only": _case(gpt2, tokens, "c_attn", bias="lora_only"),
    "modules-to-save": _case(Mlp, _MLP, "one", whole=("head",)),
    "token-rows": _case(llama, tokens, "q_proj", rows={"embed_tokens": [3, 5, 30]}),
    "embed-tokens": _case(llama, tokens, "embed_tokens", "q_proj"),
}
"""One case for each feature of the file format."""
