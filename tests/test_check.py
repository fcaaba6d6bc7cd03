"""check: each finding brought about for real, and none on models that are well."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
from deltaw.check import CHECKS
from deltaw.checks.finding import Problem

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def worn(**config: Any) -> Any:
    model = builders.mlp(dropout=0.0)
    builders.attach(model, **{"rank": 2, "targets": ["fc1", "fc2"], **config})
    builders.randomize(model)
    return model


def trained(**config: Any) -> Any:
    model = worn(**config)
    model(X).sum().backward()
    return model


def weightless_head() -> dw.CheckReport:
    model = builders.lookup()
    builders.attach(model, targets=["embed", "head"], rank=2)
    F.linear(model.embed(builders.ids(10)), model.head.weight).sum().backward()
    return dw.check(model)


def reentrant() -> dw.CheckReport:
    model = worn()

    def first(x: torch.Tensor) -> torch.Tensor:
        return F.relu(model.norm(model.fc1(x)))

    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        hidden = checkpoint(first, X, use_reentrant=True)
    model.fc2(hidden).sum().backward()
    return dw.check(model)


def underflow() -> dw.CheckReport:
    model = worn().half()
    for p in (p for _, p in dw.trainable(model)):
        p.data = p.data.float()
    (model(X.half()).sum() * 1e-8).backward()
    return dw.check(model)


def overflow() -> dw.CheckReport:
    model = worn()
    (model(X).sum() * 1e38 * 1e4).backward()
    return dw.check(model)


def replaced() -> dw.CheckReport:
    model = worn()
    model.fc2 = nn.Linear(8, 4).requires_grad_(False)
    return dw.check(model)


def reclassed() -> dw.CheckReport:
    model = worn()
    model.fc1.__class__ = nn.Linear
    return dw.check(model)


def shadowed() -> dw.CheckReport:
    model = worn()
    plain = nn.Linear(6, 8)
    model.fc1.forward = types.MethodType(lambda self, x: plain(x), model.fc1)
    return dw.check(model)


def misplaced() -> dw.CheckReport:
    model = worn()
    model.get_submodule("fc1.lora").to("meta")
    return dw.check(model)


def cast_late() -> dw.CheckReport:
    return dw.check(worn().to(torch.bfloat16))


def stray_copy() -> dw.CheckReport:
    model = builders.mlp().to(torch.bfloat16)
    builders.attach(model, rank=2, targets=["fc1"], train_also=["fc2"])
    model.get_submodule("fc2.lora").float()
    return dw.check(model)


def narrow_copy() -> dw.CheckReport:
    model = builders.mlp().to(torch.bfloat16)
    builders.attach(model, rank=2, targets=["fc1"], train_also=["fc2"])
    return dw.check(model)


def diverged() -> dw.CheckReport:
    model = worn()
    optimizer = torch.optim.SGD([p for _, p in dw.trainable(model)], lr=1e38)
    for _ in range(3):
        model(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return dw.check(model)


def untrained_file() -> dw.CheckReport:
    model = builders.mlp()
    builders.attach(model, rank=2, targets=["fc1", "fc2"])
    dw.freeze(model, "default")
    return dw.check(model)


def switched_off() -> dw.CheckReport:
    model = worn()
    dw.activate(model, None)
    return dw.check(model)


def another_waits() -> dw.CheckReport:
    model = worn()
    builders.attach(model, "b", rank=2, targets=["fc1"])
    return dw.check(model)


def early_optimizer() -> dw.CheckReport:
    model = builders.mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    builders.attach(model, rank=2, targets=["fc1", "fc2"])
    return dw.check(model, optimizer=optimizer)


def unfrozen_base() -> dw.CheckReport:
    model = worn()
    model.requires_grad_(True)
    return dw.check(model)


def tied_on_one_side() -> dw.CheckReport:
    model = builders.lookup(tied=True)
    builders.attach(model, targets=["head"], rank=2, ties="separate")
    return dw.check(model)


def tied_since() -> dw.CheckReport:
    model = builders.lookup()
    builders.attach(model, targets=["head"], rank=2)
    model.embed.weight = model.head.weight
    return dw.check(model)


def untied_since() -> dw.CheckReport:
    model = builders.lookup(tied=True)
    builders.attach(model, targets=["embed", "head"], rank=2, ties="share")
    model.head.weight = nn.Parameter(model.head.weight.detach().clone(), requires_grad=False)
    return dw.check(model)


CASES: list[tuple[Callable[[], dw.CheckReport], set[tuple[str, str]], str]] = [
    (weightless_head, {("untrained", f"head.lora.default.lora_{x}") for x in "AB"}, "use_reentrant=False"),
    (reentrant, {("untrained", f"fc1.lora.default.lora_{x}") for x in "AB"}, "use_reentrant=False"),
    (underflow, {("vanished", "default")}, "GradScaler"),
    (overflow, {("gradient not finite", f"fc{n}.lora.default.lora_{x}") for n in "12" for x in "AB"}, "GradScaler"),
    (replaced, {("replaced", "fc2")}, "attach again"),
    (reclassed, {("bypassed", "fc1")}, "detach first"),
    (shadowed, {("shadowed", "fc1")}, "delete the attribute"),
    (misplaced, {("misplaced", "fc1.lora.default")}, "model.to(device)"),
    (cast_late, {("low precision", f"fc{n}.lora.default.lora_{x}") for n in "12" for x in "AB"}, "before attach"),
    (stray_copy, {("mixed dtypes", "fc2.lora.default")}, "model.to(dtype)"),
    (diverged, {("not finite", f"fc{n}.lora.default.lora_{x}") for n in "12" for x in "AB"}, "earlier checkpoint"),
    (untrained_file, {("does nothing", "default")}, "where it was saved"),
    (switched_off, {("inactive", "default")}, "deltaw.activate(model, 'default')"),
    (early_optimizer, {("not in the optimizer", "default")}, "after attach"),
    (
        unfrozen_base,
        {("base trains", f"{m}.{p}") for m in ("fc1", "fc2", "norm") for p in ("weight", "bias")},
        "train_also",
    ),
    (tied_since, {("tied", "head")}, 'ties="share"'),
    (untied_since, {("untied", "head")}, "head.weight = embed.weight"),
]


@pytest.mark.parametrize(("make", "expected", "hint"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_finding(make: Callable[[], dw.CheckReport], expected: set[tuple[str, str]], hint: str) -> None:
    report = make()
    assert {(problem.kind, problem.where) for problem in report.problems} == expected
    assert all(hint in problem.hint for problem in report.problems) and not report.ok and not report.remarks
    assert all(f"{kind}: '{where}'" in str(report) for kind, where in expected)


@pytest.mark.parametrize(
    ("make", "kind", "where"),
    [
        (narrow_copy, "low precision", "fc2.lora.default.module.weight"),
        (another_waits, "inactive", "default"),
        (tied_on_one_side, "tied", "head"),
    ],
)
def test_what_may_be_meant_is_a_remark(make: Callable[[], dw.CheckReport], kind: str, where: str) -> None:
    report = make()
    assert report.ok and (kind, where) in {(remark.kind, remark.where) for remark in report.remarks}
    assert f"note: {kind}: '{where}'" in str(report)


def plain() -> Any:
    return worn()


def after_a_backward() -> Any:
    return trained()


def at_the_start() -> Any:
    model = builders.mlp()
    builders.attach(model, rank=2, targets=["fc1", "fc2"], dropout=0.1)
    model(X).sum().backward()
    return model


def twins() -> Any:
    model = builders.lookup(tied=True)
    builders.attach(model, targets=["embed", "head"], rank=2, ties="share")
    model(builders.ids(10)).sum().backward()
    return model


def slices_biases_and_copies() -> Any:
    model = builders.gpt2().train()
    builders.attach(model, targets=["c_attn[q,v]"], rank=2, bias="all", train_also=["ln_f"])
    model(builders.ids(), labels=builders.ids()).loss.backward()
    return model


def half_base() -> Any:
    model = builders.mlp().to(torch.bfloat16)
    builders.attach(model, rank=2, targets=["fc1", "fc2"])
    model(X.to(torch.bfloat16)).sum().backward()
    return model


def quantized() -> Any:
    model = builders.mlp()
    model.fc1 = builders.Int8Linear(model.fc1)
    builders.attach(model, rank=2, targets=["fc1", "fc2"])
    model(X).sum().backward()
    return model


def loaded_for_use() -> Any:
    model = worn().eval()
    dw.freeze(model, "default")
    return model


def compiled() -> Any:
    model = worn()
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "make",
    [
        plain, after_a_backward, at_the_start, twins, slices_biases_and_copies, half_base, quantized, loaded_for_use,
        compiled,
    ],
)  # fmt: skip
def test_a_healthy_model_gives_none(make: Callable[[], Any]) -> None:
    model = make()
    optimizer = torch.optim.AdamW([p for _, p in dw.trainable(model)]) if dw.trainable(model) else None
    report = dw.check(model, optimizer=optimizer, across_ranks=True)
    assert report.ok and not report.remarks, str(report)


def test_every_search_is_documented_and_finds_problems_only() -> None:
    assert len({search.__name__ for search in CHECKS}) == len(CHECKS)
    assert all(search.__doc__ and "Yields" in search.__doc__ for search in CHECKS)
    assert str(Problem("kind", "place", "what", "do")) == "kind: 'place': what\n  hint: do"
