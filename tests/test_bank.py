"""The adapter bank: parameters are views of their slots, and everything an adapter promises still holds."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import builders
import deltaw as dw
from deltaw.bank import Stack
from deltaw.errors import StateError
from deltaw.layer import container_of
from test_mixed import IDS, ROWS, Three, three

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def stack_of(module: nn.Module) -> Stack:
    stack = container_of(module).stack
    assert stack is not None
    return stack


def assert_linked(model: Three) -> None:
    """Every parameter is a view of its slot: no second copy."""
    for module in (model.embed, model.linear, model.conv1d):
        stack = stack_of(module)
        for name, slot in stack.slots.items():
            entry: Any = container_of(module)._modules[name]
            assert stack.A is not None and stack.B is not None
            rank = entry.part.rank
            for parameter, own in ((entry.lora_A, stack.A[slot, :rank]), (entry.lora_B, stack.B[slot, :rank].t())):
                assert parameter.data_ptr() == own.data_ptr() and parameter.stride() == own.stride()
                assert isinstance(parameter, nn.Parameter) and parameter.shape == own.shape
            assert not stack.A[slot, rank:].any() and not stack.B[slot, rank:].any(), "padding is zero"


@torch.no_grad()
def routed(model: nn.Module, names: Any = ROWS, x: Tensor = IDS) -> Tensor:
    with dw.route(model, names):
        out: Tensor = model(x)
    return out


def test_slots_hold_the_adapters_own_tensors() -> None:
    model = three()
    before, want, values = dict(model.named_parameters()), routed(model), builders.bits(model)
    bank = dw.AdapterBank(model, size=4)
    assert bank.names == ("a", "b", "c", None) and bank.rank == 5
    assert_linked(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before), "optimizers hold on"
    assert builders.bits(model) == values
    torch.testing.assert_close(routed(model), want)
    assert bank.nbytes == 4 * 4 * 5 * (10 + 6 + 6 + 8 + 8 + 4)
    assert dw.AdapterBank.of(model) is bank


def test_edits_loads_and_steps_are_seen() -> None:
    model, other = three(), three()
    dw.AdapterBank(model, size=4)
    for change in ("edit", "step"):
        for net in (model, other):
            entry: Any = container_of(net.linear)._modules["a"]
            if change == "edit":
                with torch.no_grad():
                    entry.lora_B.mul_(-1.5)
            else:
                optimizer = torch.optim.AdamW([p for _, p in dw.trainable(net)], lr=0.1, fused=True)
                with dw.route(net, ROWS):
                    net(IDS).square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(routed(model), routed(other))
    assert_linked(model)


def test_load_takes_a_slot_and_detach_frees_it(tmp_path: Path) -> None:
    model = three()
    dw.save(model, tmp_path, name="b")
    bank = dw.AdapterBank(model, size=4)
    want = routed(model, ["b"] * 6)
    dw.load(model, tmp_path, name="again")
    assert bank.names == ("a", "b", "c", "again")
    assert_linked(model)
    torch.testing.assert_close(routed(model, ["again", "b"] * 3), want)
    held: Any = container_of(model.linear)._modules["a"]
    kept = held.lora_A.detach().clone()
    dw.detach(model, "a")
    builders.attach(model, "new", targets=["linear"], rank=1)
    builders.randomize(model, 9, adapter="new")
    assert bank.names == ("new", "b", "c", "again") and torch.equal(held.lora_A, kept), "a freed slot is nobody's"
    assert_linked(model)
    with dw.active(model, "new"):
        alone = model(IDS)
    torch.testing.assert_close(routed(model, ["new", "b"] * 3)[::2], alone[::2])


def test_saving_and_state_dicts(tmp_path: Path) -> None:
    model, plain = three(), three()
    dw.AdapterBank(model, size=4)
    for name in "abc":
        for net, place in ((model, "bank"), (plain, "plain")):
            dw.save(net, tmp_path / place / name, name=name)
        assert (tmp_path / "bank" / name / "adapter_model.safetensors").read_bytes() == (
            tmp_path / "plain" / name / "adapter_model.safetensors"
        ).read_bytes()
    state = model.state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())
    save_file(state, tmp_path / "state.safetensors")
    other = three(names="abc")
    builders.randomize(other, 77)
    dw.AdapterBank(other, size=3)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(routed(other), routed(model))
    other = three()
    dw.AdapterBank(other, size=3)
    builders.randomize(other, 78)
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    assert_linked(other)
    assert torch.equal(routed(other), routed(model))


def test_copies_and_pickles_have_slots_of_their_own() -> None:
    model = three()
    dw.AdapterBank(model, size=4)
    want = routed(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(routed(twin), want)
        assert_linked(twin)
        assert dw.AdapterBank.of(twin) is not dw.AdapterBank.of(model)
        builders.randomize(twin, 5)
        assert not torch.allclose(routed(twin), want)
        torch.testing.assert_close(routed(model), want)
        dw.detach(twin, "a")
    assert_linked(model)


def test_a_copy_first_used_in_inference_can_be_trained() -> None:
    model = three()
    dw.AdapterBank(model, size=3)
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        routed(twin)
        dw.detach(twin, "c")
    with dw.route(twin.train(), ["a", "b"] * 3):
        twin(IDS).square().sum().backward()
    assert all(p.grad is not None for _, p in dw.trainable(twin))


def test_sharded_parameters_are_refused() -> None:
    model = three()
    dw.AdapterBank(model, size=3)

    class Sharded(Tensor):
        pass

    entry: Any = container_of(model.linear)._modules["a"]
    entry.lora_A = nn.Parameter(entry.lora_A.detach().clone().as_subclass(Sharded))
    with pytest.raises(StateError, match="replaced by another library"):
        routed(model)


def test_casting_moving_and_merging() -> None:
    model = three()
    bank = dw.AdapterBank(model, size=4)
    want = routed(model)
    model.double()
    assert_linked(model)
    assert routed(model).dtype == torch.float64
    torch.testing.assert_close(routed(model).float(), want)
    model.float()
    assert_linked(model)
    dw.activate(model, "b")
    dw.merge(model)
    with pytest.raises(StateError, match="while adapters are merged"):
        bank.put("b")
    dw.unmerge(model)
    assert_linked(model)
    assert torch.equal(routed(model), want)


def test_replaced_parameters_are_taken_in() -> None:
    model = three()
    dw.AdapterBank(model, size=3)
    entry: Any = container_of(model.linear)._modules["b"]
    entry.lora_A = nn.Parameter(torch.ones_like(entry.lora_A))
    with dw.active(model, "b"):
        want = model(IDS)
    torch.testing.assert_close(routed(model, ["b", "a"] * 3)[::2], want[::2])
    assert_linked(model)
    entry.to(torch.bfloat16)
    with pytest.raises(StateError, match="one dtype and one device"):
        routed(model)


def test_put_remove_and_close() -> None:
    model = three()
    bank, want = dw.AdapterBank(model, size=3), routed(model)
    bank.remove("b")
    assert bank.names == ("a", None, "c") and "b" in dw.attached(model)
    entry: Any = container_of(model.linear)._modules["b"]
    assert entry.lora_B.is_contiguous()
    torch.testing.assert_close(routed(model), want)
    assert bank.put("b") == 1
    assert_linked(model)
    assert torch.equal(routed(model), want)
    bank.close()
    bank.close()
    assert dw.AdapterBank.of(model) is None and str(bank) == "a closed bank"
    assert container_of(model.linear).stack is None
    torch.testing.assert_close(routed(model), want)
    bank = dw.AdapterBank(model, size=3)
    dw.detach(model)
    assert str(bank) == "a closed bank", "a bank ends with the last adapter"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"variant": "dora"}, "dora"), ({"init": "olora", "rank": 2}, "taken off"), ({"bias": "lora_only"}, "bias"),
        ({"train_also": ["conv1d"]}, "full copy"), ({"train_rows": {"embed": [1]}}, "token rows"),
        ({"targets": ["conv1d[0:2]"]}, "slices"), ({"rank": 6}, "rank 6"), ({"variant": "lora_bias"}, "lora_bias"),
        ({"variant": "vera"}, "vera"),
    ],
)  # fmt: skip
def test_what_cannot_be_stacked_is_refused_and_not_attached(config: dict[str, Any], word: str) -> None:
    model = three("ab")
    bank = dw.AdapterBank(model, size=4, rank=5)
    want, values = routed(model, ["a", "b"] * 3), builders.bits(model)
    fields = {"targets": ["linear"], "rank": 2, **config}
    with pytest.raises(StateError, match=word):
        builders.attach(model, "odd", **fields)
    assert dw.attached(model) == ("a", "b") and bank.names == ("a", "b", None, None)
    assert builders.bits(model) == values and torch.equal(routed(model, ["a", "b"] * 3), want)
    bank.close()
    builders.attach(model, "odd", **fields)
    with pytest.raises(StateError, match=word):
        dw.AdapterBank(model, size=4, rank=5)
    assert dw.AdapterBank.of(model) is None


def test_frozen_factors_stack() -> None:
    model = three("a")
    builders.attach(model, "fa", targets=["linear"], rank=2, variant="lora_fa")
    builders.randomize(model, 4, adapter="fa")
    want = routed(model, ["a", "fa"] * 3)
    dw.AdapterBank(model, size=2)
    torch.testing.assert_close(routed(model, ["a", "fa"] * 3), want)


def test_threads_route_apart() -> None:
    model = three()
    dw.AdapterBank(model, size=3)
    routes: list[Any] = [ROWS, ROWS[::-1], ["a"] * 6, [[name] * 5 for name in ROWS]]
    want = [routed(model, names) for names in routes]
    wrong: list[int] = []

    def run(place: int) -> None:
        wrong.extend(place for _ in range(20) if not torch.equal(routed(model, routes[place]), want[place]))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# compiled


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_for_every_routing(grad: bool, bank: bool, tokens: bool) -> None:
    """Names, their order and their counts are tensors of the graph; with a bank, so is what is attached."""
    torch._dynamo.reset()
    model = three()
    made = dw.AdapterBank(model, size=4) if bank else None
    graphs = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(model, backend=graphs, fullgraph=True)

    def check(names: list[str | None]) -> None:
        routing: Any = [[name, "a", None, *[name] * 2] for name in names] if tokens else names
        with torch.set_grad_enabled(grad), dw.route(model, routing):
            torch.testing.assert_close(fast(IDS), model(IDS), rtol=1e-5, atol=1e-5)
            if grad and any(names):
                model.zero_grad()
                model(IDS).square().sum().backward()
                want = {key: p.grad.clone() for key, p in dw.trainable(model) if p.grad is not None}
                model.zero_grad()
                fast(IDS).square().sum().backward()
                for key, p in dw.trainable(model):
                    found = torch.zeros_like(p) if p.grad is None else p.grad
                    torch.testing.assert_close(found, want.get(key, torch.zeros_like(p)), rtol=1e-4, atol=1e-4)

    for names in (ROWS, ROWS[::-1], ["b"] * 6, [None] * 6, ["a", "b", "c"] * 2):
        check(names)
    assert graphs.frame_count == 1
    if made is not None and not grad:
        dw.detach(model, "b")
        builders.attach(model, "d", targets=["conv1d"], rank=4)
        builders.randomize(model, 8, adapter="d")
        check(["d", None, "a", "c", "d", "d"])
        assert graphs.frame_count == 1
    with torch.set_grad_enabled(grad), dw.route(model, ROWS[:-1] if bank and grad else ["a"] * 5):
        torch.testing.assert_close(fast(IDS[:5]), model(IDS[:5]))
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_blocks_inside_each_other() -> None:
    torch._dynamo.reset()
    model = three()
    fast, graphs = (
        torch.compile(model, backend=(count := CompileCounterWithBackend("aot_eager")), fullgraph=True),
        count,
    )
    with torch.no_grad():
        for _ in range(2):
            with dw.route(model, ROWS):
                torch.testing.assert_close(fast(IDS), model(IDS))
                with dw.disabled(model):
                    assert torch.equal(fast(IDS), model(IDS))
                with dw.active(model, "b"), dw.route(model, ROWS[::-1]):
                    torch.testing.assert_close(fast(IDS), model(IDS))
                torch.testing.assert_close(fast(IDS), model(IDS))
            torch.testing.assert_close(fast(IDS), model(IDS))
        assert graphs.frame_count == 3, "off, on, routed"
        with pytest.raises(StateError, match="one row for each entry"), dw.route(model, ROWS):
            torch.compile(model, backend="aot_eager")(IDS[:2])
    torch._dynamo.reset()


@pytest.mark.slow
def test_what_cannot_be_stacked_compiles_too() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).train()
    builders.attach(model, "a", targets=["2"], rank=2, dropout=0.5)
    builders.attach(model, "dora", targets=["2"], rank=2, variant="dora")
    builders.attach(model, "full", targets=["0"], rank=2, train_also=["2"])
    for seed, name in enumerate(("a", "dora", "full")):
        builders.randomize(model, seed, adapter=name)
    graphs = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(model, backend=graphs, fullgraph=True)
    for names in (["dora", "full", None], ["full", None, "dora"]):
        with dw.route(model, names):
            torch.testing.assert_close(fast(X), model(X))
    with dw.route(model, ["a", None, "a"]):
        first, second = fast(X), fast(X)
    assert graphs.frame_count == 1 and not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    with dw.route(model, ["a", None, "a"]), torch.no_grad():
        draws = torch.stack([fast(X) for _ in range(1500)]).mean(0)
    model.eval()
    with dw.route(model, ["a", None, "a"]):
        torch.testing.assert_close(draws, model(X), rtol=0.1, atol=0.1)
    torch._dynamo.reset()
