"""Inputs made again from the graph: right gradients, bytes kept, and every way in which the graph is not to be read."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
from deltaw import recall
from deltaw.recall import Input, input_of

G = torch.Generator().manual_seed(0)


def draw(*shape: int, grad: bool = True) -> Tensor:
    # not a leaf, as an activation is not
    return torch.randn(*shape, generator=G).requires_grad_(grad) * 1


W, V = torch.rand(8, generator=G) + 0.5, torch.rand(8, generator=G)
MADE: dict[str, Callable[[], Tensor]] = {
    "gate": lambda: F.silu(draw(4, 8)) * draw(4, 8),
    "gelu": lambda: F.gelu(draw(4, 8)),
    "gelu by hand": lambda: 0.5 * draw(4, 8) * (1.0 + torch.tanh(draw(4, 8))),
    "gelu tanh": lambda: F.gelu(draw(4, 8), approximate="tanh"),
    "relu": lambda: F.relu(draw(4, 8)),
    "sigmoid": lambda: torch.sigmoid(draw(4, 8)),
    "quotient": lambda: draw(4, 8) / (draw(4, 8).abs() + 1),
    "layer norm": lambda: F.layer_norm(draw(4, 8), (8,), W, V),
    "layer norm without bias": lambda: F.layer_norm(draw(4, 8), (8,), W),
    "rms norm": lambda: F.rms_norm(draw(4, 8), (8,), W),
    "rms norm by hand": lambda: W * (h := draw(4, 8)).mul(torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)),
    "low precision": lambda: W.bfloat16() * (draw(4, 8) * draw(4, 8)).to(torch.bfloat16),
    "attention": lambda: (
        F.scaled_dot_product_attention(*(draw(1, 2, 4, 4) for _ in range(3))).transpose(1, 2).reshape(1, 4, 8)
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_what_the_graph_keeps_makes_the_input_again(name: str) -> None:
    x = MADE[name]()
    for _ in range(2):  # once to try the recipe out, once to trust it
        found = input_of(x)
        assert found.plan is not None
        made = found.get()
        assert made.dtype == x.dtype and made.shape == x.shape and not made.requires_grad
        torch.testing.assert_close(made, x.detach(), rtol=0, atol=1e-6 if x.dtype == torch.float32 else 0.0)


@pytest.mark.parametrize(
    "make", [lambda: draw(4, 8, grad=False), lambda: draw(4, 8) + 1, lambda: draw(4, 8).cumsum(0), lambda: draw(0, 8)]
)
def test_what_it_does_not_keep_has_no_plan(make: Callable[[], Tensor]) -> None:
    assert Input(make(), watched=False).plan is None


def test_a_recipe_that_is_wrong_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = recall._Recipe(lambda node, x: 1.01 * x, ("self",))
    monkeypatch.setitem(recall._RECIPES, "SiluBackward0", wrong)
    monkeypatch.setattr(recall, "_TRUSTED", {})
    assert Input(F.silu(draw(4, 8)), watched=False).plan is None


def test_siblings_share_one_and_a_change_ends_it() -> None:
    x = MADE["gate"]()
    first = input_of(x)
    assert input_of(x) is first
    made = first.get()
    assert first.get() is made and first._made is None, "let go after the last of two"
    x.add_(1)
    assert input_of(x) is not first
    assert input_of(MADE["gate"]()) is not first


def test_nothing_of_a_graph_outlives_it() -> None:
    x = MADE["gate"]()
    found = weakref.ref(input_of(x))
    tensor = weakref.ref(x)
    assert found() is None, "only a layer's graph holds it"
    del x
    gc.collect()
    assert tensor() is None


def test_threads_do_not_share() -> None:
    x, found = MADE["gate"](), []
    found.append(input_of(x))
    other = threading.Thread(target=lambda: found.append(input_of(x)))
    other.start()
    other.join()
    assert found[0] is not found[1]


def test_a_sharded_parameter_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_is_distributed", lambda: True)
    assert Input(MADE["layer norm"](), watched=False).plan is None
    assert Input(MADE["gate"](), watched=False).plan is not None


class Net(nn.Module):
    """Norm, gate and a last product: every site's input can be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.again: Callable[..., Tensor] = lambda f, *a: f(*a)

    def forward(self, x: Tensor) -> Tensor:
        h = self.again(self.norm, x)
        inner = self.again(lambda h: F.silu(self.gate(h)) * self.up(h), h)
        return x + self.down(inner)


def net(dropout: float = 0.0) -> Net:
    torch.manual_seed(0)
    model = Net()
    builders.attach(model, targets="all-linear", rank=2, dropout=dropout)
    builders.randomize(model)
    return model.train()


def gradients(model: nn.Module, x: Tensor, backwards: int = 1) -> list[Tensor]:
    model.zero_grad()
    out = model(x).square().sum()
    for left in range(backwards, 0, -1):
        out.backward(retain_graph=left > 1)
    return [p.grad.clone() for _, p in dw.trainable(model)]


@pytest.fixture
def kept_always(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Tensor]]]:
    """Gradients of the same model where every input is kept."""

    def run() -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(recall, "_find", lambda x: None)
            return gradients(net(), X)

    yield run


X = draw(5, 16).detach()


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_gradients_are_those_of_inputs_that_are_kept(grad: bool, kept_always: Any) -> None:
    close(gradients(net(), X.clone().requires_grad_(grad)), kept_always())


def test_a_graph_can_be_gone_through_twice(kept_always: Any) -> None:
    twice = gradients(net(), X.clone().requires_grad_(), backwards=2)
    close(twice, [2 * g for g in kept_always()])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_are_not_read(reentrant: bool, kept_always: Any) -> None:
    model = net()
    model.again = lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)
    close(gradients(model, X.clone().requires_grad_()), kept_always())
    whole = net()
    x = X.clone().requires_grad_()
    checkpoint(whole, x, use_reentrant=reentrant).square().sum().backward()
    close([p.grad for _, p in dw.trainable(whole)], kept_always())


def test_dropout_under_checkpointing_is_dropout_without() -> None:
    plain, again = net(0.3), net(0.3)
    again.again = lambda f, *a: checkpoint(f, *a, use_reentrant=False)
    close(gradients(plain, X.clone().requires_grad_()), gradients(again, X.clone().requires_grad_()))


def test_other_peoples_hooks_decide_for_themselves(kept_always: Any) -> None:
    with torch.autograd.graph.save_on_cpu():
        close(gradients(net(), X.clone().requires_grad_()), kept_always())
    given: list[Tensor] = []

    def pack(t: Tensor) -> int:
        given.append(t)
        return len(given) - 1

    seen: set[int] = set()

    def unpack(place: int) -> Tensor:
        assert place not in seen, "some hooks give a tensor out only once"
        seen.add(place)
        return given[place]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        close(gradients(net(), X.clone().requires_grad_()), kept_always())


def test_a_change_in_place_is_noticed_by_autograd() -> None:
    layer = nn.Linear(8, 4)
    builders.attach(layer_in := nn.Sequential(layer), targets="0", rank=2)
    gate, up = draw(3, 8), draw(3, 8)
    out = layer_in(F.silu(gate) * up)
    up.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
