"""Rates and the optimizer."""

from __future__ import annotations

import pytest
import torch

from deltaw.train.config import OptimConfig
from deltaw.train.schedule import learning_rate, make_optimizer, warmup_steps


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
    parameter = torch.nn.Parameter(torch.ones(3))
    config = OptimConfig(beta1=0.5, beta2=0.75, eps=1e-3, weight_decay=0.25)
    group = make_optimizer([("p", parameter)], config, 0.125).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.5, 0.75), 1e-3, 0.25, 0.125)
