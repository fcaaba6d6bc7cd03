"""S and B: attached, active, trainable; threads; one adapter for each row of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bases import LAYERS, Mlp, floats, made
from checks_merging import worn
from drivers import Driver, fill
from rows import bits, case, near, row
from torch import Tensor, nn

row("S1", "disabled = the base bit for bit; after training, while merged", "exact", refusable=True)
row("S2", "trainable flags are left alone by disable, add, load, merge, delete", "exact")
row("S3", "attach keeps training and evaluation mode", "exact")
row("S4", "detach restores the model: types, names, flags, hooks, keys, bits", "exact")
row("S5", "two threads with different active adapters get their own outputs", "1e-6")
row("B1", "a mixed batch = runs of its adapters, rows of the base included", "1e-5")
row("B2", "a mixed batch on DoRA, attention: right, or refused", "1e-5", refusable=True)


def steps(model: Driver, x: Tensor, count: int = 2) -> None:
    """A little real training."""
    model.callable().train()
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.05)
    for _ in range(count):
        model.run(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.callable().eval()


@case("S1", LAYERS)
def disabled_is_the_base(driver: type[Driver], _: Path, name: str) -> None:
    model, x = worn(driver, LAYERS[name]), LAYERS[name].x()
    steps(model, x)
    base = driver(LAYERS[name].base().requires_grad_(False))
    with torch.no_grad():
        want = base.run(x)
        with model.disabled():
            got = model.run(x)
    assert torch.equal(got, want), f"off by {float((got - want).abs().max()):.0e}"


@case("S1")
@torch.no_grad()
def while_merged(driver: type[Driver], _: Path) -> None:
    model, x = worn(driver, LAYERS["linear"]), LAYERS["linear"].x()
    want = driver(made(Mlp)).run(x)
    model.merge()
    with model.disabled():
        got = model.run(x)
    assert torch.equal(got, want), f"off by {float((got - want).abs().max()):.0e}"


def _load(model: Driver, directory: Path) -> None:
    other = type(model)(made(Mlp))
    other.attach(LAYERS["linear"].spec, "default")
    other.save(directory)
    model.load(directory, "c")


def _disable(model: Driver, _: Path) -> None:
    with model.disabled():
        pass


def _merge(model: Driver, _: Path) -> None:
    model.merge()
    model.unmerge()


VERBS: dict[str, Callable[[Driver, Path], None]] = {
    "disable": _disable,
    "add": lambda model, _: model.attach(LAYERS["linear"].spec, "c"),
    "load": _load,
    "merge": _merge,
    "delete": lambda model, _: model.detach("b"),
}


@case("S2", VERBS)
def flags_stay(driver: type[Driver], directory: Path, verb: str) -> None:
    for frozen in (False, True):
        model = driver(made(Mlp))
        for name in ("a", "b"):
            model.attach(LAYERS["linear"].spec, name)
        model.activate("a")
        if frozen:
            model.freeze("a")
        base = dict(model.base.named_parameters())
        named = {**model.parameters("a"), **{k: p for k, p in base.items() if "lora" not in k}}
        before = {key: p.requires_grad for key, p in named.items()}
        VERBS[verb](model, directory)
        changed = sorted(key for key, p in named.items() if p.requires_grad != before[key])
        word = "a frozen adapter is trainable afterwards" if frozen else "a trainable adapter is frozen afterwards"
        assert not changed, word


@case("S3", ("training", "evaluation"))
def mode_stays(driver: type[Driver], _: Path, mode: str) -> None:
    training = mode == "training"
    model, x = driver(made(Mlp).train(training)), floats(64, 8)()
    model.attach(LAYERS["linear"].spec.but(dropout=0.5))
    fill(model)
    drops = not torch.equal(model.run(x), model.run(x))
    assert drops == training, "the adapter's dropout is on in a model in evaluation mode"


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "types": [(path, type(part)) for path, part in model.named_modules()],
        "trainable flags": [(key, p.requires_grad) for key, p in model.named_parameters()],
        "hooks": [
            (path, len(part._forward_hooks), len(part._forward_pre_hooks)) for path, part in model.named_modules()
        ],
        "keys": list(model.state_dict()),
        "modes": [(path, part.training) for path, part in model.named_modules()],
        "bits": bits(model.state_dict()),
    }


@case("S4", ("linear", "embedding", "conv2d", "attention", "llama", "dora"))
def detach_restores(driver: type[Driver], _: Path, name: str) -> None:
    model, x = driver(LAYERS[name].base()), LAYERS[name].x()
    next(iter(model.base.parameters())).requires_grad_(False)
    next(iter(model.base.children())).register_forward_hook(lambda *_: None)
    before = state(model.base)
    model.attach(LAYERS[name].spec)
    fill(model)
    model.run(x)
    model.detach()
    after = state(model.base)
    other = [word for word in before if before[word] != after[word]]
    assert not other, f"{', '.join(other)} differ afterwards"


@case("S5")
def threads(driver: type[Driver], _: Path) -> None:
    model, x = driver(made(Mlp)), floats(3, 8)()
    want: dict[str, Tensor] = {}
    for seed, name in enumerate(("a", "b")):
        model.attach(LAYERS["linear"].spec, name)
        fill(model, name, seed)
    for name in ("a", "b"):
        with model.active(name), torch.no_grad():
            want[name] = model.run(x)
    found: dict[str, Tensor] = {}
    entered, run = threading.Event(), threading.Event()

    def first() -> None:
        with model.active("a"), torch.no_grad():
            entered.set()
            run.wait(10)
            found["a"] = model.run(x)

    def second() -> None:
        entered.wait(10)
        with model.active("b"), torch.no_grad():
            found["b"] = model.run(x)
            run.set()

    pair = [threading.Thread(target=each) for each in (first, second)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    for name in want:
        near(found[name], want[name], 1e-6, "a thread gets the other's output: off by")


@torch.no_grad()
def _mixed(driver: type[Driver], name: str, second: dict[str, Any]) -> None:
    case_ = LAYERS[name]
    model, x = driver(case_.base()), case_.x()
    x = torch.cat([x, x.roll(1, 0)])[:3]
    want = [driver(case_.base()).run(x)[0]]
    model.attach(case_.spec, "a")
    model.attach(case_.spec.but(**second), "b")
    for seed, adapter in enumerate(("a", "b")):
        fill(model, adapter, seed)
    model.callable().eval()
    for place, adapter in ((1, "a"), (2, "b")):
        model.activate(adapter)
        want.append(model.run(x)[place])
    near(model.forward_mixed(x, [None, "a", "b"]), torch.stack(want), 1e-5)


@case("B1", ("linear", "hf-conv1d", "embedding", "conv2d"))
def mixed_batch(driver: type[Driver], _: Path, name: str) -> None:
    _mixed(driver, name, {})


@case("B1")
def other_ranks_and_targets(driver: type[Driver], _: Path) -> None:
    _mixed(driver, "linear", {"rank": 2, "targets": ("two", "head")})


@case("B2", ("dora", "attention"))
def mixed_variants(driver: type[Driver], _: Path, name: str) -> None:
    _mixed(driver, name, {})
