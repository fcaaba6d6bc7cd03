"""Other libraries' hands on an attached model: resizes, hooks, wrappers, fast paths."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError, TargetError

X = torch.linspace(-1, 1, 18).reshape(3, 6)


def worn(seed: int = 0, **config: Any) -> builders.MLP:
    model = builders.mlp().eval()
    builders.attach(model, **{"targets": "all-linear", "rank": 2, **config})
    builders.randomize(model, seed)
    return model


# other libraries' hands


def test_resized_embeddings() -> None:
    model = builders.llama()
    builders.attach(model, targets=["embed_tokens", "q_proj"], rank=2)
    builders.randomize(model)
    model.resize_token_embeddings(40, mean_resizing=False)
    with pytest.raises(StateError, match="resized"):
        model(builders.ids())


@pytest.mark.parametrize("verb", ["save", "merge"])
def test_a_resized_head_is_not_lost_in_silence(verb: str, tmp_path: Path) -> None:
    model = builders.llama()
    builders.attach(model, targets=["lm_head", "q_proj"], rank=2)
    builders.randomize(model)
    model.resize_token_embeddings(40, mean_resizing=False)
    run = {"save": lambda: dw.save(model, tmp_path), "merge": lambda: dw.merge(model)}
    with pytest.raises(StateError, match="was replaced"):
        run[verb]()
    assert ("replaced", "lm_head") in {(p.kind, p.where) for p in dw.check(model).problems}
    dw.detach(model)
    assert builders.logits(model, builders.ids(40)).shape[-1] == 40


def test_resizing_beside_the_adapter_is_fine() -> None:
    model = builders.llama()
    builders.attach(model, targets=["q_proj"], rank=2)
    builders.randomize(model)
    model.resize_token_embeddings(40, mean_resizing=False)
    assert builders.logits(model, builders.ids(40)).shape[-1] == 40
    before = builders.bits(model)
    dw.merge(model)
    dw.unmerge(model)
    dw.check(model)
    assert builders.bits(model) == before


def test_tie_weights_again_keeps_the_tie() -> None:
    model = builders.llama(tied=True)
    builders.attach(model, targets=["embed_tokens"], ties="share", rank=2)
    builders.randomize(model)
    out = builders.logits(model, builders.ids())
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(builders.logits(model, builders.ids()), out)
    dw.merge(model)
    torch.testing.assert_close(builders.logits(model, builders.ids()), out, rtol=1e-4, atol=1e-5)
    dw.unmerge(model)


def test_tying_after_attach_is_refused_at_merge() -> None:
    model = builders.lookup()
    builders.attach(model, targets="embed", rank=2)
    builders.randomize(model)
    model.head.weight = model.embed.weight
    with pytest.raises(StateError, match="adapted alike"):
        dw.merge(model)


def test_a_parent_that_was_attached_first_keeps_its_part() -> None:
    model = nn.ModuleDict({"a": builders.mlp(), "b": builders.mlp()})
    builders.attach(model, targets="a.fc1")
    with pytest.raises(StateError, match="part of another model"):
        builders.attach(model["a"], "inner", targets="fc1")
    other = nn.ModuleDict({"a": builders.mlp(), "b": builders.mlp()})
    builders.attach(other["a"], targets="fc1")
    with pytest.raises(StateError, match="part of another model"):
        builders.attach(other, "outer", targets="fc2")
    assert dw.attached(other) == () and dw.attached(other["a"]) == ("default",)


def test_a_full_copy_of_an_adapted_module_is_of_the_base() -> None:
    model = worn()
    plain = builders.mlp().eval()
    builders.attach(model, "full", targets=(), train_also=["fc2"])
    entry: Any = model.get_submodule("fc2.lora.full")
    assert type(entry.module) is nn.Linear and [key for key, _ in entry.named_parameters()] == [
        "module.weight",
        "module.bias",
    ]
    assert torch.equal(model(X), plain(X))
    assert sum("fc1.lora" in name for name, _ in model.named_modules()) == 2


def test_accelerates_hooks(tmp_path: Path) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            Count.calls += 1
            return args, kwargs

    model, plain = builders.mlp().eval(), builders.mlp().eval()
    add_hook_to_module(model.fc1, Count())
    builders.attach(model, targets="fc1", rank=2)
    assert torch.equal(model(X), plain(X)) and Count.calls == 1
    builders.randomize(model)
    on = model(X)
    assert not torch.equal(on, plain(X)), "the hook's forward hides the adapter"
    assert dw.check(model).ok
    other = copy.deepcopy(model)
    assert torch.equal(other(X), on)
    dw.merge(model)
    torch.testing.assert_close(model(X), on)
    dw.unmerge(model)
    dw.detach(model)
    assert torch.equal(model(X), plain(X)) and Count.calls > 3
    # hooks that come and go around the attach
    builders.attach(model, targets="fc1", rank=2)
    builders.randomize(model)
    remove_hook_from_module(model.fc1)
    assert torch.equal(model(X), on) and dw.check(model).ok
    dw.merge(model)
    torch.testing.assert_close(model(X), on)
    dw.unmerge(model)
    add_hook_to_module(model.fc2, Count())
    assert torch.equal(model(X), on)
    dw.detach(model)
    assert torch.equal(model(X), plain(X))
    builders.attach(model, targets="fc1", rank=2)
    builders.randomize(model)
    assert torch.equal(model(X), on)


def test_a_patched_forward_is_refused_and_found() -> None:
    model = builders.mlp()
    model.fc1.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(TargetError, match="forward of its own"):
        builders.attach(model, targets="fc1")
    model = worn()
    model.fc1.forward = lambda x: x  # type: ignore[method-assign]
    assert {(p.kind, p.where) for p in dw.check(model).problems} == {("shadowed", "fc1")}


def test_attach_after_compile_is_refused() -> None:
    model = builders.mlp()
    with pytest.raises(StateError, match="before the model is compiled"):
        builders.attach(torch.compile(model))
    inner = builders.mlp()
    inner.fc1 = torch.compile(inner.fc1)
    with pytest.raises(StateError, match="before the model is compiled"):
        builders.attach(inner, targets=["fc2"])
    whole = builders.mlp()
    whole.compile()
    with pytest.raises(StateError, match="before the model is compiled"):
        builders.attach(whole)
    assert dw.attached(model) == dw.attached(inner) == dw.attached(whole) == ()


def test_a_model_is_seen_through_compile() -> None:
    model = worn()
    wrapped = torch.compile(model)
    assert dw.attached(wrapped) == ("default",)
    assert [name for name, _ in dw.trainable(wrapped)] == [name for name, _ in dw.trainable(model)]


@pytest.mark.slow
def test_attach_after_fully_shard_is_refused(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = builders.mlp()
        fully_shard(model, mesh=mesh)
        with pytest.raises(StateError, match="before the model is sharded"):
            builders.attach(model, targets="fc1")
        right = worn()
        expected = right(X)
        fully_shard(right, mesh=mesh)
        torch.testing.assert_close(right(X), expected)
        with pytest.raises(DeltawError):
            dw.merge(right)
    finally:
        dist.destroy_process_group()


def test_autocast() -> None:
    model = worn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(X)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(X), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in dw.trainable(model))
