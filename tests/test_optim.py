"""Parameter groups: every trained parameter once, LoRA+ on B alone, decay on matrices alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError


def model() -> Any:
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 6), nn.Conv1d(6, 6, 1), nn.LayerNorm(6))
    builders.attach(net, targets=["0", "1", "2"], variant="dora", rank=2, train_also="3", bias="lora_only")
    return net


def names(net: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    known = {id(p): name for name, p in net.named_parameters()}
    return {group["name"]: {known[id(p)] for p in group["params"]} for group in groups}


def test_every_parameter_once() -> None:
    net = model()
    groups = dw.param_groups(net, lr=0.1, lora_plus=16, weight_decay=0.3)
    flat = [id(p) for group in groups for p in group["params"]]
    assert len(flat) == len(set(flat)) and set(flat) == {id(p) for _, p in dw.trainable(net)}
    found = names(net, groups)
    assert found["lora_B"] == {"1.lora.default.lora_B", "2.lora.default.lora_B"}
    assert "0.lora.default.lora_B" in found["plain"] and "1.lora.default.magnitude" in found["vectors"]
    assert "3.lora.default.module.weight" in found["vectors"] and "1.lora.default.bias" in found["vectors"]
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "plain": (0.1, 0.3), "vectors": (0.1, 0.0), "lora_B": (pytest.approx(1.6), 0.3)
    }  # fmt: skip


def test_a_step_moves_b_by_the_ratio() -> None:
    def moved(ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6))
        builders.attach(net, rank=2, targets="0", seed=1)
        builders.randomize(net)
        entry = net[0].lora.default
        before = entry.lora_A.detach().clone(), entry.lora_B.detach().clone()
        optimizer = torch.optim.SGD(dw.param_groups(net, lr=0.01, lora_plus=ratio))
        net(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        return entry.lora_A.detach() - before[0], entry.lora_B.detach() - before[1]

    (plain_A, plain_B), (plus_A, plus_B) = moved(1), moved(4)
    assert torch.equal(plain_A, plus_A)
    torch.testing.assert_close(plus_B, 4 * plain_B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"lr": -1}, {"lr": float("nan")}, {"lora_plus": 0}, {"weight_decay": -0.1}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        dw.param_groups(model(), **{"lr": 0.1, **options})


def test_lora_plus_without_a_b_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 6))
    builders.attach(net, rank=2, targets="0", variant="vera")
    with pytest.raises(ConfigError, match="nothing to work on"):
        dw.param_groups(net, lr=0.1, lora_plus=16)
