"""Rates and the optimizer."""

from __future__ import annotations

import pytest
import torch

import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.train.batches import BatchPlan
from deltaw.train.config import OptimConfig
from deltaw.train.schedule import learning_rate, make_optimizer, set_rate, warmup_of, warmup_steps


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


def test_warmup_in_tokens_counts_what_the_steps_see() -> None:
    lengths = [3, 5, 7, 9, 11, 13, 2, 4]
    plan = BatchPlan(lengths=lengths, batch_size=2, batch_tokens=None, accumulate=2, seed=3)
    per_step = [
        sum(lengths[row] for rows in window for row in rows) for epoch in (0, 1) for window in plan.windows(epoch)
    ]
    assert len(per_step) == 4 and sum(per_step) == 2 * sum(lengths)
    for tokens in (1, per_step[0], per_step[0] + 1, sum(per_step[:3]), sum(per_step)):
        found = warmup_of(OptimConfig(warmup_tokens=tokens), plan, 4)
        assert sum(per_step[:found]) >= tokens > sum(per_step[: found - 1])
    assert warmup_of(OptimConfig(warmup_tokens=10**6), plan, 4) == 4


def test_the_curve_at_fixed_points() -> None:
    """Linear with 6% of 1000 steps warm-up, as in Table 9; and with 500 steps, as in Table 11."""
    for optim, points in (
        (OptimConfig(warmup=0.06), {0: 1 / 60, 29: 0.5, 59: 1.0, 60: 1.0, 530: 0.5, 999: 1 / 940}),
        (OptimConfig(warmup=500), {0: 1 / 500, 249: 0.5, 499: 1.0, 500: 1.0, 750: 0.5, 999: 1 / 500}),
    ):
        plan = BatchPlan(lengths=[4] * 8, batch_size=2, batch_tokens=None, accumulate=1, seed=0)
        warmup = warmup_of(optim, plan, 1000)
        for step, share in points.items():
            rate = learning_rate(step, total=1000, peak=2e-4, schedule="linear", warmup=warmup)
            assert rate == pytest.approx(2e-4 * share, rel=1e-12), step


def test_settings_that_nothing_would_read_are_refused() -> None:
    from deltaw.train import DataConfig, ModelConfig, TrainConfig

    for optim, flag in (
        (OptimConfig(warmup=10, warmup_tokens=10), "--warmup-tokens"),
        (OptimConfig(correct_bias=False), "--no-correct-bias"),
    ):
        with pytest.raises(ConfigError, match=flag):
            TrainConfig(model=ModelConfig(path="base"), data=DataConfig(path="rows"), optim=optim)


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
