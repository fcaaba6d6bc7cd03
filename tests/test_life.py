"""Life after attach: copies, pickles, state dicts, casts, devices, flags, and what check finds."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def worn(seed: int = 0, **config: Any) -> builders.MLP:
    model = builders.mlp().eval()
    builders.attach(model, **{"targets": "all-linear", "rank": 2, **config})
    builders.randomize(model, seed)
    return model


# copies and pickles


def test_a_deep_copy_is_independent() -> None:
    model = worn()
    out = model(X)
    other = copy.deepcopy(model)
    assert torch.equal(other(X), out) and dw.attached(other) == ("default",)
    assert type(other.fc1) is type(model.fc1)
    dw.activate(other, None)
    assert torch.equal(model(X), out), "the copy shares its record with the original"
    dw.activate(other, "default")
    builders.randomize(other, seed=9)
    assert torch.equal(model(X), out)
    with dw.disabled(other):
        assert torch.equal(model(X), out), "an override of the copy reached the original"
    dw.merge(other)
    dw.unmerge(other)
    dw.detach(other)
    assert torch.equal(model(X), out) and dw.attached(model) == ("default",)


def test_a_copied_twin_follows_the_copy() -> None:
    model = builders.lookup(tied=True).eval()
    builders.attach(model, targets="embed", rank=2, ties="share")
    builders.randomize(model)
    tokens = builders.ids(10)
    out = model(tokens)
    other = copy.deepcopy(model)
    assert other.head.weight is other.embed.weight
    builders.randomize(model, seed=5)
    assert torch.equal(other(tokens), out)
    before = builders.bits(other)
    dw.merge(other)
    torch.testing.assert_close(other(tokens), out, rtol=1e-4, atol=1e-5)
    dw.unmerge(other)
    assert builders.bits(other) == before


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickles(how: str) -> None:
    model = worn()
    builders.attach(model, "second", targets="fc1", rank=1, bias="all")
    dw.activate(model, {"default": 0.5})
    out = model(X)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(X), out) and dw.attached(other) == ("default", "second")
    dw.activate(other, "second")
    assert torch.equal(model(X), out)
    dw.detach(other)
    assert type(other.fc1) is nn.Linear


def test_a_merged_model_pickles() -> None:
    model = worn()
    before = builders.bits(model)
    dw.merge(model)
    other = pickle.loads(pickle.dumps(model))
    dw.unmerge(other)
    assert builders.bits(other) == before


def _child(model: nn.Module, x: torch.Tensor, queue: Any) -> None:
    torch.set_num_threads(1)
    with torch.no_grad(), dw.active(model, "default"):
        queue.put(model(x).tolist())


@pytest.mark.slow
def test_a_spawned_process_gets_the_layers() -> None:
    model = worn()
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(model, X, queue))
    process.start()
    got = queue.get()
    process.join()
    assert process.exitcode == 0
    torch.testing.assert_close(torch.tensor(got), model(X).detach())


# state dicts


def test_a_state_dict_of_the_base_loads_strictly() -> None:
    model, plain = worn(), builders.mlp(seed=1).eval()
    adapters = {key: value for key, value in builders.bits(model).items() if ".lora." in key}
    model.load_state_dict(plain.state_dict(), strict=True)
    with dw.disabled(model):
        assert torch.equal(model(X), plain(X))
    assert adapters == {key: value for key, value in builders.bits(model).items() if ".lora." in key}
    outer = nn.ModuleDict({"inner": worn()})
    outer.load_state_dict({f"inner.{key}": value for key, value in plain.state_dict().items()}, strict=True)


def test_a_state_dict_of_the_base_is_assigned() -> None:
    model, plain = worn(), builders.mlp(seed=1).eval()
    model.load_state_dict(plain.state_dict(), strict=True, assign=True)
    assert not model.fc1.weight.requires_grad
    with dw.disabled(model):
        assert torch.equal(model(X), plain(X))
    before = builders.bits(model)
    dw.merge(model)
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_an_attached_state_dict_round_trips() -> None:
    model, other = worn(), worn(seed=4)
    other.load_state_dict(model.state_dict(), strict=True)
    assert builders.bits(other) == builders.bits(model)


@pytest.mark.parametrize("gone", ["fc1.lora.default.lora_A", "fc1.lora."])
def test_a_state_dict_with_part_of_the_adapter_is_refused(gone: str) -> None:
    model = worn()
    partial = {key: value for key, value in model.state_dict().items() if not key.startswith(gone)}
    with pytest.raises(RuntimeError, match=r"fc1\.lora\.default\.lora_A"):
        worn(seed=4).load_state_dict(partial, strict=True)
    result = worn(seed=4).load_state_dict(partial, strict=False)
    assert any(key.startswith(gone) for key in result.missing_keys)


# casts, devices, flags


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_keeps_the_model_running(dtype: torch.dtype) -> None:
    model = worn()
    out = model(X)
    model.to(dtype)
    assert model(X.to(dtype)).dtype == dtype
    torch.testing.assert_close(model(X.to(dtype)).float(), out, rtol=0.1, atol=0.1)
    before = builders.bits(model)
    dw.merge(model)
    dw.unmerge(model)
    assert builders.bits(model) == before
    kinds = {problem.kind for problem in dw.check(model).problems}
    assert ("low precision" in kinds) == (dtype != torch.float64)


def test_half_of_a_sliced_model_keeps_its_rows() -> None:
    model = builders.gpt2()
    builders.attach(model, targets=["c_attn[q,v]"], rank=2)
    model.bfloat16()
    assert builders.logits(model, builders.ids()).dtype == torch.bfloat16


def test_leaving_the_meta_device_draws_the_first_values() -> None:
    with torch.device("meta"):
        model = builders.MLP()
    builders.attach(model, targets="all-linear", rank=2, seed=3)
    model.to_empty(device="cpu")
    model.load_state_dict(builders.mlp().state_dict())
    plain = builders.mlp()
    builders.attach(plain, targets="all-linear", rank=2, seed=3)
    assert builders.bits(model) == builders.bits(plain)
    assert torch.equal(model.eval()(X), builders.mlp().eval()(X))


@pytest.mark.parametrize("config", [{"bias": "all"}, {"train_also": ["fc2"]}])
def test_what_would_be_lost_on_the_meta_device_is_refused(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = builders.MLP()
    with pytest.raises(DeltawError, match="meta"):
        builders.attach(model, targets="fc1", **config)
    assert dw.attached(model) == ()


def test_loading_onto_the_meta_device_is_refused(tmp_path: Path) -> None:
    dw.save(worn(), tmp_path)
    with torch.device("meta"):
        model = builders.MLP()
    with pytest.raises(DeltawError, match="meta"):
        dw.load(model, tmp_path)
    assert dw.attached(model) == ()


def test_requires_grad_of_everything_is_found() -> None:
    model = worn()
    model.requires_grad_(True)
    assert "base trains" in {problem.kind for problem in dw.check(model).problems}
    dw.detach(model)
    assert all(p.requires_grad for p in model.parameters())


def test_flags_come_back_as_they_were() -> None:
    model = builders.mlp()
    model.norm.requires_grad_(False)
    builders.attach(model, targets="fc1")
    builders.attach(model, "b", targets="fc2")
    dw.freeze(model, "default")
    assert {name.split(".lora.")[1].split(".")[0] for name, _ in dw.trainable(model)} == {"b"}
    dw.unfreeze(model, "default")
    dw.detach(model, "b")
    dw.detach(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight", "norm.bias"]


# check


def test_every_finding_of_check() -> None:
    model = worn()
    report = dw.check(model)
    assert report.ok and not report.judged and "no gradient yet" in str(report)
    model(X).sum().backward()
    assert dw.check(model).judged and str(dw.check(model)) == "no problem found"

    def kinds() -> set[str]:
        found = dw.check(model).problems
        assert all(problem.hint and problem.where for problem in found)
        return {problem.kind for problem in found}

    entry: Any = model.get_submodule("fc1.lora.default")
    kept, entry.lora_A.grad = entry.lora_A.grad, None
    assert kinds() == {"untrained"}
    entry.lora_A.grad = kept
    value = entry.lora_B.data.clone()
    entry.lora_B.data[0, 0] = float("inf")
    assert kinds() == {"not finite"}
    entry.lora_B.data.copy_(value)
    model.norm.weight.requires_grad_(True)
    assert kinds() == {"base trains"}
    model.norm.weight.requires_grad_(False)
    old, model.fc2 = model.fc2, nn.Linear(8, 4)
    model.fc2.requires_grad_(False)
    assert "replaced" in kinds()
    model.fc2 = old
    cls = type(model.fc1)
    model.fc1.__class__ = nn.Linear
    assert kinds() == {"bypassed"}
    model.fc1.__class__ = cls
    for _, pair in builders.factors(model):
        pair.lora_B.data.zero_()
    dw.freeze(model, "default")
    assert "does nothing" in kinds()
    assert "does nothing: 'default'" in str(dw.check(model))


def test_check_finds_a_misplaced_adapter() -> None:
    model = worn()
    model.get_submodule("fc1.lora").to("meta")
    assert ("misplaced", "fc1.lora.default") in {(p.kind, p.where) for p in dw.check(model).problems}


def test_check_of_a_plain_model_is_refused() -> None:
    with pytest.raises(StateError, match="no adapter"):
        dw.check(builders.mlp())
