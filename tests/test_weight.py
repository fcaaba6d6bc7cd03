"""Mechanism 2: weights that others read themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError, StateError, TargetError
from deltaw.weight import LoRAWeight, Term

G = torch.Generator().manual_seed(0)


def weight(dtype: torch.dtype = torch.float64, terms: int = 2) -> LoRAWeight:
    draw = lambda *shape: torch.randn(*shape, generator=G, dtype=torch.float64).to(dtype)  # noqa: E731
    return LoRAWeight(
        draw(7, 5), tuple(Term(draw(7, 2).requires_grad_(), draw(2, 5).requires_grad_(), 0.3 + i) for i in range(terms))
    )


X = torch.randn(3, 5, generator=G, dtype=torch.float64)
Y = torch.randn(3, 7, generator=G, dtype=torch.float64)
OPERATIONS: dict[str, Callable[[Any], Tensor]] = {
    "linear": lambda w: F.linear(X, w),
    "linear with bias": lambda w: F.linear(X, w, torch.arange(7.0).double()),
    "x @ w.T": lambda w: X @ w.T,
    "x @ w.mT": lambda w: X @ w.mT,
    "x @ w.t()": lambda w: X @ w.t(),
    "matmul of transpose": lambda w: torch.matmul(X, w.transpose(0, 1)),
    "transpose of one axis": lambda w: torch.matmul(Y, w.transpose(1, -1)),
    "mm": lambda w: torch.mm(X, w.t()),
    "method mm": lambda w: X.mm(w.t()),
    "method matmul": lambda w: X.matmul(torch.t(w)),
    "addmm": lambda w: torch.addmm(torch.ones(3, 7).double(), X, w.t(), beta=0.5, alpha=2.0),
    "w @ x": lambda w: w @ X.t(),
    "y @ w": lambda w: Y @ w,
    "rows": lambda w: X @ w[2:5].t(),
    "picked rows": lambda w: X @ w[torch.tensor([6, 0, 6])].t(),
    "masked rows": lambda w: X @ w[torch.tensor([True, False] * 3 + [True])].t(),
    "columns": lambda w: X[:, 1:3] @ w[:, 1:3].t(),
    "chunks": lambda w: torch.cat([X @ piece.t() for piece in w.chunk(3)], dim=1),
    "chunked columns": lambda w: sum(
        X[:, i : i + 3] @ p.t() for i, p in zip((0, 3), torch.chunk(w, 2, dim=1), strict=True)
    ),
    "split": lambda w: torch.cat([F.linear(X, piece) for piece in torch.split(w, 2)], dim=1),
    "split in uneven pieces": lambda w: torch.cat([F.linear(X, piece) for piece in w.split([3, 4])], dim=1),
    "lookup": lambda w: F.embedding(torch.tensor([[6, 0], [1, 1]]), w),
    "cast": lambda w: F.linear(X.float(), w.float()).double(),
    "to": lambda w: F.linear(X, w.to(torch.float64).contiguous()),
    "linear of a transposed weight": lambda w: F.linear(Y, w.t()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_the_dense_weight(name: str) -> None:
    w = weight()
    dense = w.dense()
    got, want = OPERATIONS[name](w), OPERATIONS[name](dense)
    torch.testing.assert_close(
        got, want, rtol=1e-5 if name == "cast" else 1e-12, atol=1e-5 if name == "cast" else 1e-12
    )
    factors = [t for term in w.terms for t in term[:2]]
    dy = torch.randn(got.shape, generator=G, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(got, factors, dy, retain_graph=True), torch.autograd.grad(want, factors, dy), strict=True
    ):
        torch.testing.assert_close(
            mine, other, rtol=1e-4 if name == "cast" else 1e-10, atol=1e-4 if name == "cast" else 1e-10
        )


def test_what_it_says_about_itself() -> None:
    w = weight(torch.bfloat16)
    assert (w.shape, w.dtype, w.ndim, w.dim(), w.numel(), w.size(0), w.size()) == (
        (7, 5), torch.bfloat16, 2, 2, 35, 7, (7, 5)
    )  # fmt: skip
    assert w.requires_grad and not w.detach().requires_grad and w.is_floating_point()
    assert repr(w) == "LoRAWeight((7, 5), torch.bfloat16, rank 2+2)"
    exact = w.base.float() + sum(s * l.float() @ r.float() for l, r, s in w.terms)  # noqa: E741
    assert torch.equal(w.dense(), exact.bfloat16()) and w.half().dtype == torch.float16


@pytest.mark.parametrize(
    "operation",
    [
        lambda w: torch.exp(w), lambda w: w + 1,
        lambda w: 2 * w, lambda w: w.sum(), lambda w: w[0], lambda w: w[0, 1], lambda w: w.data,
        lambda w: torch.cat([w, w]), lambda w: w.data_ptr(), lambda w: w @ w.t(), lambda w: torch.linalg.svd(w),
        lambda w: F.linear(w, torch.ones(2, 5)), lambda w: w.copy_(torch.ones(7, 5)),
    ],
)  # fmt: skip
def test_an_operation_without_a_rule_is_refused_by_name(operation: Callable[[Any], Any]) -> None:
    with pytest.raises((StateError, TypeError)) as caught:
        operation(weight())
    assert "dense()" in str(caught.value) or isinstance(caught.value, TypeError)
    assert getattr(weight(), "quant_state", None) is None


class FusedHead(nn.Module):
    """A language model whose loss reads the head's weight in pieces and never calls the head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 6)
        self.body = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 12, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def hidden(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.body(self.embed(ids)))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.hidden(ids)
        return torch.cat([x @ piece.t() for piece in self.lm_head.weight.split(5)], dim=-1)


