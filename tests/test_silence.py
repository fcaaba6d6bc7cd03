"""Silence is the enemy: every way in which an adapter has been known to do nothing, unnoticed, must be noticed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import CheckpointError, DeltawError, StateError, TargetError, TieError

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def test_a_loss_that_reads_the_heads_weight_directly_is_found() -> None:
    model = builders.lookup()
    builders.attach(model, targets=["embed", "head"], rank=2)
    builders.randomize(model)
    hidden = model.embed(builders.ids(10))
    F.linear(hidden, model.head.weight).sum().backward()
    problems = dw.check(model).problems
    assert {p.where for p in problems} == {"head.lora.default.lora_A", "head.lora.default.lora_B"}
    assert {p.kind for p in problems} == {"untrained"}


@pytest.mark.parametrize("leaf", ["out_proj", "x_proj", "dt_proj"])
def test_fused_kernels_that_read_a_weight_are_refused(leaf: str) -> None:
    class MambaMixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("in_proj", "out_proj", "x_proj", "dt_proj"):
                self.add_module(name, nn.Linear(6, 6))

    model = nn.ModuleDict({"mixer": MambaMixer()})
    with pytest.raises(TargetError, match="bypassed"):
        builders.attach(model, targets=leaf)
    builders.attach(model, targets="in_proj")


def test_an_adapter_that_lands_nowhere_is_refused(tmp_path: Path) -> None:
    model = builders.mlp()
    builders.attach(model, targets="fc1", rank=2)
    dw.save(model, tmp_path)
    other = nn.Sequential(nn.Linear(6, 8))
    before = builders.bits(other)
    with pytest.raises(CheckpointError, match="does not fit"):
        dw.load(other, tmp_path)
    assert builders.bits(other) == before and dw.attached(other) == ()


def test_names_that_match_nothing_never_become_full_fine_tuning() -> None:
    model = builders.mlp()
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(TargetError, match="no module matches"):
        builders.attach(model, targets=["c_attn"], rank=16)
    assert dw.attached(model) == () and flags == [p.requires_grad for p in model.parameters()]


def test_a_tied_head_is_never_merged_into_the_embedding_unasked() -> None:
    model = builders.llama(tied=True)
    with pytest.raises(TieError):
        builders.attach(model, targets="lm_head")
    builders.attach(model, targets="lm_head", ties="separate")
    builders.randomize(model)
    with pytest.raises(StateError, match="adapted alike"):
        dw.merge(model)


def test_base_keys_are_never_renamed() -> None:
    for make, target in ((builders.llama, "all-linear"), (builders.gpt2, "c_attn[q,v]"), (builders.bert, "query")):
        model = make()
        names = [name for name, _ in model.named_parameters()]
        modules = dict(model.named_modules())
        builders.attach(model, targets=target, rank=2)
        assert [name for name, _ in model.named_parameters() if ".lora." not in name] == names
        assert all(model.get_submodule(name) is module for name, module in modules.items())


def test_a_forward_on_the_instance_is_refused() -> None:
    model = builders.mlp()
    model.fc1.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(TargetError, match="hide the adapter"):
        builders.attach(model, targets="fc1")


@pytest.mark.parametrize("name", ["", "a.b", "train", "forward", "weight_hook.x", "record", "path", "worn", "loaded"])
def test_names_that_cannot_be_modules_are_refused(name: str) -> None:
    model = builders.mlp()
    with pytest.raises(StateError, match="cannot be the name"):
        builders.attach(model, name, targets="fc1")
    assert dw.attached(model) == () and type(model.fc1) is nn.Linear


@pytest.mark.parametrize("name", ["fc1", "lora_A", "default_2", "q-proj", "weight", "base_layer"])
def test_names_that_look_like_other_things_are_fine(name: str, tmp_path: Path) -> None:
    model = builders.mlp().eval()
    builders.attach(model, name, targets="all-linear", rank=2)
    builders.attach(model, f"{name}x", targets="all-linear", rank=2)
    builders.randomize(model)
    with dw.active(model, name):
        out = model(X)
    dw.save(model, tmp_path, name)
    other = builders.mlp().eval()
    dw.load(other, tmp_path, "elsewhere")
    assert torch.equal(other(X), out)


def test_a_taken_or_unknown_name_is_refused_by_every_verb(tmp_path: Path) -> None:
    model = builders.mlp()
    builders.attach(model, "sql", targets="fc1")
    dw.save(model, tmp_path, "sql")
    before = builders.bits(model)
    for verb in (lambda: builders.attach(model, "sql", targets="fc2"), lambda: dw.load(model, tmp_path, "sql")):
        with pytest.raises(StateError, match="taken"):
            verb()
    for verb in (
        lambda: dw.activate(model, "sqll"), lambda: dw.detach(model, "sqll"), lambda: dw.freeze(model, "sqll"),
        lambda: dw.save(model, tmp_path, "sqll"), lambda: dw.merge(model, "sqll"),
        lambda: dw.merge(model, {"sql": 1, "x": 1}), lambda: dw.active(model, "sqll").__enter__(),
    ):  # fmt: skip
        with pytest.raises(StateError, match="no such adapter") as caught:
            verb()
        assert "'sql'" in str(caught.value)
    assert builders.bits(model) == before and dw.attached(model) == ("sql",)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True, "1", None])
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    model = builders.mlp()
    builders.attach(model, targets="fc1")
    with pytest.raises(StateError, match="finite number"):
        dw.activate(model, {"default": weight})


def test_what_is_not_linear_is_not_mixed() -> None:
    model = builders.mlp()
    builders.attach(model, "plain", targets="fc1")
    builders.attach(model, "biased", targets="fc1", bias="all")
    builders.attach(model, "full", targets=(), train_also="fc2")
    for mix in ({"biased": 0.5}, {"biased": 1.0, "plain": 1.0}, {"full": 2.0}):
        with pytest.raises(StateError, match="cannot be mixed"):
            dw.activate(model, mix)
        with pytest.raises(StateError, match="cannot be mixed"):
            dw.merge(model, mix)
    dw.activate(model, {"plain": 0.5})


def test_verbs_on_a_plain_model_are_refused(tmp_path: Path) -> None:
    model = builders.mlp()
    for verb in (
        lambda: dw.detach(model), lambda: dw.merge(model), lambda: dw.unmerge(model), lambda: dw.save(model, tmp_path),
        lambda: dw.activate(model, "x"), lambda: dw.check(model), lambda: dw.draws(model),
    ):  # fmt: skip
        with pytest.raises(StateError, match="no adapter"):
            verb()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thing", [None, "gpt2", 3, [nn.Linear(1, 1)], nn.Linear])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    for verb in (dw.attach, dw.plan, dw.detach, dw.trainable, dw.check, dw.attached):
        with pytest.raises(DeltawError, match="not a model"):
            verb(thing)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(DeltawError, match="no parameter"):
        builders.attach(nn.Sequential(nn.ReLU()))


def test_a_failed_attach_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import deltaw.place as module

    model = builders.mlp()
    builders.attach(model, "first", targets="fc1", rank=2)
    before = (builders.bits(model), [(n, type(m)) for n, m in model.named_modules()], dw.attached(model))
    real, calls = module.site_lora, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(module, "site_lora", fail)
    with pytest.raises(MemoryError):
        builders.attach(model, "second", targets="all-linear", rank=2)
    assert (builders.bits(model), [(n, type(m)) for n, m in model.named_modules()], dw.attached(model)) == before
    plain = builders.mlp()
    calls.clear()
    with pytest.raises(MemoryError):
        builders.attach(plain, "second", targets="all-linear", rank=2)
    assert (
        dw.attached(plain) == () and all(p.requires_grad for p in plain.parameters()) and type(plain.fc1) is nn.Linear
    )


def test_the_library_neither_prints_nor_warns(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = builders.llama(tied=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builders.attach(model, targets=["q_proj", "embed_tokens"], rank=2, ties="share")
        builders.randomize(model)
        dw.save(model, tmp_path)
        dw.merge(model)
        dw.unmerge(model)
        dw.check(model)
        dw.detach(model)
        dw.load(model, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_reports_print_as_text(tmp_path: Path) -> None:
    model = builders.mlp()
    attached = builders.attach(model, targets="all-linear", rank=2)
    assert "fc1" in str(attached) and f"{attached.parameters:,} parameters" in str(attached)
    saved = dw.save(model, tmp_path)
    assert saved.tensors == 4 and saved.bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert str(dw.merge(model)).endswith("note: no bit changed in fc1.weight, fc2.weight")
    assert str(dw.unmerge(model)) == "restored the exact bits of 2 weights; default active again"
    assert str(dw.detach(model)) == "detached default, 2 modules restored; the base is as it was"
    loaded = dw.load(model, tmp_path, "back")
    assert "applied to 2/2 modules" in str(loaded) and dw.trainable(model) == []


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "a/b", " ", "a\nb", "..", "", 3, "loaded", "training"])
def test_names_that_are_no_names_are_refused(name: Any) -> None:
    model = builders.mlp()
    with pytest.raises(StateError, match="cannot be the name"):
        dw.attach(model, dw.LoRAConfig(rank=2), name)
    assert not dw.attached(model)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(DeltawError, match="not a configuration"):
        dw.attach(builders.mlp(), {"rank": 3})  # type: ignore[arg-type]
    model = builders.mlp()
    dw.attach(model, dw.LoRAConfig(rank=2))
    with pytest.raises(StateError, match="chooses no adapter"):
        dw.activate(model, ["default"])  # type: ignore[arg-type]


def test_an_attention_may_be_the_whole_model() -> None:
    model, x = nn.MultiheadAttention(8, 2), torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    report = dw.attach(model, dw.LoRAConfig(rank=2, targets=nn.MultiheadAttention))
    assert [site.path for site in report.sites] == ["", "out_proj"]
    builders.randomize(model)
    on = model(x, x, x)[0]
    dw.merge(model)
    torch.testing.assert_close(model(x, x, x)[0], on)
