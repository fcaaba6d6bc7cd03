"""T, I, P, D, N: gradients, memory, resuming, starts, hazards of structure and names, compilation, the network."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bases import LAYERS, Blocks, Collides, Encoder, Mlp, Siblings, Spec, Table, floats, llama, made, tokens
from checks_merging import worn
from drivers import Driver, fill
from rows import bits, case, far, near, row
from torch import Tensor, nn

PLAIN = LAYERS["linear"]
EXPERTS = {"deltaw": "expert stacks", "PEFT 0.21.2": "not run: expert stacks"}

row("T1", "gradients of A and B are the analytic ones; the frozen base gets none", "1e-6")
row("T2", "activation checkpointing of both kinds: same gradients, none missing", "1e-6")
row("T3", "saved for backward by adapted bf16 layers: at most 1.1 x their input, dropout included; 1.2 x for three "
    "layers on one input", "budget")  # fmt: skip
row("T4", "resume after save and load: same losses, optimizer state kept", "1e-6")
row("I1", "starts that change nothing change no bit; those that read the base keep its output and give it back", "1e-5")
row("I2", "the default start is distributed as loralib's", "Kolmogorov-Smirnov, p > 1e-3")
row("P1", "a fused encoder layer: the adapter acts in evaluation mode", "1e-5")
row("P2", "a parametrization on the target: repeated forwards are equal", "exact", refusable=True, later=EXPERTS)
row("P3", "compiled: no graph break; no new graph for another adapter, scale, or none", "count", slow=True)
row("P4", "adapters named like modules, parameters and key parts", "exact")
row("D1", "two gloo processes: a save from sharded state = a save of one process", "exact",
    later={"deltaw": "sharded save", "PEFT 0.21.2": "not run: left to the caller"})  # fmt: skip
row("N1", "attach, save and load make no network call", "-", later={"deltaw": "adapters from a hub"})


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def factor(model: Driver, name: str) -> Tensor:
    """A or B of the only site."""
    (found,) = (p for key, p in model.parameters().items() if key.split(".default")[0].endswith(name) or name in key)
    return found


@case("T1")
def analytic(driver: type[Driver], _: Path) -> None:
    model, x = driver(made(One)), floats(5, 8)()
    model.attach(Spec(targets=("proj",)))
    fill(model)
    up = floats(5, 6)()
    (model.run(x) * up).sum().backward()
    A, B, x, up = (t.detach().double() for t in (factor(model, "lora_A"), factor(model, "lora_B"), x, up))
    scaling = 10 / 4
    for name, want in {"lora_A": scaling * (up @ B).T @ x, "lora_B": scaling * up.T @ (x @ A.T)}.items():
        got = factor(model, name).grad
        assert got is not None, f"{name} has no gradient"
        near(got, want, 1e-6, f"{name} off by")
    own = {id(p) for p in model.parameters().values()}
    assert all(p.grad is None for p in model.callable().parameters() if id(p) not in own), "the base has gradients"


def gradients(model: Driver, x: Tensor) -> dict[str, Tensor]:
    model.callable().train()
    model.run(x).square().sum().backward()
    missing = [key for key, p in model.trainable().items() if p.grad is None]
    assert not missing, f"{len(missing)} of {len(model.trainable())} parameters without a gradient"
    return {key: p.grad.clone() for key, p in model.trainable().items() if p.grad is not None}


def _blocks(driver: type[Driver], mode: str) -> dict[str, Tensor]:
    model = driver(made(lambda: Blocks(mode)))
    model.attach(Spec(targets=("fc", "head")))
    fill(model)
    return gradients(model, floats(3, 8)().requires_grad_(mode == "reentrant"))


def _llama(driver: type[Driver], mode: str) -> dict[str, Tensor]:
    model = driver(made(llama))
    model.attach(Spec(targets=("q_proj", "down_proj")))
    fill(model)
    if mode != "none":
        model.base.gradient_checkpointing_enable({"use_reentrant": mode == "reentrant"})  # type: ignore[operator]
    return gradients(model, tokens())


@case("T2", [f"{mode} ({kind})" for kind in ("blocks", "language model") for mode in ("reentrant", "not reentrant")])
def checkpointing(driver: type[Driver], _: Path, name: str) -> None:
    mode, _, kind = name.partition(" (")
    run = _blocks if kind == "blocks)" else _llama
    want, got = run(driver, "none"), run(driver, mode)
    for key, value in want.items():
        near(got[key], value, 1e-6)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages, parameters aside, that a forward keeps for the backward."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    held: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            held[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(x)
    del out
    return sum(t.untyped_storage().nbytes() for t in held.values())


@case("T3", ("no dropout", "dropout", "three layers on one input"))
def kept_for_backward(driver: type[Driver], _: Path, name: str) -> str:
    width, budget = 512, 1.2 if name.startswith("three") else 1.1
    model = driver(made(lambda: Siblings(width)).bfloat16())
    targets = ("q", "k", "v") if name.startswith("three") else ("q",)
    model.attach(Spec(targets=targets, rank=8, dropout=0.1 if name == "dropout" else 0.0))
    model.callable().train()
    x = floats(1024, width)().bfloat16().requires_grad_()
    share = kept_bytes(model.callable(), x) / (x.numel() * x.element_size())
    assert share <= budget, f"{share:.1f} x"
    return f"{share:.1f} x"


@case("T4")
def resume(driver: type[Driver], directory: Path) -> None:
    data = floats(6, 4, 8)()

    def train(model: Driver, optimizer: torch.optim.Optimizer, batches: Tensor) -> list[float]:
        losses = []
        for batch in batches:
            loss = (model.run(batch) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    whole = worn(driver, PLAIN)
    optimizer = torch.optim.AdamW(whole.trainable().values(), lr=0.05)
    train(whole, optimizer, data[:3])
    whole.save(directory)
    kept = optimizer.state_dict()
    parted = driver(made(Mlp))
    parted.load(directory, trainable=True)
    again = torch.optim.AdamW(parted.trainable().values(), lr=0.05)
    again.load_state_dict({"state": {k: {n: t.clone() for n, t in s.items()} for k, s in kept["state"].items()},
                           "param_groups": kept["param_groups"]})  # fmt: skip
    near(torch.tensor(train(parted, again, data[3:])), torch.tensor(train(whole, optimizer, data[3:])), 1e-6)


@case("I1", ("default", "gaussian", "orthogonal", "pissa", "olora"))
@torch.no_grad()
def starts(driver: type[Driver], _: Path, init: str) -> None:
    x, plain = PLAIN.x(), made(Mlp)
    want, keys = plain(x), bits(plain.state_dict())
    model = driver(made(Mlp))
    model.attach(PLAIN.spec.but(init=init))
    if init in ("default", "gaussian"):
        assert torch.equal(model.run(x), want), "bits differ"
    near(model.run(x), want, 1e-5)
    with model.disabled():
        assert torch.equal(model.run(x), want), "disabled is not the base"
    model.detach()
    assert bits(model.base.state_dict()) == keys, "detach does not give the base back"


def apart(sample: Tensor, distribution: Any) -> float:
    """Kolmogorov-Smirnov distance times the root of the sample's size: 1.95 at p = 1e-3."""
    values = sample.detach().double().flatten().sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return float((distribution.cdf(values) - steps).abs().max()) * math.sqrt(len(values))


