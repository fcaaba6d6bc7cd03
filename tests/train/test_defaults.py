"""What is chosen for the user, and the reasons given."""

from __future__ import annotations

from typing import Any

import pytest

from deltaw.initialize import INITIALIZATIONS
from deltaw.train.config import AdapterConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from deltaw.train.defaults import (
    Choices,
    Facts,
    add_fixed,
    advice,
    choose_batches,
    choose_length,
    choose_rank,
    choose_rest,
    learning_rate_for,
)
from deltaw.train.habits import INIT_HABITS, VARIANT_HABITS
from deltaw.variants import VARIANTS


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


def test_vera_wants_a_larger_rank_and_rate_than_lora() -> None:
    vera = config(adapter=AdapterConfig(variant=("vera",)))
    choices = Choices()
    assert choose_rank(choices, vera, facts()) == 256 and "2310.11454" in choices.made[0].reason
    assert choose_rank(Choices(), vera, facts(hidden=64)) == 64
    choose_rest(choices, vera, facts(), 1000, valid_rows=0)
    plain = learning_rate_for(facts(), 1000, "lora")[0]
    assert choices.values()["optim.lr"] == pytest.approx(10 * plain)
    add_fixed(choices, vera, adapter=True, task="causal")
    assert choices.values()["adapter.variant"] == "vera"
    # it has neither a scaling nor an initialization to choose
    assert not {"adapter.alpha", "adapter.init"} & set(choices.values())


def test_two_rates_lie_about_loras_own() -> None:
    choices = Choices()
    choose_rest(choices, config(optim=OptimConfig(lora_plus=16.0)), facts(), 1000, valid_rows=0)
    plain = learning_rate_for(facts(), 1000, "lora")[0]
    (made,) = (choice for choice in choices.made if choice.name == "optim.lr")
    assert made.value == pytest.approx(plain / 4) and "root of lora_plus 16" in made.reason
    choose_rest(choices, config(optim=OptimConfig(lora_plus=16.0, lr=0.01)), facts(), 1000, valid_rows=0)
    assert choices.values()["optim.lr"] == 0.01


def test_a_start_from_data_says_how_many_batches_it_looks_at_and_why() -> None:
    choices = Choices()
    add_fixed(choices, config(adapter=AdapterConfig(init="eva")), adapter=True, task="causal")
    found = {choice.name: choice for choice in choices.made}
    assert found["adapter.init_batches"].value == 8 and "64 rows" in found["adapter.init_batches"].reason
    choices = Choices()
    add_fixed(choices, config(), adapter=True, task="causal")
    assert "adapter.init_batches" not in choices.values()


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (AdapterConfig(variant=("dora",)), "costs time"),
        (AdapterConfig(variant=("lora_fa",)), "keeps its input"),
        (AdapterConfig(variant=("lora_bias",)), "stays beside its base"),
        (AdapterConfig(variant=("vera",)), "most of the file"),
        (AdapterConfig(variant=("dora", "lora_bias")), "PEFT refuses it"),
        (AdapterConfig(init="pissa"), "lower rate"),
        (AdapterConfig(init="lora_ga"), "gradient of every adapted weight"),
    ],
)
def test_what_a_choice_costs_is_said(adapter: AdapterConfig, said: str) -> None:
    assert said in "\n".join(advice(Choices(), facts(), config(adapter=adapter), 500))


def test_habits_speak_of_things_that_exist() -> None:
    assert set(VARIANT_HABITS) <= set(VARIANTS) and set(INIT_HABITS) <= set(INITIALIZATIONS)
    assert {name for name, habit in VARIANT_HABITS.items() if not habit.scaled} == {
        name for name, variant in VARIANTS.items() if not variant.scaled
    }
    assert {name for name, habit in INIT_HABITS.items() if habit.looks} == {
        name for name, way in INITIALIZATIONS.items() if way.needs in ("inputs", "gradient")
    }


def test_one_of_a_thing_is_said_so() -> None:
    assert "1 step is few" in "\n".join(advice(Choices(), facts(), config(), 1))
