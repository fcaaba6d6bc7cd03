"""Life after attach: copies, pickles, resizes, casts, checkpoints, threads and other libraries' hands."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError, TargetError

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


@pytest.mark.parametrize(
    "config", [{"targets": "out_proj"}, {"targets": (), "bias": "all"}, {"targets": (), "train_also": "out_proj"}]
)
def test_multihead_attention_is_refused(config: dict[str, Any]) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(TargetError, match="bypassed"):
        builders.attach(model, **config)


@pytest.mark.parametrize(
    "config",
    [
        {"targets": "linear1"},
        {"targets": "linear2"},
        {"targets": "linear1", "bias": "lora_only"},
        {"targets": (), "train_also": "linear2"},
        {"targets": (), "train_also": "norm1"},
    ],
)
def test_the_encoder_layers_fast_path_is_refused(config: dict[str, Any]) -> None:
    model = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)})
    with pytest.raises(TargetError, match="bypassed"):
        builders.attach(model, **config)
    if config["targets"]:
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            builders.attach(model, **config)
            builders.randomize(model)
            model.eval()
            x = torch.randn(2, 3, 8)
            with torch.no_grad():
                on = model["layer"](x)
                with dw.disabled(model):
                    assert not torch.equal(model["layer"](x), on)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def test_save_pretrained_names_the_two_verbs(tmp_path: Path) -> None:
    model = builders.llama()
    builders.attach(model, targets=["q_proj"])
    with pytest.raises(StateError) as caught:
        model.save_pretrained(tmp_path / "out")
    assert "deltaw.save(" in caught.value.hint and "deltaw.merge(" in caught.value.hint
    assert not (tmp_path / "out").exists()
    dw.detach(model)
    model.save_pretrained(tmp_path / "out")
    assert "save_pretrained" not in vars(model)


def test_autocast() -> None:
    model = worn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(X)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(X), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in dw.trainable(model))


# threads, tasks


def test_threads_have_their_own_choice() -> None:
    model = worn()
    builders.attach(model, "b", targets="fc1", rank=2)
    builders.randomize(model, seed=7, adapter="b")
    dw.activate(model, "default")
    want: dict[Any, torch.Tensor] = {}
    for choice in ("default", "b"):
        with dw.active(model, choice):
            want[choice] = model(X)
    with dw.disabled(model):
        want[None] = model(X)
    wrong: list[Any] = []
    barrier = threading.Barrier(6)

    def run(choice: str | None) -> None:
        barrier.wait()
        for _ in range(60):
            with dw.disabled(model) if choice is None else dw.active(model, choice):
                if not torch.equal(model(X), want[choice]):
                    wrong.append(choice)

    threads = [threading.Thread(target=run, args=(choice,)) for choice in ("default", "b", None) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(model(X), want["default"])


def test_async_tasks_have_their_own_choice() -> None:
    model = worn()
    on = model(X)
    with dw.disabled(model):
        off = model(X)

    async def run(adapter: bool) -> bool:
        for _ in range(5):
            if adapter:
                with dw.active(model, "default"):
                    await asyncio.sleep(0)
                    got = model(X)
            else:
                with dw.disabled(model):
                    await asyncio.sleep(0)
                    got = model(X)
            if not torch.equal(got, on if adapter else off):
                return False
        return True

    async def main() -> list[bool]:
        return await asyncio.gather(*(run(bool(i % 2)) for i in range(6)))

    assert all(asyncio.run(main()))


def test_a_task_that_outlives_its_block_is_out_of_the_block() -> None:
    model = worn()
    on = model(X)
    with dw.disabled(model):
        off = model(X)

    async def main() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inside, outside = asyncio.Event(), asyncio.Event()

        async def task() -> tuple[torch.Tensor, torch.Tensor]:
            first = model(X)
            inside.set()
            await outside.wait()
            return first, model(X)

        with dw.disabled(model):
            running = asyncio.create_task(task())
            await inside.wait()
        # another override is in force somewhere else meanwhile
        with dw.active(model, {"default": 1.0}):
            outside.set()
            first, second = await running
            return first, second, model(X)

    first, second, third = asyncio.run(main())
    assert torch.equal(first, off) and torch.equal(second, on) and torch.equal(third, on)


def test_blocks_nest_and_survive_errors() -> None:
    model = worn()
    on = model(X)
    with pytest.raises(KeyError), dw.disabled(model):
        with dw.active(model, "default"):
            assert torch.equal(model(X), on)
        assert not torch.equal(model(X), on)
        raise KeyError
    assert torch.equal(model(X), on)


# activation checkpointing


class Blocks(nn.Module):
    """Blocks run plainly or under checkpointing; the first block's input needs no gradient."""

    def __init__(self, mode: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.mode is None else checkpoint(block, x, use_reentrant=self.mode == "reentrant")
        return x


def gradients(mode: str | None, steps: int, need: bool) -> list[torch.Tensor]:
    model = Blocks(mode).train()
    builders.attach(model, targets="all-linear", rank=2, dropout=0.4, seed=1)
    builders.randomize(model, size=0.5)
    found = []
    for step in range(steps):
        model.zero_grad()
        x = (X + step).requires_grad_(need)
        model(x).square().sum().backward()
        found += [p.grad.clone() for _, p in dw.trainable(model) if p.grad is not None]
    return found


@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_checkpointing_with_dropout_gives_the_same_gradients(mode: str, need: bool) -> None:
    if mode == "reentrant" and not need:
        pytest.skip("torch gives the first block no gradient; see the next test")
    plain, recomputed = gradients(None, 4, need), gradients(mode, 4, need)
    assert len(plain) == len(recomputed) == 4 * 6
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_without_a_gradient_at_the_input_is_found() -> None:
    model = Blocks("reentrant").train()
    builders.attach(model, targets="all-linear", rank=2)
    builders.randomize(model)
    x = X.clone()
    first, rest = model.blocks[0], model.blocks[1:]
    hidden = checkpoint(first, x, use_reentrant=True)
    for block in rest:
        hidden = block(hidden)
    hidden.sum().backward()
    report = dw.check(model)
    assert {p.where for p in report.problems} == {f"blocks.0.0.lora.default.lora_{f}" for f in "AB"}
    assert {p.kind for p in report.problems} == {"untrained"} and "use_reentrant=False" in report.problems[0].hint


def test_two_forwards_before_one_recomputed_backward_are_refused() -> None:
    model = Blocks("non-reentrant").train()
    builders.attach(model, targets="all-linear", rank=2, dropout=0.4)
    builders.randomize(model)
    loss = model(X).sum() + model(X).sum()
    with pytest.raises(StateError, match="cannot be recomputed"):
        loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_transformers_checkpointing(reentrant: bool) -> None:
    def run(recompute: bool) -> list[torch.Tensor]:
        model = builders.llama().train()
        model.config.use_cache = False
        builders.attach(model, targets="all-linear", rank=2, dropout=0.3, seed=2)
        builders.randomize(model)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        found = []
        for step in range(2):
            torch.manual_seed(step)
            model.zero_grad()
            tokens = builders.ids()
            model(tokens, labels=tokens).loss.backward()
            found += [p.grad.clone() for _, p in dw.trainable(model)]
        return found

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


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
