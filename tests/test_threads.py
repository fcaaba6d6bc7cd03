"""Each thread, task and block has its own choice of adapters; recomputed forwards repeat what the first one drew."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
from deltaw.errors import StateError

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def worn(seed: int = 0, **config: Any) -> builders.MLP:
    model = builders.mlp().eval()
    builders.attach(model, **{"targets": "all-linear", "rank": 2, **config})
    builders.randomize(model, seed)
    return model


# threads, tasks


def test_threads_have_their_own_choice() -> None:
    model = worn()
    builders.attach(model, "b", targets="fc1", rank=2)
    builders.randomize(model, seed=7, adapter="b")
    dw.activate(model, "default")
    want: dict[Any, torch.Tensor] = {}
    for choice in ("default", "b"):
        with dw.active(model, choice):
            want[choice] = model(X)
    with dw.disabled(model):
        want[None] = model(X)
    wrong: list[Any] = []
    barrier = threading.Barrier(6)

    def run(choice: str | None) -> None:
        barrier.wait()
        for _ in range(60):
            with dw.disabled(model) if choice is None else dw.active(model, choice):
                if not torch.equal(model(X), want[choice]):
                    wrong.append(choice)

    threads = [threading.Thread(target=run, args=(choice,)) for choice in ("default", "b", None) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(model(X), want["default"])


def test_async_tasks_have_their_own_choice() -> None:
    model = worn()
    on = model(X)
    with dw.disabled(model):
        off = model(X)

    async def run(adapter: bool) -> bool:
        for _ in range(5):
            if adapter:
                with dw.active(model, "default"):
                    await asyncio.sleep(0)
                    got = model(X)
            else:
                with dw.disabled(model):
                    await asyncio.sleep(0)
                    got = model(X)
            if not torch.equal(got, on if adapter else off):
                return False
        return True

    async def main() -> list[bool]:
        return await asyncio.gather(*(run(bool(i % 2)) for i in range(6)))

    assert all(asyncio.run(main()))


def test_a_task_that_outlives_its_block_is_out_of_the_block() -> None:
    model = worn()
    on = model(X)
    with dw.disabled(model):
        off = model(X)

    async def main() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inside, outside = asyncio.Event(), asyncio.Event()

        async def task() -> tuple[torch.Tensor, torch.Tensor]:
            first = model(X)
            inside.set()
            await outside.wait()
            return first, model(X)

        with dw.disabled(model):
            running = asyncio.create_task(task())
            await inside.wait()
        # another override is in force somewhere else meanwhile
        with dw.active(model, {"default": 1.0}):
            outside.set()
            first, second = await running
            return first, second, model(X)

    first, second, third = asyncio.run(main())
    assert torch.equal(first, off) and torch.equal(second, on) and torch.equal(third, on)


def test_blocks_nest_and_survive_errors() -> None:
    model = worn()
    on = model(X)
    with pytest.raises(KeyError), dw.disabled(model):
        with dw.active(model, "default"):
            assert torch.equal(model(X), on)
        assert not torch.equal(model(X), on)
        raise KeyError
    assert torch.equal(model(X), on)


# activation checkpointing


class Blocks(nn.Module):
    """Blocks run plainly or under checkpointing; the first block's input needs no gradient."""

    def __init__(self, mode: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.mode is None else checkpoint(block, x, use_reentrant=self.mode == "reentrant")
        return x


def gradients(mode: str | None, steps: int, need: bool) -> list[torch.Tensor]:
    model = Blocks(mode).train()
    builders.attach(model, targets="all-linear", rank=2, dropout=0.4, seed=1)
    builders.randomize(model, size=0.5)
    found = []
    for step in range(steps):
        model.zero_grad()
        x = (X + step).requires_grad_(need)
        model(x).square().sum().backward()
        found += [p.grad.clone() for _, p in dw.trainable(model) if p.grad is not None]
    return found


@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_checkpointing_with_dropout_gives_the_same_gradients(mode: str, need: bool) -> None:
    if mode == "reentrant" and not need:
        pytest.skip("torch gives the first block no gradient; see the next test")
    plain, recomputed = gradients(None, 4, need), gradients(mode, 4, need)
    assert len(plain) == len(recomputed) == 4 * 6
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_without_a_gradient_at_the_input_is_found() -> None:
    model = Blocks("reentrant").train()
    builders.attach(model, targets="all-linear", rank=2)
    builders.randomize(model)
    x = X.clone()
    first, rest = model.blocks[0], model.blocks[1:]
    hidden = checkpoint(first, x, use_reentrant=True)
    for block in rest:
        hidden = block(hidden)
    hidden.sum().backward()
    report = dw.check(model)
    assert {p.where for p in report.problems} == {f"blocks.0.0.lora.default.lora_{f}" for f in "AB"}
    assert {p.kind for p in report.problems} == {"untrained"} and "use_reentrant=False" in report.problems[0].hint


def test_two_forwards_before_one_recomputed_backward_are_refused() -> None:
    model = Blocks("non-reentrant").train()
    builders.attach(model, targets="all-linear", rank=2, dropout=0.4)
    builders.randomize(model)
    loss = model(X).sum() + model(X).sum()
    with pytest.raises(StateError, match="cannot be recomputed"):
        loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_transformers_checkpointing(reentrant: bool) -> None:
    def run(recompute: bool) -> list[torch.Tensor]:
        model = builders.llama().train()
        model.config.use_cache = False
        builders.attach(model, targets="all-linear", rank=2, dropout=0.3, seed=2)
        builders.randomize(model)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        found = []
        for step in range(2):
            torch.manual_seed(step)
            model.zero_grad()
            tokens = builders.ids()
            model(tokens, labels=tokens).loss.backward()
            found += [p.grad.clone() for _, p in dw.trainable(model)]
        return found

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))