@case("I2", ("linear", "embedding"))
def distribution(driver: type[Driver], _: Path, name: str) -> None:
    if name == "linear":
        bound = 1 / math.sqrt(256)  # kaiming_uniform(a=sqrt(5)) over 256 inputs
        model = driver(made(lambda: Siblings(256)))
        model.attach(Spec(targets=("q",), rank=64))
        random, zero = factor(model, "lora_A"), factor(model, "lora_B")
        expected: Any = torch.distributions.Uniform(-bound, bound)
        assert float(random.detach().abs().max()) <= bound, "outside the interval"
        distance = apart((random.detach().double() + bound) / (2 * bound), torch.distributions.Uniform(0.0, 1.0))
    else:
        model = driver(made(Table))
        model.attach(Spec(targets=("table",), rank=64))
        random, zero = factor(model, "lora_embedding_B" if driver.title != "deltaw" else "lora_B"), None
        expected = torch.distributions.Normal(0.0, 1.0)
        distance = apart(random, expected)
    assert distance < 1.95, f"distance {distance:.0f}"
    assert zero is None or not zero.detach().any(), "B is not zero"


@case("P1", ("linear1", "linear2", "self_attn"))
@torch.no_grad()
def fused_layer(driver: type[Driver], _: Path, target: str) -> None:
    model, x = driver(made(Encoder)), floats(2, 5, 8)()
    base = model.run(x)
    model.attach(Spec(targets=(target,)))
    fill(model)
    model.callable().train()
    training = model.run(x)
    model.callable().eval()
    assert far(model.run(x), base) > 1e-3, "no effect in evaluation mode"
    near(model.run(x), training, 1e-5)


