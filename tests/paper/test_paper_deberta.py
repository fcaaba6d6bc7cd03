"""DeBERTa v2's encoder against its equations, written again in float64: disentangled attention and all around it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaw as dw
from deltaw.paper.models import targets_of, tiny_model

IDS = torch.tensor([[5, 9, 2, 7, 7, 3, 11, 40, 17, 90, 6, 1, 33, 21, 8, 50, 12, 4, 99, 2]])


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-7)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    weight = weights[f"{name}.weight"]
    if f"{name}.lora.default.lora_A" in weights:
        weight = weight + weights[f"{name}.lora.default.lora_B"] @ weights[f"{name}.lora.default.lora_A"]
    return x @ weight.T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def bucket(distance: int, buckets: int, positions: int) -> int:
    """Near distances one by one, far ones by their logarithm (He et al. 2021, arXiv:2006.03654, appendix)."""
    half = buckets // 2
    if abs(distance) <= half:
        return distance
    far = math.log(abs(distance) / half) / math.log((positions - 1) / half) * (half - 1)
    return int(math.copysign(math.ceil(far) + half, distance))


def attention(x: Tensor, relative: Tensor, weights: dict[str, Tensor], name: str, config: Any) -> Tensor:
    """Content to content, content to position and position to content, over sqrt(3 d)."""
    length, heads, span = x.shape[0], config.num_attention_heads, config.position_buckets
    size = x.shape[1] // heads

    def split(y: Tensor) -> Tensor:
        return y.reshape(-1, heads, size).transpose(0, 1)

    q, k, v = (split(linear(x, weights, f"{name}.self.{part}_proj")) for part in ("query", "key", "value"))
    # The positions go through the content's own projections: share_att_key.
    q_pos, k_pos = (split(linear(relative, weights, f"{name}.self.{part}_proj")) for part in ("query", "key"))
    scores = torch.zeros(heads, length, length, dtype=x.dtype)
    for i in range(length):
        for j in range(length):
            place = bucket(i - j, span, config.max_position_embeddings) + span
            place = min(max(place, 0), 2 * span - 1)
            content = (q[:, i] * k[:, j]).sum(-1)
            scores[:, i, j] = content + (q[:, i] * k_pos[:, place]).sum(-1) + (k[:, j] * q_pos[:, place]).sum(-1)
    mixed = torch.softmax(scores / math.sqrt(3 * size), -1) @ v
    out = linear(mixed.transpose(0, 1).reshape(length, -1), weights, f"{name}.output.dense")
    return norm(out + x, weights, f"{name}.output.LayerNorm")


def layer(x: Tensor, relative: Tensor, weights: dict[str, Tensor], name: str, config: Any) -> Tensor:
    x = attention(x, relative, weights, f"{name}.attention", config)
    inner = gelu(linear(x, weights, f"{name}.intermediate.dense"))
    return norm(linear(inner, weights, f"{name}.output.dense") + x, weights, f"{name}.output.LayerNorm")


def convolution(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """A convolution of width 3 over the tokens, of the embeddings."""
    kernel, bias = weights["encoder.conv.conv.weight"], weights["encoder.conv.conv.bias"]
    padded = torch.cat([torch.zeros_like(x[:1]), x, torch.zeros_like(x[:1])])
    return gelu(torch.stack([torch.einsum("kc,ock->o", padded[i : i + 3], kernel) + bias for i in range(len(x))]))


def reference(model: Any, ids: Tensor) -> Tensor:
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    weights = {name.removeprefix("deberta."): value for name, value in weights.items()}
    config = model.config
    start = norm(weights["embeddings.word_embeddings.weight"][ids[0]], weights, "embeddings.LayerNorm")
    relative = norm(weights["encoder.rel_embeddings.weight"], weights, "encoder.LayerNorm")
    x = start
    for index in range(config.num_hidden_layers):
        x = layer(x, relative, weights, f"encoder.layer.{index}", config)
        if index == 0:
            x = norm(convolution(start, weights) + x, weights, "encoder.conv.LayerNorm")
    pooled = gelu(linear(x[:1], weights, "pooler.dense"))
    return linear(pooled, weights, "classifier")


def loud_model() -> Any:
    """Weights large enough that every part of the equations moves the logits."""
    model = tiny_model("deberta-v2", labels=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("adapted", [False, True])
def test_logits_equal_the_equations(adapted: bool) -> None:
    model = loud_model()
    if adapted:
        dw.attach(model, dw.LoRAConfig(targets=targets_of("deberta-v2", "qkvo"), rank=2, alpha=2))
        with torch.no_grad():
            for name, parameter in dw.trainable(model):
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    expected = reference(model, IDS)
    with torch.no_grad():
        found = model.double()(IDS).logits
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_far_tokens_share_a_bucket() -> None:
    places = [bucket(distance, 8, 64) for distance in range(-19, 20)]
    assert places[19 - 4 : 19 + 5] == list(range(-4, 5))
    assert len(set(places)) < len(places) and places == [-place for place in reversed(places)]
