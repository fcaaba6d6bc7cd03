"""What a merge changes, block by block: a block that is not done, and tensors without values."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.blocks import Block, put_in


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_merge_that_is_stopped_within_a_weight_leaves_its_bits(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
    builders.attach(model, targets=["0", "1"], rank=2)
    builders.randomize(model)
    before, calls = builders.bits(model), []

    def stops(kind: Any, module: Any, entries: Any, block: Block, stored: torch.Tensor) -> None:
        put_in(kind, module, entries, block, stored)
        calls.append(block)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(importlib.import_module("deltaw.changes"), "put_in", stops)
    with pytest.raises(error):
        dw.merge(model)
    assert builders.bits(model) == before and len(calls) == 2
    monkeypatch.undo()
    dw.merge(model)


def test_a_copied_module_without_values_is_merged() -> None:
    class Odd(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("nothing", torch.empty(0))
            self.register_buffer("number", torch.tensor(1.0))

    model = nn.Sequential(nn.Linear(4, 4), Odd())
    builders.attach(model, targets="0", rank=2, train_also=["1"])
    report = dw.merge(model)
    assert {"1.nothing", "1.number"} <= set(report.unchanged)
    dw.unmerge(model)
