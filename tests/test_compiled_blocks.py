"""Blocks around a compiled model: threads, tasks that take turns in one thread, routes; none sees another's choice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import builders
import deltaw as dw

# torch itself warns of the outputs that it hands from one graph to the next
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")]

X = torch.linspace(-1, 1, 18).reshape(3, 6)
Wanted = dict[str | None, Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(grad: bool = False) -> tuple[Any, Any, Wanted]:
    """A model with two adapters, the same compiled, and what each choice gives."""
    model = builders.mlp().eval()
    for seed, name in enumerate("ab"):
        builders.attach(model, name, targets="all-linear", rank=2 + seed)
        builders.randomize(model, seed, size=0.5, adapter=name)
    dw.activate(model, "a")
    want: Wanted = {}
    with torch.set_grad_enabled(grad):
        for name in ("a", "b"):
            with dw.active(model, name):
                want[name] = model(X)
        with dw.disabled(model):
            want[None] = model(X)
        fast = torch.compile(model, backend=CompileCounterWithBackend("eager"))
        torch.testing.assert_close(fast(X), want["a"])
    return model, fast, want


def block(model: Any, name: str | None) -> Any:
    return dw.disabled(model) if name is None else dw.active(model, name)


@pytest.mark.parametrize("grad", [False, True])
def test_tasks_that_take_turns(grad: bool) -> None:
    model, fast, want = compiled(grad)
    wrong: list[Any] = []

    async def task(name: str | None) -> None:
        with block(model, name):
            for _ in range(3):
                await asyncio.sleep(0)
                with torch.set_grad_enabled(grad):
                    if not torch.allclose(fast(X), want[name], atol=1e-6):
                        wrong.append(name)

    async def main() -> None:
        await asyncio.gather(*(task(name) for name in ("a", "b", None)))

    asyncio.run(main())
    assert not wrong
    for name in ("b", "a"):
        dw.activate(model, name)
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(fast(X), want[name], msg="a task's choice stayed behind")


@pytest.mark.parametrize("grad", [False, True])
def test_a_route(grad: bool) -> None:
    model, fast, want = compiled(grad)
    for names in (["a", None, "b"], ["b", "b", "a"]):
        with torch.set_grad_enabled(grad), dw.route(model, names):
            rows = torch.stack([want[name][row] for row, name in enumerate(names)])
            torch.testing.assert_close(fast(X), rows)
            with dw.disabled(model):
                torch.testing.assert_close(fast(X), want[None])
            torch.testing.assert_close(fast(X), rows)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(fast(X), want["a"])


def test_threads() -> None:
    model, fast, want = compiled()
    wrong: list[Any] = []

    def run(name: str | None) -> None:
        for _ in range(10):
            with block(model, name), torch.no_grad():
                if not torch.allclose(fast(X), want[name], atol=1e-6):
                    wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
