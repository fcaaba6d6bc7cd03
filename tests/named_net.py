"""A model with look-alike names, and the sites that a configuration chooses in a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import deltaw as dw


def sites(model: nn.Module, **config: Any) -> dict[str, dw.Site]:
    return {site.path: site for site in dw.plan(model, dw.LoRAConfig(**config)).sites}


class Block(nn.Module):
    """A block with look-alike names."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))
        self.my_q_proj = nn.Linear(6, 6)
        self.q_proj_norm = nn.LayerNorm(6)


class Net(nn.Module):
    """Four blocks, an embedding, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.score = nn.Linear(6, 2)
        self.score_norm = nn.LayerNorm(2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.layers:
            x = x + block.q_proj_norm(block.q_proj(x) + block.k_proj(x) * block.v_proj(x) + block.my_q_proj(x))
        return self.score_norm(self.score(x))
