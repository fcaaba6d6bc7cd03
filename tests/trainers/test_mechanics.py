"""What every trainer switches on sooner or later: activation checkpointing, autocast, torch.compile, a second run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
import loops

BATCHES = loops.batches(loops.rows())


def test_a_plain_loop_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = loops.model(dropout=0.3)
    steps = loops.optimizer(whole)
    losses = []
    for number, batch in enumerate(BATCHES):
        if number == 3:
            torch.save({"model": whole.state_dict(), "optimizer": steps.state_dict()}, tmp_path / "state.pt")
        loss = whole(**batch).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(float(loss.detach()))
    parted = loops.model(dropout=0.3)
    steps = loops.optimizer(parted)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    parted.load_state_dict(state["model"])
    steps.load_state_dict(state["optimizer"])
    for number, batch in enumerate(BATCHES[3:], 3):
        loss = parted(**batch).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
        assert float(loss.detach()) == losses[number]
    loops.assert_same(loops.adapter(parted), loops.adapter(whole))


def test_a_state_dict_of_adapters_alone_is_complete() -> None:
    net, other = loops.model(dropout=0.3), loops.model(dropout=0.3)
    loops.plain_loop(net, BATCHES[:2])
    state = {key: value for key, value in net.state_dict().items() if ".lora." in key}
    assert sum(key.endswith(".draws") for key in state) == 4
    other.load_state_dict(state)
    loops.assert_same(loops.adapter(other), loops.adapter(net))
    assert dw.draws(other) == dw.draws(net)
    bare = loops.model()  # without dropout the counters have no place, and need none
    bare.load_state_dict(state)
    loops.assert_same(loops.adapter(bare), loops.adapter(net))


class Blocks(nn.Module):
    """Two blocks under one kind of checkpointing."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, 2)
        self.mode = mode
        builders.attach(self, rank=2, targets=["blocks.*.0", "head"], dropout=0.2, seed=1)
        builders.randomize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.mode == "none" else checkpoint(block, x, use_reentrant=self.mode == "reentrant")
        return self.head(x)


@pytest.mark.parametrize("mode", ["reentrant", "not reentrant"])
def test_checkpointing_with_a_grad_requiring_input(mode: str) -> None:
    grads = []
    for kind in ("none", mode):
        net = Blocks(kind)
        net(torch.ones(3, 6, requires_grad=True)).square().sum().backward()
        assert dw.check(net).ok
        grads.append({key: p.grad.clone() for key, p in dw.trainable(net) if p.grad is not None})
    loops.assert_same(grads[1], grads[0], rtol=1e-6, atol=1e-7)


