"""save_pretrained of an attached model: adapters only, for every reader, and never the bare base by mistake."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import builders
import deltaw as dw
import loops
from deltaw.errors import CheckpointError, StateError

TOKENS = builders.ids()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A base on disk."""
    builders.llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def worn(home: Path | None = None, **config: Any) -> Any:
    net = builders.llama() if home is None else LlamaForCausalLM.from_pretrained(home)
    builders.attach(net, **{"rank": 2, "targets": ["q_proj", "v_proj"], **config})
    builders.randomize(net)
    return net.eval()


def files(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}


ROOT = {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"}


def test_every_reader_gets_the_adapter(home: Path, tmp_path: Path) -> None:
    net, out = worn(home), tmp_path / "out"
    net.save_pretrained(out)
    assert files(out) == ROOT
    expected = builders.logits(net, TOKENS)
    ours = builders.llama()
    dw.load(ours, out)
    assert torch.equal(builders.logits(ours, TOKENS), expected)
    theirs = peft.PeftModel.from_pretrained(builders.llama(), str(out)).eval()
    torch.testing.assert_close(builders.logits(theirs, TOKENS), expected)
    for cls in (AutoModelForCausalLM, LlamaForCausalLM):
        torch.testing.assert_close(builders.logits(cls.from_pretrained(out).eval(), TOKENS), expected)
    resumed = worn()
    resumed.load_state_dict(load_file(out / "model.safetensors"))
    assert torch.equal(builders.logits(resumed, TOKENS), expected)


def test_a_base_without_a_name_is_an_error_not_a_bare_base(tmp_path: Path) -> None:
    worn().save_pretrained(tmp_path)
    for cls in (AutoModelForCausalLM, LlamaForCausalLM):
        with pytest.raises((OSError, ValueError, TypeError)):
            cls.from_pretrained(tmp_path)


def test_without_peft_the_directory_is_no_model(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    worn(home).save_pretrained(out)
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: False)
    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: False)
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(out)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        LlamaForCausalLM.from_pretrained(out, config=builders.llama().config)
    (home / "config.json").replace(out / "config.json")
    for cls in (AutoModelForCausalLM, LlamaForCausalLM):
        with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
            cls.from_pretrained(out)


def test_a_plain_model_refuses_the_state(tmp_path: Path) -> None:
    worn().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        builders.llama().load_state_dict(state, strict=False)


def test_several_adapters(tmp_path: Path) -> None:
    net = worn()
    builders.attach(net, "sql", rank=3, targets=["o_proj"])
    builders.randomize(net, seed=1, adapter="sql")
    net.save_pretrained(tmp_path)
    parts = {"adapter_config.json", "adapter_model.safetensors"}
    assert files(tmp_path) == ROOT | {f"{name}/{part}" for name in ("default", "sql") for part in parts}
    assert dw.Adapter.open(tmp_path).hash == dw.Adapter.open(tmp_path / "sql").hash
    assert set(load_file(tmp_path / "model.safetensors")) == {*loops.adapter(net), "model.embed_tokens.weight"}
    dw.activate(net, {"sql": 1.0, "default": 0.5})
    net.save_pretrained(tmp_path)
    assert files(tmp_path) == {"model.safetensors"} | {
        f"{name}/{part}" for name in ("default", "sql") for part in parts
    }
    dw.activate(net, "default")
    net.save_pretrained(tmp_path)
    assert dw.Adapter.open(tmp_path).hash == dw.Adapter.open(tmp_path / "default").hash
    dw.detach(net, "sql")
    dw.activate(net, None)
    net.save_pretrained(tmp_path / "one")
    assert files(tmp_path / "one") == ROOT


