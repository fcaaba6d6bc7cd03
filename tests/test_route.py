"""One adapter for each row of a batch: a routed batch is the runs of its adapters."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import StateError
from test_variants import perturb
from variant_cases import FORMS, LAYERS, Form, Layer, is_refused

PAIRS = [
    (layer, form)
    for layer in LAYERS
    for form in FORMS
    if not is_refused(layer, form) and not layer.several and layer.inputs().dim() > (3 if "conv2d" in layer.name else 1)
]


def worn(layer: Layer, form: Form) -> nn.Module:
    model = layer.build()
    shapes: list[dict[str, Any]] = [{}, {} if form.name == "vera" else {"rank": layer.rank + 4}]
    alpha = {} if form.name == "vera" else {"alpha": 6.0}
    for i, (name, other) in enumerate(zip("ab", shapes, strict=True)):
        builders.attach(
            model, name, **{"targets": layer.target, "rank": layer.rank, "seed": 5, **alpha, **form.config, **other}
        )
        perturb(model, i, name)
    return model


def batch(layer: Layer) -> Tensor:
    x = layer.inputs()
    return torch.cat([x] * 3)[: 3 * len(x)]


@pytest.mark.parametrize(("layer", "form"), PAIRS, ids=lambda v: v.name)
def test_a_routed_batch_is_the_runs_of_its_adapters(layer: Layer, form: Form) -> None:
    if form.name in ("pissa", "olora", "pissa-dora") and layer.rank + 4 > 6:
        pytest.skip("the weight has fewer directions than the larger rank")
    model, x = worn(layer, form), batch(layer)
    names = [("a", None, "b", "b", "a")[i % 5] for i in range(len(x))]
    with dw.route(model, names):
        got = layer.run(model, x)
    for i, name in enumerate(names):
        with dw.disabled(model) if name is None else dw.active(model, name):
            want = layer.run(model, x[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-5, atol=1e-5)


def test_rows_are_trained_apart() -> None:
    """Each adapter's gradient comes from its own rows, as if they had been run alone."""
    model, x = builders.mlp(dropout=0.0), torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    for seed, name in enumerate("ab"):
        builders.attach(model, name, targets=["fc1"] if name == "a" else "all-linear", rank=2 + seed)
        builders.randomize(model, seed, adapter=name)
    with dw.route(model.train(), ["a", "b", None, "a", "b", "b"]):
        model(x).square().sum().backward()
    routed = {name: p.grad.clone() for name, p in dw.trainable(model)}
    model.zero_grad()
    for name, rows in (("a", [0, 3]), ("b", [1, 4, 5])):
        with dw.active(model, name):
            model(x[rows]).square().sum().backward()
    for name, p in dw.trainable(model):
        torch.testing.assert_close(routed[name], p.grad, rtol=1e-5, atol=1e-6)


def test_heads_biases_and_a_language_model() -> None:
    model = builders.bert()
    for seed, name in enumerate("ab"):
        builders.attach(model, name, targets=["query"], rank=2, train_also=["classifier"], bias="lora_only")
        perturb(model, seed, name)
    ids = builders.ids()
    ids = torch.cat([ids, ids])[:4]
    names = ["b", None, "a", "b"]
    with dw.route(model, names):
        got = model(ids).logits
    for i, name in enumerate(names):
        with dw.disabled(model) if name is None else dw.active(model, name):
            torch.testing.assert_close(got[i], model(ids[i : i + 1]).logits[0], rtol=1e-5, atol=1e-5)


def test_other_threads_and_what_follows_are_left_alone() -> None:
    model, x = builders.mlp().eval(), torch.ones(2, 6)
    builders.attach(model, targets="fc1", rank=2)
    builders.randomize(model)
    on, found = model(x), []
    with dw.route(model, [None, "default"]):
        inside = model(x)
        thread = threading.Thread(target=lambda: found.append(model(x)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], on) and torch.equal(model(x), on)
    with dw.disabled(model):
        assert torch.equal(inside[0], model(x)[0])
    torch.testing.assert_close(inside[1], on[1])


def test_what_cannot_be_routed_is_refused() -> None:
    model = builders.mlp()
    builders.attach(model, targets="fc1", rank=2)
    with pytest.raises(StateError, match="no such adapter"), dw.route(model, ["default", "other"]):
        pass
    with pytest.raises(StateError, match="cannot be routed"), dw.route(model, []):
        pass
    with pytest.raises(StateError, match="one row for each entry"), dw.route(model, ["default"] * 3):
        model(torch.ones(2, 6))
    dw.merge(model)
    with pytest.raises(StateError, match="while adapters are merged"), dw.route(model, ["default"]):
        pass
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)})
    builders.attach(attention, targets="a")
    with pytest.raises(StateError, match="cannot be routed"), dw.route(attention, ["default"]):
        pass
    read = builders.mlp()
    builders.attach(read, targets="fc2.weight")
    with pytest.raises(StateError, match="cannot be routed"), dw.route(read, ["default"]):
        pass