def test_reentrant_checkpointing_without_one_is_found() -> None:
    net = Blocks("reentrant")
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        net(torch.ones(3, 6)).square().sum().backward()
    assert {problem.kind for problem in dw.check(net).problems} == {"untrained"}
    assert {problem.where.split(".lora.")[0] for problem in dw.check(net).problems} == {"blocks.0.0", "blocks.1.0"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_transformers_switches_reentrant_on_properly(reentrant: bool) -> None:
    losses, plain, net = [], loops.model(), loops.model()
    net.activation_checkpointing_enable({"use_reentrant": reentrant})
    losses = [loops.plain_loop(each, BATCHES[:3]) for each in (plain, net)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    loops.assert_same(loops.adapter(net), loops.adapter(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_autocast(dropout: float) -> None:
    net, losses = loops.model(dropout=dropout), []
    steps = loops.optimizer(net)
    for batch in BATCHES:
        with torch.autocast("cpu", torch.bfloat16):
            out = net(**batch)
        assert out.logits.dtype == torch.bfloat16
        out.loss.backward()
        assert dw.check(net, optimizer=steps).ok
        steps.step()
        steps.zero_grad()
        losses.append(float(out.loss.detach()))
    assert losses == pytest.approx(loops.plain_loop(loops.model(dropout=dropout), BATCHES), rel=0.02)
    assert all(p.dtype == torch.float32 for _, p in dw.trainable(net))


class Three(nn.Module):
    """The three kinds of site that transformers' language models have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.linear, self.conv1d = nn.Embedding(10, 6), nn.Linear(6, 6), builders.conv1d(6, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.conv1d(F.relu(self.linear(self.embed(ids))))


IDS = torch.arange(12).reshape(3, 4) % 10


def compiled(net: nn.Module) -> tuple[Any, CompileCounterWithBackend]:
    """The compiled model, where a graph break is an error, and the count of graphs compiled so far."""
    graphs = CompileCounterWithBackend("aot_eager")
    return torch.compile(net, backend=graphs, fullgraph=True), graphs


@pytest.mark.parametrize("train", [True, False])
def test_compile_makes_one_graph(train: bool) -> None:
    net = Three().train(train)
    builders.attach(net, rank=2, targets=["embed", "linear", "conv1d"])
    builders.randomize(net)
    fast, graphs = compiled(net)
    expected = net(IDS)
    expected.square().sum().backward()
    grads = {key: p.grad.clone() for key, p in dw.trainable(net) if p.grad is not None}
    net.zero_grad()
    for _ in range(3):
        out = fast(IDS)
        torch.testing.assert_close(out, expected)
        net.zero_grad()
        out.square().sum().backward()
    loops.assert_same({k: p.grad for k, p in dw.trainable(net) if p.grad is not None}, grads, rtol=1e-4, atol=1e-5)
    assert graphs.frame_count == 1 and dw.check(fast).ok and len(grads) == 6


def test_a_compiled_models_verbs_reach_the_model(tmp_path: Path) -> None:
    net = Three()
    builders.attach(net, rank=2, targets=["embed", "linear", "conv1d"])
    builders.randomize(net)
    fast, _ = compiled(net)
    on = fast(IDS)
    dw.save(fast, tmp_path)
    assert all("_orig_mod" not in key for key in dw.Adapter.open(tmp_path).tensors)
    dw.merge(fast)
    torch.testing.assert_close(fast(IDS), on)
    dw.unmerge(fast)
    torch.testing.assert_close(fast(IDS), on)
    dw.activate(fast, None)
    off = fast(IDS)
    dw.detach(fast)
    assert torch.equal(fast(IDS), off) and not torch.equal(on, off)


def switching(net: nn.Module, choices: list[Any]) -> list[int]:
    """Graphs compiled after each choice of what is active; None is the base alone."""
    fast, graphs = compiled(net)
    seen = []
    for choice in choices:
        with dw.disabled(net) if choice is None else dw.active(net, choice):
            torch.testing.assert_close(fast(IDS), net(IDS))
        seen.append(graphs.frame_count)
    return seen


def two() -> nn.Module:
    net = Three()
    for seed, name in enumerate("ab"):
        builders.attach(net, name, rank=2, targets=["embed", "linear", "conv1d"])
        builders.randomize(net, seed=seed, adapter=name)
    return net


def test_off_is_one_more_graph() -> None:
    assert switching(two(), ["a", None] * 3) == [1, 2, 2, 2, 2, 2]


def test_each_adapter_is_one_more_graph() -> None:
    assert switching(two(), ["a", "b"] * 3) == [1, 2, 2, 2, 2, 2]


def test_a_weight_is_a_tensor_of_the_graph() -> None:
    assert switching(two(), [{"a": weight} for weight in (0.5, 0.25, 0.7, -1.0, 2.0)]) == [1, 1, 1, 1, 1]
    assert switching(two(), [{"a": weight, "b": 1 - weight} for weight in (0.5, 0.25, 0.7)]) == [1, 1, 1]


def test_lasting_choices_compile_once_each() -> None:
    net = two()
    fast, graphs = compiled(net)
    seen = []
    for choice in ("a", "b", None, {"a": 0.3}, {"a": 0.6}) * 2:
        dw.activate(net, choice)
        torch.testing.assert_close(fast(IDS), net(IDS))
        seen.append(graphs.frame_count)
    assert seen == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_other_threads_keep_their_choice_when_compiled() -> None:
    net = two()
    dw.activate(net, "a")
    fast, _ = compiled(net)
    on, found = fast(IDS), []
    with dw.disabled(net):
        off = fast(IDS)
        thread = threading.Thread(target=lambda: found.append(fast(IDS)))
        thread.start()
        thread.join()
        with dw.active(net, "b"):
            assert not torch.equal(fast(IDS), off)
        assert torch.equal(fast(IDS), off)
    assert torch.equal(found[0], on) and not torch.equal(on, off)


def test_dropout_does_not_break_the_graph() -> None:
    net = Three().train()
    builders.attach(net, rank=2, targets=["conv1d"], dropout=0.5)
    builders.randomize(net)
    fast, graphs = compiled(net)
    outs = [fast(IDS) for _ in range(3)]
    outs[0].sum().backward()
    assert graphs.frame_count == 1 and not torch.equal(outs[0], outs[1]) and dw.check(fast).ok
    draws = torch.stack([fast(IDS).detach() for _ in range(2000)]).mean(0)
    torch.testing.assert_close(draws, net.eval()(IDS).detach(), rtol=0.1, atol=0.15)


@pytest.mark.parametrize("variant", [("dora",), ("lora_fa",), ("lora_bias",), ("vera",), ("dora", "lora_bias")])
def test_variants_compile_to_one_graph(variant: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    builders.attach(net, rank=2, targets=["0", "2"], variant=variant)
    fast, graphs = compiled(net)
    for _ in range(2):
        torch.testing.assert_close(fast(torch.ones(3, 6)), net(torch.ones(3, 6)))
        fast(torch.ones(3, 6)).sum().backward()
    assert graphs.frame_count == 1 and dw.check(fast).judged


@torch.no_grad()
def test_inference_has_one_graph_for_every_adapter_and_one_without() -> None:
    """Which adapter is a tensor of the graph; ranks, scalings and missing sites differ here."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    builders.attach(net, "a", rank=2, targets=["0", "2"])
    builders.attach(net, "b", rank=3, alpha=5.0, targets=["0"])
    builders.randomize(net)
    fast, graphs = compiled(net)
    x, seen = torch.linspace(-1, 1, 18).view(3, 6), []
    for choice in ("a", "b", {"a": 0.5}, {"b": -2.0}, None, "a", None, "b"):
        dw.activate(net, choice)
        torch.testing.assert_close(fast(x), net(x))
        seen.append(graphs.frame_count)
    assert seen == [1, 1, 1, 1, 2, 2, 2, 2]
