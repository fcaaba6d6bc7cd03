"""E and C: what must not pass in silence, and sums of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bases import FEATURES, LAYERS, Mlp, Spec, Table, made
from checks_merging import worn
from drivers import Driver, fill
from rows import case, far, near, refuses, row, told

row("E1", "each target, exclude, save-module and pattern entry that matches nothing is reported", "-")
row("E2", "an unknown adapter name is an error in every verb", "-")
row("E3", "an initialization on a layer type that does not have it is an error", "-")
row("C1", "one adapter combined with weight 1 is itself, for every variant", "1e-5")
row("C2", "an exact sum is the sum of the updates, negative weights and different ranks included", "1e-5")
row("C3", "writing to a name that exists is refused", "-")

MATCHLESS: dict[str, dict[str, Any]] = {
    "target": {"targets": ("one", "typo")},
    "exclude": {"exclude": ("typo",)},
    "save-module": {"whole": ("typo",)},
    "rank pattern": {"rank_pattern": {"typo": 2}},
    "alpha pattern": {"alpha_pattern": {"typo": 2.0}},
    "token table": {"rows": {"typo": [1]}},
}


@case("E1", MATCHLESS)
def matches_nothing(driver: type[Driver], _: Path, what: str) -> None:
    model, spec = driver(made(Table if what == "token table" else Mlp)), LAYERS["linear"].spec
    spec = Spec(targets=("mid",)) if what == "token table" else spec
    said = told(model, lambda: model.attach(spec.but(**MATCHLESS[what])))
    assert "typo" in said, "silent"


@case("E2", ("activate", "activate a list", "merge", "save", "detach", "freeze", "combine"))
def unknown_name(driver: type[Driver], directory: Path, verb: str) -> None:
    model = worn(driver, LAYERS["linear"])
    acts = {
        "activate": lambda: model.activate("typo"),
        "activate a list": lambda: model.activate(["default", "typo"]),
        "merge": lambda: model.merge(["typo"]),
        "save": lambda: model.save(directory, "typo"),
        "detach": lambda: model.detach("typo"),
        "freeze": lambda: model.freeze("typo"),
        "combine": lambda: model.combine(["default", "typo"], [1.0, 1.0], "both"),
    }
    refuses(model, acts[verb], "a name that does not exist")


WITHOUT = [
    *(f"{init} on an embedding" for init in ("pissa", "olora", "orthogonal", "eva")),
    *(f"{init} on a convolution" for init in ("pissa", "olora", "orthogonal")),
]


@case("E3", WITHOUT)
def no_such_start(driver: type[Driver], _: Path, name: str) -> None:
    init, layer = name.split()[0], LAYERS["embedding" if "embedding" in name else "conv2d"]
    model, target = driver(layer.base()), layer.spec.targets[:1]
    refuses(model, lambda: model.attach(layer.spec.but(targets=target, init=init)), "it")


VARIANTS = ("linear", "rank-stabilized", "patterns", "embedding", "conv2d", "attention", "bias-on-b", "dora")


@case("C1", VARIANTS)
@torch.no_grad()
def alone_with_weight_one(driver: type[Driver], _: Path, name: str) -> None:
    of = {**LAYERS, **FEATURES}[name]
    model, x = worn(driver, of), of.x()
    want, wrong = model.run(x), {}
    for kind in driver.kinds:
        model.combine(["default"], [1.0], f"one_{kind}", kind)
        model.activate(f"one_{kind}")
        wrong[kind] = far(model.run(x), want)
    bad = [f"{kind} {distance:.0e}" for kind, distance in wrong.items() if distance > 1e-5]
    assert not bad, f"off by {', '.join(bad)}" if len(driver.kinds) > 1 else f"off by {bad[0].split()[1]}"


@case("C2", ("linear", "rank-stabilized", "embedding"))
@torch.no_grad()
def sum_of_updates(driver: type[Driver], _: Path, name: str) -> None:
    model, spec = driver(LAYERS[name].base()), LAYERS[name].spec
    for seed, (adapter, rank) in enumerate({"a": 4, "b": 2}.items()):
        model.attach(spec.but(rank=rank), adapter)
        fill(model, adapter, seed)
    path = spec.targets[0]
    want = 0.7 * model.delta(path, "a") - 0.3 * model.delta(path, "b")
    for kind in driver.sums:
        model.combine(["a", "b"], [0.7, -0.3], f"sum_{kind}", kind)
        near(model.delta(path, f"sum_{kind}"), want, 1e-5, f"{kind} off by")


@case("C3", ("combine", "attach", "load"))
def taken_name(driver: type[Driver], directory: Path, verb: str) -> None:
    model = worn(driver, LAYERS["linear"])
    model.attach(LAYERS["linear"].spec, "other")
    model.save(directory, "default")
    acts = {
        "combine": lambda: model.combine(["default"], [0.5], "other"),
        "attach": lambda: model.attach(LAYERS["linear"].spec, "other"),
        "load": lambda: model.load(directory, "other"),
    }
    refuses(model, acts[verb], "a name that is taken")
