"""The reference scripts' AdamW against its formula in float64, and what weight decay reaches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from deltaw.train import AdapterConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, run
from deltaw.train.adamw import ReferenceAdamW
from deltaw.train.schedule import make_optimizer

GRADIENTS = (0.5, -0.25, 1e-6, 2.0, 0.0)


def by_formula(value: float, *, lr: float, eps: float, decay: float, correct: bool) -> list[float]:
    mean = square = 0.0
    values = []
    for step, gradient in enumerate(GRADIENTS, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        size = lr * math.sqrt(1 - 0.98**step) / (1 - 0.9**step) if correct else lr
        value -= size * mean / (math.sqrt(square) + eps)
        value -= lr * decay * value
        values.append(value)
    return values


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_reference_follows_its_formula(correct: bool, decay: float) -> None:
    weight = torch.nn.Parameter(torch.full((3,), 0.7, dtype=torch.float64))
    still = torch.nn.Parameter(torch.ones(2))
    optimizer = ReferenceAdamW(
        [weight, still], lr=0.05, betas=(0.9, 0.98), eps=1e-3, weight_decay=decay, correct_bias=correct
    )
    expected = by_formula(0.7, lr=0.05, eps=1e-3, decay=decay, correct=correct)
    for gradient, value in zip(GRADIENTS, expected, strict=True):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        assert weight.tolist() == pytest.approx([value] * 3, rel=1e-12)
    assert torch.equal(still, torch.ones(2)), "a parameter without a gradient is not decayed"


def test_epsilon_and_decay_come_in_another_order_than_in_torch() -> None:
    ends = {}
    for name in ("adamw", "adamw_reference"):
        weight = torch.nn.Parameter(torch.full((2, 2), 0.7))
        model = torch.nn.Module()
        model.weight = weight
        optimizer = make_optimizer(model, OptimConfig(optimizer=name, eps=1e-2, weight_decay=0.5), 0.1)
        for gradient in GRADIENTS:
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        ends[name] = float(weight.detach()[0, 0])
    assert abs(ends["adamw"] - ends["adamw_reference"]) > 1e-4


@pytest.mark.parametrize("name", ["adamw", "adamw_reference"])
def test_decay_of_all_reaches_vectors(name: str) -> None:
    groups = make_optimizer(
        torch.nn.Linear(2, 2), OptimConfig(optimizer=name, decay="all", weight_decay=0.25), 0.125
    ).param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.25]


def test_a_run_with_the_reference_resumes_bit_for_bit(base: Path, files: Path, tmp_path: Path) -> None:
    def config(name: str, steps: int, **more: object) -> TrainConfig:
        return TrainConfig(
            model=ModelConfig(path=str(base)),
            data=DataConfig(path=str(files / "pairs.jsonl"), valid_fraction=0.0),
            adapter=AdapterConfig(rank=2, dropout=0.1),
            optim=OptimConfig(steps=steps, lr=1e-2, optimizer="adamw_reference", correct_bias=False, weight_decay=0.1),
            run=RunConfig(output=str(tmp_path / name), save_every=3, probe=False, plot=False, sample_tokens=0, **more),
        )

    whole = run(config("whole", 6))
    # what a kill after step 3 leaves behind
    from deltaw.train.callbacks import Callback

    class StopAfter(Callback):
        done = 0

        def on_step(self, record: object) -> None:
            self.done += 1

        def wants_stop(self) -> bool:
            return self.done >= 3

    run(config("parts", 6), (StopAfter(),))
    parts = run(config("parts", 6, resume="auto"))
    assert parts.steps == whole.steps == 6
    name = "adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