def test_merged_and_detached_models_save_themselves(tmp_path: Path) -> None:
    net = worn()
    expected = builders.logits(net, TOKENS)
    dw.merge(net)
    net.save_pretrained(tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(builders.logits(merged, TOKENS), expected)
    dw.unmerge(net)
    net.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == ROOT
    dw.detach(net)
    assert "save_pretrained" not in vars(net)
    net.save_pretrained(tmp_path / "bare")
    bare = LlamaForCausalLM.from_pretrained(tmp_path / "bare").eval()
    assert torch.equal(builders.logits(bare, TOKENS), builders.logits(builders.llama(), TOKENS))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_copy_saves_itself(make: Any, tmp_path: Path) -> None:
    net = worn()
    other = make(net)
    builders.randomize(other, seed=7)
    other.save_pretrained(tmp_path)
    again = builders.llama()
    dw.load(again, tmp_path)
    loops.assert_same(loops.adapter(again), loops.adapter(other))
    dw.detach(other)
    assert "save_pretrained" not in vars(other) and "save_pretrained" in vars(net)
    assert len(other._state_dict_hooks) == len(builders.llama()._state_dict_hooks)


def test_the_directory_of_a_whole_model_is_refused(home: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in home.iterdir()}
    with pytest.raises(CheckpointError, match="directory of a whole model"):
        worn().save_pretrained(home)
    (home / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="directory of a whole model") as caught:
        worn().save_pretrained(home)
    assert caught.value.got == "model.safetensors"
    (tmp_path / "config.json").rename(home / "config.json")
    assert before == {file.name: file.read_bytes() for file in home.iterdir()}
    with pytest.raises(CheckpointError, match="whole model"):
        worn().save_pretrained(home / "config.json")


def test_a_given_state_dict_is_what_is_written(tmp_path: Path) -> None:
    net = worn()
    kept = loops.adapter(net)
    state = {f"_orig_mod.module.{key}": value * 2 for key, value in net.state_dict().items()}
    net.save_pretrained(tmp_path, state_dict=state)
    loops.assert_same(loops.adapter(net), kept)
    other = builders.llama()
    dw.load(other, tmp_path)
    loops.assert_same(loops.adapter(other), {key: value * 2 for key, value in kept.items()})
    net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    loops.assert_same(loops.adapter(net), loops.adapter(other))
    assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for _, p in dw.trainable(net))
    with pytest.raises(StateError, match="lacks the adapter"):
        net.save_pretrained(tmp_path / "x", state_dict=builders.llama().state_dict())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "options", [{"push_to_hub": True}, {"variant": "fp16"}, {"safe_serialization": False}, {"save_peft_format": False}]
)
def test_options_that_ask_for_something_else_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StateError, match="asks for something else"):
        worn().save_pretrained(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_part_of_an_attached_model_is_not_saved_alone(tmp_path: Path) -> None:
    net = worn()
    with pytest.raises(StateError, match="part of an attached model"):
        net.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dw.merge(net)
    net.model.save_pretrained(tmp_path / "merged")
    dw.unmerge(net)
    dw.detach(net)
    assert "save_pretrained" not in vars(net.model)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    worn().save_pretrained(tmp_path / "out", is_main_process=False, max_shard_size="1GB")
    assert not (tmp_path / "out").exists()


def test_a_diverged_adapter_is_refused(tmp_path: Path) -> None:
    net = worn()
    net.save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    dict(net.named_parameters())["model.layers.0.self_attn.q_proj.lora.default.lora_A"].data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        net.save_pretrained(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}


@pytest.mark.parametrize("variant", ["lora", "dora", "lora_fa", "lora_bias", "vera"])
def test_every_variant(variant: str, tmp_path: Path) -> None:
    net, other, resumed = builders.llama(), builders.llama(), builders.llama()
    for model in (net, resumed):
        builders.attach(model, rank=2, targets=["q_proj", "v_proj"], variant=variant)
    for _, parameter in dw.trainable(net):
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    expected = builders.logits(net, TOKENS)
    net.save_pretrained(tmp_path, state_dict={key: value.clone() for key, value in net.state_dict().items()})
    dw.load(other, tmp_path)
    torch.testing.assert_close(builders.logits(other, TOKENS), expected)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(builders.logits(resumed, TOKENS), expected)