@case("P2", ("weight norm", "a user's own"))
@torch.no_grad()
def parametrized(driver: type[Driver], _: Path, kind: str) -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    def make() -> nn.Module:
        net = Mlp()
        if kind == "weight norm":
            nn.utils.parametrizations.weight_norm(net.one)
        else:
            nn.utils.parametrize.register_parametrization(net.one, "weight", Double())
        return net

    model, x = driver(made(make)), PLAIN.x()
    base = model.run(x)
    model.attach(Spec(targets=("one",)))
    fill(model)
    runs = [model.run(x) for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs), "forwards accumulate"
    assert far(runs[0], base) > 1e-3, "no effect"
    with model.disabled():
        assert torch.equal(model.run(x), base), "disabled is not the base"


SWITCHES = ("another adapter", "another scale", "none active", "a disabled block")


@case("P3", ("called again", *SWITCHES))
@torch.no_grad()
def compiled(driver: type[Driver], _: Path, what: str) -> str:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model, x = driver(made(Mlp)), PLAIN.x()
    for seed, name in enumerate(("a", "b")):
        model.attach(PLAIN.spec, name)
        fill(model, name, seed)
    model.callable().eval()
    model.activate("a")
    graphs = CompileCounterWithBackend("eager")
    fast = torch.compile(model.callable(), backend=graphs, fullgraph=True)
    near(fast(x), model.run(x), 1e-5)
    assert graphs.frame_count == 1, f"{graphs.frame_count} graphs"
    with contextlib.ExitStack() as stack:
        if what == "another adapter":
            model.activate("b")
        elif what == "another scale":
            model.rescale("a", 0.5)
        elif what == "none active":
            model.activate([])
        elif what == "a disabled block":
            stack.enter_context(model.disabled())
        near(fast(x), model.run(x), 1e-5)
    # the base alone may have one graph of its own
    allowed = 2 if what in SWITCHES[2:] else 1
    assert graphs.frame_count <= allowed, f"{graphs.frame_count - 1} new graph"
    model.activate("a")
    near(fast(x), model.run(x), 1e-5)
    assert graphs.frame_count <= allowed, "a new graph for the first again"
    return f"{graphs.frame_count} graph{'s' if graphs.frame_count > 1 else ''}"


@case("P4", ("default", "sql", "lora", "one", "lora_A", "base_layer"))
@torch.no_grad()
def colliding_names(driver: type[Driver], directory: Path, name: str) -> None:
    x = floats(3, 8)()
    model = driver(made(Collides))
    base = model.run(x)
    model.attach(Spec(targets=("default", "lora", "lora_A", "base_layer")), name)
    fill(model, name)
    want = model.run(x)
    model.save(directory, name)
    with model.disabled():
        assert torch.equal(model.run(x), base), "disabled is not the base"
    other = driver(made(Collides))
    other.load(directory, name)
    assert torch.equal(other.run(x), want), "another output after save and load"


@contextlib.contextmanager
def unplugged() -> Iterator[list[str]]:
    """No connection can be made, and every attempt is noted; the hub's own offline switch is off."""
    tried: list[str] = []

    def refuse(*args: Any, **_: Any) -> None:
        tried.append("an attempt")
        raise OSError("no network")

    kept = {name: getattr(socket, name) for name in ("create_connection", "getaddrinfo")}
    connect = socket.socket.connect
    try:
        import huggingface_hub.constants as hub
    except ImportError:
        hub = None  # type: ignore[assignment]
    offline, said = hub and hub.HF_HUB_OFFLINE, os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        for name in kept:
            setattr(socket, name, refuse)
        socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
        if hub:
            hub.HF_HUB_OFFLINE = False
        yield tried
    finally:
        for name, value in kept.items():
            setattr(socket, name, value)
        socket.socket.connect = connect  # type: ignore[method-assign]
        if said is not None:
            os.environ["HF_HUB_OFFLINE"] = said
        if hub:
            hub.HF_HUB_OFFLINE = offline


@case("N1", ("a base of one's own", "a base named as on a hub"))
def no_network(driver: type[Driver], directory: Path, name: str) -> None:
    def make() -> nn.Module:
        net = llama()
        if "hub" in name:
            net.name_or_path = "someone/some-model"  # type: ignore[union-attr, assignment]
        return net

    with unplugged() as tried:
        model = driver(made(make))
        model.attach(Spec(targets=("q_proj",)))
        model.save(directory)
        driver(made(make)).load(directory)
    assert not tried, "a request to the hub"
