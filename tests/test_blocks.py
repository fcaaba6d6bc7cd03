"""A merge in blocks: together they are the weight, and the update is the one computed at once."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw as dw
from deltaw.blocks import blocks_of, dense_delta
from deltaw.layer import container_of
from deltaw.layers import Kind, kind_of

BLOCKS = importlib.import_module("deltaw.blocks")


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(24, 10)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(10, 24), {}),
    "conv1d": (conv1d, {}),
    "embedding": (lambda: nn.Embedding(30, 8), {}),
    "slices": (conv1d, {"targets": ["site[0:5,7:16]"]}),
    "slices_of_linear": (lambda: nn.Linear(10, 24), {"targets": ["site[0:5,7:16]"]}),
    "dora": (lambda: nn.Linear(10, 24), {"variant": "dora"}),
    "dora_conv1d": (conv1d, {"variant": "dora"}),
    "vera": (lambda: nn.Linear(10, 24), {"variant": "vera", "alpha": 2}),
    "conv": (lambda: nn.Conv2d(4, 6, 3), {}),
    "dora_conv": (lambda: nn.Conv2d(4, 6, 3), {"variant": "dora"}),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), {}),
    "pissa": (lambda: nn.Linear(10, 24), {"init": "pissa"}),
}


def worn(case: str) -> tuple[Kind, nn.Module, nn.Module, Tensor]:
    make, config = CASES[case]
    model = nn.ModuleDict({"site": make()})
    dw.attach(model, dw.LoRAConfig(**{"targets": ["site"], "rank": 2, "alpha": 3, "seed": 0, **config}))
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter += torch.randn_like(parameter)
    site = model["site"]
    kind = kind_of(site)
    assert kind is not None
    (entry,) = container_of(site)._modules.values()
    assert entry is not None
    return kind, site, entry, kind.weight(site).detach()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_blocks_are_the_weight_and_the_update(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, site, entry, weight = worn(case)
    whole = dense_delta(kind, site, entry, weight)
    assert bool(whole.any())
    for values in (1, 25, 1 << 20):
        monkeypatch.setattr(BLOCKS, "_VALUES", values)
        monkeypatch.setattr(BLOCKS, "_LINE", 3)
        blocks = list(blocks_of(kind, site, weight.shape, [entry]))
        assert len(blocks) == 1 if case == "grouped" or values > 1000 else len(blocks) > 1
        seen, made = torch.zeros_like(weight), torch.zeros_like(weight)
        for block in blocks:
            block.of(seen).add_(1)
            block.of(made).copy_(dense_delta(kind, site, entry, block.of(weight), block))
        assert bool((seen == 1).all())
        torch.testing.assert_close(made, whole)
