"""What is chosen for the user, and the reasons given."""

from __future__ import annotations

from typing import Any

import pytest

from deltaw.train.config import AdapterConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from deltaw.train.defaults import (
    Choices,
    Facts,
    advice,
    choose_batches,
    choose_length,
    choose_rank,
    choose_rest,
    learning_rate_for,
)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(path="m"), data=DataConfig(path="d"), **changes)


def facts(**changes: Any) -> Facts:
    return Facts(**{"family": "llama", "hidden": 4096, "positions": 4096, **changes})


@pytest.mark.parametrize(
    ("family", "hidden", "expected"),
    [("llama", 2048, 4.9e-4), ("llama", 4096, 2.9e-4), ("qwen3", 4096, 4.7e-4), ("gpt2", 768, 3e-4)],
)
def test_published_learning_rates(family: str, hidden: int, expected: float) -> None:
    """The formula's published values for 1B and 8B Llamas and an 8B Qwen3."""
    lr, reason = learning_rate_for(facts(family=family, hidden=hidden), 1000, "lora")
    assert lr == pytest.approx(expected, rel=0.02) and reason


def test_small_models_do_not_run_past_the_formula() -> None:
    assert learning_rate_for(facts(hidden=64), 1000, "lora")[0] < 2e-3


def test_short_runs_learn_faster_and_full_fine_tuning_slower() -> None:
    plain = learning_rate_for(facts(), 1000, "lora")[0]
    short, reason = learning_rate_for(facts(), 60, "lora")
    assert short == pytest.approx(1.5 * plain) and "under 100 steps" in reason
    assert learning_rate_for(facts(), 1000, "full")[0] == pytest.approx(plain / 10)


@pytest.mark.parametrize(
    ("changes", "expected", "word"),
    [
        ({}, 32, "enough for most data"),
        ({"per_rank": 10, "trained_tokens": 600}, 64, "600 trained tokens"),
        ({"per_rank": 10, "trained_tokens": 10**6}, 256, "trained tokens"),
        ({"hidden": 64}, 16, "a quarter of the hidden size 64"),
        ({"hidden": 192}, 32, "enough"),
        ({"hidden": 8}, 4, "a quarter"),
    ],
)
def test_ranks(changes: dict[str, Any], expected: int, word: str) -> None:
    choices = Choices()
    assert choose_rank(choices, config(), facts(**changes)) == expected
    assert word in choices.made[0].reason


def test_a_rank_that_was_given_is_kept() -> None:
    choices = Choices()
    assert choose_rank(choices, config(adapter=AdapterConfig(rank=5)), facts(hidden=8)) == 5
    assert choices.made[0].reason == "given"


@pytest.mark.parametrize(
    ("rows", "size", "epochs"), [(40, 4, 10), (200, 4, 3), (300, 8, 3), (1000, 16, 3), (50_000, 16, 3)]
)
def test_batches_and_epochs_aim_at_enough_steps(rows: int, size: int, epochs: int) -> None:
    choices = Choices()
    plan, total = choose_batches(choices, config(), [10] * rows)
    assert choices.values() == {"optim.batch_size": size, "optim.epochs": epochs}
    assert total == plan.steps(epochs)
    assert total >= 100 or rows == 40


def test_steps_that_were_given_are_the_run() -> None:
    choices = Choices()
    assert choose_batches(choices, config(optim=OptimConfig(steps=7)), [10] * 100)[1] == 7


@pytest.mark.parametrize(("positions", "expected"), [(512, 512), (131072, 2048), (None, 2048)])
def test_lengths(positions: int | None, expected: int) -> None:
    assert choose_length(Choices(), config(), positions) == expected


def test_validation_and_states_come_ten_times() -> None:
    choices = Choices()
    choose_rest(choices, config(), facts(), 1000, valid_rows=10)
    assert choices.values() | {"optim.lr": 0} == {"optim.lr": 0, "run.eval_every": 100, "run.save_every": 100}
    choices = Choices()
    choose_rest(choices, config(), facts(), 1000, valid_rows=0)
    assert choices.values()["run.eval_every"] == 0


def test_advice() -> None:
    choices = Choices()
    settings = config(optim=OptimConfig(batch_size=64, steps=20), adapter=AdapterConfig(rank=2))
    known = facts(per_rank=10, trained_tokens=1000)
    choose_rank(choices, settings, known)
    choose_batches(choices, settings, [10] * 640)
    text = "\n".join(advice(choices, known, settings, 20))
    assert "64 sequences per step" in text and "capacity is short: 20 adapter parameters" in text
    assert "20 steps are few" in text and "(raise --steps)" in text
    assert "(raise --epochs" in "\n".join(advice(Choices(), facts(), config(), 20))
    assert not advice(Choices(), facts(), config(), 500)
