"""One tiny task for all trainers, and the plain loop that each of them must equal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import builders
import deltaw as dw

Row = dict[str, list[int]]

LR = 0.05
BATCH = 2


def rows(count: int = 12, length: int = 6, vocab: int = 32) -> list[Row]:
    """Random token rows of one length, so that no trainer has to pad."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, vocab, (count, length), generator=generator).tolist()
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * length} for row in ids]


def batches(data: list[Row], size: int = BATCH) -> list[dict[str, Tensor]]:
    """The rows in order, as tensors."""
    groups = [data[at : at + size] for at in range(0, len(data), size)]
    return [{key: torch.tensor([row[key] for row in group]) for key in group[0]} for group in groups]


def model(noise: float = 0.0, **config: Any) -> Any:
    """A tiny Llama with an adapter on its attention, in training mode; ``noise`` is the base's own dropout."""
    base = builders.llama()
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = noise
    settings = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"], "seed": 5, **config}
    builders.attach(base, **settings)
    return base.train()


def optimizer(net: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for _, p in dw.trainable(net)], lr=LR, weight_decay=0.0)


def plain_loop(net: Any, data: Iterable[dict[str, Tensor]], clip: float = 0.0) -> list[float]:
    """Train over the batches once; returns the losses."""
    steps, losses = optimizer(net), []
    for batch in data:
        loss = net(**batch).loss
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([p for _, p in dw.trainable(net)], clip)
        steps.step()
        steps.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def adapter(net: nn.Module) -> dict[str, Tensor]:
    """Copies of every adapter tensor, by key."""
    return {key: p.detach().clone() for key, p in net.named_parameters() if ".lora." in key}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], **tolerance: float) -> None:
    """Equal bit for bit, or within a tolerance where one is given."""
    assert left.keys() == right.keys() and left
    for key, value in left.items():
        if tolerance:
            torch.testing.assert_close(value, right[key], **tolerance)
        else:
            assert torch.equal(value, right[key]), key