class TableHead(FusedHead):
    """A head that is the token table itself."""

    def __init__(self) -> None:
        super().__init__()
        del self.lm_head

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.hidden(ids), self.embed.weight)


IDS = torch.tensor([[1, 5, 5, 11], [0, 3, 2, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "target"), [(FusedHead, "lm_head.weight"), (TableHead, "embed.weight")])
def test_a_head_that_is_read_directly_is_trained_merged_and_saved(
    make: Any, target: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, plain = make().to(dtype), make().to(dtype)
    report = builders.attach(model, targets=[target, "body"], rank=3)
    assert torch.equal(model(IDS), plain(IDS)) and {site.path for site in report.sites} == {target[:-7], "body"}
    builders.randomize(model)
    on = model(IDS)
    on.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for _, p in dw.trainable(model)) and dw.check(model).ok
    with dw.disabled(model):
        assert torch.equal(model(IDS), plain(IDS))
        assert model.get_submodule(target[:-7]).weight is dict(model.named_parameters())[target]
    dw.save(model, tmp_path)
    fresh = make().to(dtype)
    dw.load(fresh, tmp_path)
    assert torch.equal(fresh(IDS), on) and builders.bits(fresh) == builders.bits(model)
    before = builders.bits(model)
    dw.merge(model)
    assert type(model.get_submodule(target[:-7])) in (nn.Linear, nn.Embedding)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(model(IDS), on, rtol=tolerance, atol=tolerance)
    dw.unmerge(model)
    assert builders.bits(model) == before and torch.equal(model(IDS), on)
    again = copy.deepcopy(model)
    assert torch.equal(again(IDS), on)
    dw.detach(model)
    assert builders.bits(model) == builders.bits(plain) and type(model) is make


def test_calling_the_head_and_reading_it_are_one() -> None:
    model = FusedHead()
    builders.attach(model, targets="lm_head.weight", rank=3)
    builders.randomize(model)
    x = model.hidden(IDS)
    torch.testing.assert_close(model.lm_head(x), model(IDS))
    with dw.active(model, {"default": 0.5}):
        torch.testing.assert_close(model.lm_head(x), model(IDS))


def test_a_tied_table_read_both_ways() -> None:
    model = FusedHead(tied=True)
    builders.attach(model, targets="lm_head.weight", rank=3, ties="share")
    builders.randomize(model)
    on = model(IDS)
    dw.merge(model)
    assert model.lm_head.weight is model.embed.weight
    torch.testing.assert_close(model(IDS), on)


@pytest.mark.parametrize("config", [{"variant": "dora"}, {"variant": "lora_bias"}, {"train_rows": {"lm_head": [1]}}])
def test_what_such_a_weight_cannot_take_is_refused(config: dict[str, Any]) -> None:
    model = FusedHead()
    with pytest.raises((TargetError, ConfigError)):
        builders.attach(model, targets="lm_head.weight", **config)
    with pytest.raises(TargetError, match="no module matches"):
        builders.attach(model, targets="lm_head.wait")
    with pytest.raises(TargetError):
        builders.attach(nn.Sequential(nn.Conv1d(2, 2, 1)), targets="0.weight")


def test_dropout_is_said_not_to_apply() -> None:
    report = builders.attach(FusedHead(), targets="lm_head.weight", dropout=0.2)
    assert any("dropout does not apply" in note for note in report.notes)


def test_a_module_is_adapted_one_way_at_a_time() -> None:
    model = FusedHead()
    builders.attach(model, targets="lm_head.weight")
    with pytest.raises(StateError, match="another way"):
        builders.attach(model, "second", targets="lm_head")
    builders.attach(model, "second", targets="lm_head.weight")
    dw.detach(model)
    builders.attach(model, targets="lm_head")
    with pytest.raises(StateError, match="another way"):
        builders.attach(model, "second", targets="lm_head.weight")
