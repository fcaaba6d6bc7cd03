"""Rates and the optimizer."""

from __future__ import annotations

import pytest
import torch

import deltaw as dw
from deltaw.train.config import OptimConfig
from deltaw.train.schedule import learning_rate, make_optimizer, set_rate, warmup_steps


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_stay_positive_and_peak_once(schedule: str) -> None:
    rates = [learning_rate(step, total=20, peak=2.0, schedule=schedule, warmup=5) for step in range(20)]
    assert rates[:5] == [pytest.approx(2.0 * (step + 1) / 5) for step in range(5)]
    assert max(rates) == 2.0 and min(rates) > 0
    if schedule != "constant":
        assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 0.2


def test_warmup_as_steps_or_fraction() -> None:
    assert warmup_steps(0.1, 50) == 5
    assert warmup_steps(7, 50) == 7
    assert warmup_steps(70, 50) == 50


def test_the_optimizer_takes_its_settings() -> None:
    config = OptimConfig(beta1=0.5, beta2=0.75, eps=1e-3, weight_decay=0.25)
    matrices, vectors = make_optimizer(torch.nn.Linear(2, 2), config, 0.125).param_groups
    for group, decay in ((matrices, 0.25), (vectors, 0.0)):
        assert (group["betas"], group["eps"], group["lr"]) == ((0.5, 0.75), 1e-3, 0.125)
        assert group["weight_decay"] == decay


def test_the_schedule_keeps_the_ratio_of_lora_plus() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    dw.attach(model, dw.LoRAConfig(rank=2))
    optimizer = make_optimizer(model, OptimConfig(lora_plus=16.0), 0.5)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"plain": 0.5, "lora_B": 8.0}
    set_rate(optimizer, 0.25)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"plain": 0.25, "lora_B": 4.0}
