"""Every kind of layer times every variant: how each is built, and the dense formula that it must agree with.

The formulas are written from the papers in float64, on whole weights as matrices (O, K), and know nothing of ``src``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import builders

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of layer in one shape.

    ``matrix`` tells how the stored weight lies; ``rows`` gives each slice its output rows.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    target: str = "layer"
    parameter: str = "weight"
    bias: str = "bias"
    transposed: bool = False
    groups: int = 1
    rank: int = 4
    rows: dict[str, list[int]] = field(default_factory=dict)
    several: bool = False

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(7)
        return nn.ModuleDict({self.target.partition("[")[0]: self.make()}).to(dtype).eval()

    def site(self, model: nn.Module) -> Any:
        return model.get_submodule(self.target.partition("[")[0])

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        site = self.site(model)
        return site(x, x, x, need_weights=False)[0] if self.several else site(x)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t() if self.transposed else weight.flatten(1)

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.t() if self.transposed else matrix.reshape(like.shape)


def _x(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _attention() -> nn.Module:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(module.in_proj_bias, std=0.3)
    return module


LAYERS = [
    Layer(name="linear", make=lambda: nn.Linear(8, 6), inputs=_x(2, 3, 8)),
    Layer(name="linear-no-bias", make=lambda: nn.Linear(8, 6, bias=False), inputs=_x(5, 8)),
    Layer(name="hf-conv1d", make=lambda: builders.conv1d(8, 6), inputs=_x(2, 3, 8), transposed=True),
    Layer(
        name="slices", make=lambda: builders.conv1d(8, 12), inputs=_x(2, 3, 8), transposed=True, target="c_attn[q,v]",
        rows={"q": [0, 1, 2, 3], "v": [8, 9, 10, 11]},
    ),
    Layer(
        name="embedding", make=lambda: nn.Embedding(10, 6), transposed=True,
        inputs=lambda: torch.tensor([[1, 2, 2], [9, 0, 3]]),
    ),
    Layer(name="conv1d", make=lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2), inputs=_x(2, 4, 11)),
    Layer(
        name="conv2d", make=lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 2), padding_mode="circular"),
        inputs=_x(2, 4, 5, 6),
    ),
    Layer(name="conv2d-same", make=lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), inputs=_x(2, 4, 5, 6)),
    Layer(
        name="conv2d-groups", make=lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect"),
        inputs=_x(2, 4, 5, 6), groups=2,
    ),
    Layer(name="conv2d-depthwise", make=lambda: nn.Conv2d(4, 8, 3, groups=4), inputs=_x(4, 5, 6), groups=4),
    Layer(name="conv2d-1x1", make=lambda: nn.Conv2d(4, 6, 1), inputs=_x(2, 4, 5, 6)),
    Layer(name="conv3d", make=lambda: nn.Conv3d(2, 6, (1, 2, 2), stride=(1, 2, 1)), inputs=_x(2, 2, 3, 4, 3)),
    Layer(
        name="attention", make=_attention, inputs=_x(2, 5, 8), target="layer[q,k,v]", parameter="in_proj_weight",
        bias="in_proj_bias", several=True, rows={p: list(range(8 * i, 8 * i + 8)) for i, p in enumerate("qkv")},
    ),
]  # fmt: skip


def lora(W: Tensor, t: Tensors, scaling: float, groups: int) -> Tensor:
    """W + scaling * B A, block by block."""
    A, B = t["lora_A"].flatten(1), t["lora_B"].flatten(1)
    if "start_A" in t:
        start = t["start_B"].flatten(1) @ t["start_A"].flatten(1)
        return W + scaling * (B @ A - start)
    rows_A, rows_B = A.chunk(groups), B.chunk(groups)
    return W + scaling * torch.cat([b @ a for a, b in zip(rows_A, rows_B, strict=True)])


def dora(W: Tensor, t: Tensors, scaling: float, groups: int) -> Tensor:
    """m / ||V|| * V with V = W + scaling * B A, rows as directions, the norm a constant."""
    V = lora(W, t, scaling, groups)
    return t["magnitude"][:, None] / V.detach().norm(dim=1, keepdim=True) * V


def vera(W: Tensor, t: Tensors, scaling: float, groups: int) -> Tensor:
    """W + diag(b) B diag(d) A."""
    return W + (t["vera_b"][:, None] * t["vera_B"]) @ (t["vera_d"][:, None] * t["vera_A"])


@dataclass(frozen=True, kw_only=True)
class Form:
    """One variant, initialization or combination of these."""

    name: str
    config: dict[str, Any]
    dense: Callable[[Tensor, Tensors, float, int], Tensor] = lora
    trained: tuple[str, ...] = ("lora_A", "lora_B")
    scaling: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    refused: tuple[str, ...] = ()
    start: float = 0.0
    mixes: bool = True
    peft: bool = True


_SPECTRAL = ("embedding", "conv")
FORMS = [
    Form(name="lora", config={}),
    Form(name="rank-stabilized", config={"rank_stabilized": True}, scaling=lambda alpha, rank: alpha / rank**0.5),
    Form(
        name="dora", config={"variant": "dora"}, dense=dora, trained=("lora_A", "lora_B", "magnitude"), mixes=False,
    ),
    Form(name="lora-fa", config={"variant": "lora_fa"}, trained=("lora_B",), refused=("embedding",)),
    Form(
        name="lora-bias", config={"variant": "lora_bias"}, trained=("lora_A", "lora_B", "bias_B"),
        refused=("embedding",),
    ),
    Form(
        name="dora-fa-bias", config={"variant": ["dora", "lora_fa", "lora_bias"]}, dense=dora, mixes=False,
        trained=("lora_B", "magnitude", "bias_B"), refused=("embedding",), peft=False,
    ),
    Form(
        name="vera", config={"variant": "vera"}, dense=vera, trained=("vera_b", "vera_d"),
        scaling=lambda alpha, rank: 1.0, refused=("embedding", "conv", "slices", "attention"),
    ),
    Form(name="gaussian", config={"init": "gaussian"}),
    Form(name="orthogonal", config={"init": "orthogonal"}, start=1e-6, refused=_SPECTRAL),
    Form(name="pissa", config={"init": "pissa"}, refused=_SPECTRAL),
    Form(name="olora", config={"init": "olora"}, refused=_SPECTRAL),
    Form(
        name="pissa-dora", config={"init": "pissa_fast", "variant": "dora"}, dense=dora, refused=_SPECTRAL,
        trained=("lora_A", "lora_B", "magnitude"), mixes=False,
    ),
]  # fmt: skip


def is_refused(layer: Layer, form: Form) -> bool:
    """Whether a variant does not apply to a layer; ``hf-conv1d`` is a linear map."""
    return any(layer.name.startswith(name) for name in form.refused)
