"""A base merged shard by shard has exactly the bits of a merge in memory, whatever the adapter is made of."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_model import mixed_dir
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import deltaw as dw
from deltaw.cli import main
from deltaw.cli._common import stops_as_interrupts
from deltaw.errors import ConfigError, ModelError, StateError
from deltaw.ship import mapped
from deltaw.ship import merge as ship_merge
from deltaw.ship.merge import WrittenMerge, merge_directory
from deltaw.ship.opening import MERGED, ModelChoice
from verb_models import adapter_dir, base_dir

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tensors(place: Path) -> dict[str, Tensor]:
    """Every tensor of a directory's files."""
    found = {}
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {key: value.contiguous().flatten().view(torch.uint8).numpy().tobytes() for key, value in state.items()}


def sharded(place: Path, size: str = "20KB") -> Path:
    """Write a model's files again, in several shards with a note in their headers."""
    model = family(place).from_pretrained(place, dtype="auto")
    (place / "model.safetensors").unlink()
    model.save_pretrained(place, max_shard_size=size)
    return place


def family(place: Path) -> Any:
    kind = AutoConfig.from_pretrained(place).model_type
    return AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM


def adapt(base: Path, place: Path, values: float = 0.2, **config: Any) -> Path:
    """Write an adapter whose every trained value differs from where it started."""
    model = family(base).from_pretrained(base, dtype="auto")
    dw.attach(model, dw.LoRAConfig(**{"rank": 3, "alpha": 5, "seed": 1, **config}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter += (torch.randn(parameter.shape, generator=generator) * values).to(parameter)
    dw.save(model, place)
    return place


def merge_both_ways(base: Path, adapter: Path, place: Path, **options: Any) -> WrittenMerge:
    """Stream, and compare with ``deltaw.merge`` bit for bit; what is not touched must be the base's bytes."""
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), place, **options)
    assert written.streamed, written.notes
    model = family(base).from_pretrained(base, dtype="auto")
    dw.load(model, adapter)
    report = dw.merge(model)
    state = model.state_dict()
    before, after = bits(tensors(base)), bits(tensors(place))
    assert before.keys() == after.keys()
    assert after == {key: content for key, content in bits(state).items() if key in after}
    assert before != after
    assert written.merged.sites == report.sites and written.merged.unchanged == report.unchanged
    return written


LLAMA: dict[str, dict[str, Any]] = {
    "linear": {"targets": ["q_proj", "down_proj"]},
    "everything": {"targets": "all-linear"},
    "embedding": {"targets": ["embed_tokens", "q_proj"]},
    "dora": {"targets": ["q_proj", "o_proj"], "variant": "dora"},
    "vera": {"targets": ["q_proj", "up_proj"], "variant": "vera", "alpha": 3},
    "rows": {"targets": ["v_proj"], "train_rows": {"embed_tokens": [3, 200, 17]}},
    "rows_and_update": {"targets": ["embed_tokens"], "train_rows": {"embed_tokens": [0, 5]}},
    "copies": {"targets": ["q_proj"], "train_also": ["norm", "lm_head"]},
    "pissa": {"targets": ["q_proj"], "init": "pissa"},
}
GPT2: dict[str, dict[str, Any]] = {
    "conv1d": {"targets": ["c_attn", "c_proj"]},
    "slices": {"targets": ["c_attn[q,v]"]},
    "conv1d_dora": {"targets": ["c_attn"], "variant": "dora"},
    "conv1d_lora_bias": {"targets": ["c_attn", "c_fc"], "variant": "lora_bias"},
    "biases": {"targets": ["c_attn"], "bias": "lora_only"},
    "all_biases": {"targets": ["c_fc"], "bias": "all"},
    "tied_table": {"targets": ["wte"], "ties": "share"},
}
MIXED: dict[str, dict[str, Any]] = {
    "convs": {"targets": ["conv", "grouped"], "rank": 4},
    "convs_dora": {"targets": ["conv"], "variant": "dora"},
    "attention": {"targets": ["attention"]},
    "out_proj": {"targets": ["attention.out_proj", "head"], "variant": "lora_bias"},
    "bounded_table": {"targets": ["embed"]},
    "batch_norm": {"targets": ["head"], "train_also": ["norm"]},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LLAMA)
def test_the_bits_of_a_merge_in_memory(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    untied = case in {"embedding", "copies", "rows", "rows_and_update"}
    base = base_dir(tmp_path / "base", dtype=dtype, tie_word_embeddings=not untied)
    adapter = adapt(base, tmp_path / "adapter", **LLAMA[case])
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GPT2)
def test_the_bits_with_transposed_and_fused_weights(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "gpt2", dtype=dtype)
    adapter = adapt(base, tmp_path / "adapter", **GPT2[case])
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MIXED)
def test_the_bits_with_other_layers(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = mixed_dir(tmp_path / "base", dtype)
    adapter = adapt(base, tmp_path / "adapter", **MIXED[case])
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)


@pytest.mark.parametrize("case", ["everything", "dora", "rows_and_update"])
def test_the_bits_where_a_weight_is_many_blocks(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("deltaw.blocks"), "_VALUES", 100)
    base = base_dir(tmp_path / "base", dtype=torch.bfloat16, tie_word_embeddings=False)
    adapter = adapt(base, tmp_path / "adapter", **LLAMA[case])
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)


def test_a_classifier_with_its_head_and_labels(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "bert", num_labels=3)
    adapter = adapt(base, tmp_path / "adapter", targets=["query"], train_also=["classifier"], bias="lora_only")
    written = merge_both_ways(base, adapter, tmp_path / "merged")
    assert written.fidelity is not None and written.fidelity.faithful
    config = AutoConfig.from_pretrained(tmp_path / "merged")
    assert config.num_labels == 3 and config.architectures == ["BertForSequenceClassification"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shards_index_and_notes_stay(tmp_path: Path, kind: str) -> None:
    base = sharded(base_dir(tmp_path / "base", kind, dtype=torch.bfloat16))
    (base / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj" if kind == "llama" else "c_attn"])
    written = merge_both_ways(base, adapter, tmp_path / "merged")
    assert written.fidelity is not None and written.fidelity.faithful and "shard by shard" in str(written)
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "merged" / "pytorch_model.bin").exists()
    for name in (*shards, "model.safetensors.index.json", "config.json"):
        old, new = (base / name).read_bytes(), (tmp_path / "merged" / name).read_bytes()
        length = 8 + int.from_bytes(old[:8], "little") if name in shards else len(old)
        assert old[:length] == new[:length] and len(old) == len(new), name


def test_tied_weights_are_written_where_the_files_hold_them(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "gpt2")
    adapter = adapt(base, tmp_path / "adapter", targets=["wte"], ties="share")
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)
    assert "lm_head.weight" not in tensors(tmp_path / "merged")


def stored_again(base: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Write the only file of a model anew, with other tensors."""
    from safetensors.torch import save_file

    state = tensors(base)
    change(state)
    save_file(state, base / "model.safetensors", {"format": "pt"})


def test_ties_that_are_stored_twice(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "gpt2")
    adapter = adapt(base, tmp_path / "adapter", targets=["wte"], ties="share")
    stored_again(base, lambda state: state.update({"lm_head.weight": state["transformer.wte.weight"].clone()}))
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")
    assert written.streamed and written.fidelity is not None
    after = tensors(tmp_path / "merged")
    assert torch.equal(after["lm_head.weight"], after["transformer.wte.weight"])
    assert not torch.equal(after["lm_head.weight"], tensors(base)["lm_head.weight"])


def test_keys_without_the_models_prefix(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "gpt2")
    adapter = adapt(base, tmp_path / "adapter", targets=["c_attn"])
    whole = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "whole")

    def bare(state: dict[str, Tensor]) -> None:
        for key in list(state):
            state[key.removeprefix("transformer.")] = state.pop(key)
        state["h.0.attn.bias"] = torch.ones(1, 1, 96, 96)  # old files hold the mask, which nothing loads

    stored_again(base, bare)
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged")
    assert written.streamed and whole.streamed
    after = tensors(tmp_path / "merged")
    assert bool(after.pop("h.0.attn.bias").all())
    assert bits({f"transformer.{key}": value for key, value in after.items()}) == bits(tensors(tmp_path / "whole"))


def fused(tmp_path: Path) -> tuple[Path, Path, str]:
    from transformers import MixtralConfig, MixtralForCausalLM

    base = base_dir(tmp_path / "base")
    (base / "model.safetensors").unlink()
    config = MixtralConfig(
        vocab_size=AutoConfig.from_pretrained(base).vocab_size, hidden_size=32, intermediate_size=48,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
        max_position_embeddings=96,
    )  # fmt: skip
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(base)
    return base, adapt(base, tmp_path / "adapter", targets=["q_proj"]), "transformers converts"


def untied_twice(tmp_path: Path) -> tuple[Path, Path, str]:
    base = base_dir(tmp_path / "base", "gpt2")
    adapter = adapt(base, tmp_path / "adapter", targets=["c_attn"])
    stored_again(base, lambda state: state.update({"lm_head.weight": state["transformer.wte.weight"] + 1}))
    return base, adapter, "another value"


def pickled(tmp_path: Path) -> tuple[Path, Path, str]:
    base = base_dir(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])
    torch.save(tensors(base), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    return base, adapter, "no safetensors files"


def in_another_dtype(tmp_path: Path) -> tuple[Path, Path, str]:
    base = base_dir(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return base, adapter, "is stored in float32, not in bfloat16"


def without_a_head(tmp_path: Path) -> tuple[Path, Path, str]:
    base = base_dir(tmp_path / "base", "bert", num_labels=3)
    adapter = adapt(base, tmp_path / "adapter", targets=["query"], train_also=["classifier"])
    stored_again(base, lambda state: [state.pop(f"classifier.{name}") for name in ("weight", "bias")] and None)
    return base, adapter, "do not hold 'classifier"


@pytest.mark.parametrize("make", [fused, untied_twice, pickled, in_another_dtype, without_a_head])
def test_what_cannot_be_streamed_is_merged_in_memory_and_said(
    make: Callable[[Path], tuple[Path, Path, str]], tmp_path: Path
) -> None:
    base, adapter, reason = make(tmp_path)
    written = merge_directory(ModelChoice(model=str(base), adapter=str(adapter)), tmp_path / "merged", verify=True)
    assert not written.streamed and written.fidelity is not None and written.fidelity.faithful
    (note,) = written.notes
    assert note.startswith("the whole model was held in memory: ") and reason in note
    assert f"note: {note}" in str(written)


def test_not_verified_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapter_dir(base, tmp_path / "adapter")
    choice = ModelChoice(model=str(base), adapter=str(adapter))
    asked = merge_directory(choice, tmp_path / "asked", verify=False)
    assert asked.fidelity is None and "note: not verified, as asked" in str(asked)
    record = json.loads((tmp_path / "asked" / MERGED).read_text())
    assert record["faithful"] is None and record["fidelity"] is None and record["dtype"] == "float32"
    monkeypatch.setattr(ship_merge, "free_memory", lambda device: 1 << 20)
    small = merge_directory(choice, tmp_path / "small")
    assert small.fidelity is None and "1 MiB is free; --verify compares anyway" in str(small)
    told = merge_directory(choice, tmp_path / "told", verify=True)
    assert told.fidelity is not None and told.notes == ()
    elsewhere = merge_directory(
        ModelChoice(model=str(base), adapter=str(adapter), dtype="bfloat16"), tmp_path / "other", verify=False
    )
    assert elsewhere.fidelity is None and len(elsewhere.notes) == 2
    for option in ({"tolerance": 0.1}, {"texts": ["x"]}):
        with pytest.raises(ConfigError, match="nothing to judge"):
            merge_directory(choice, tmp_path / "never", verify=False, **option)


def nothing_left(tmp_path: Path) -> bool:
    return sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sharded(base_dir(tmp_path / "base"))
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])
    choice = ModelChoice(model=str(base), adapter=str(adapter))
    write, left = mapped._put, [1]

    def filling(new: Any, content: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(new, content)

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_put", filling)
        with pytest.raises(ModelError, match="No space left"):
            merge_directory(choice, tmp_path / "merged", verify=False)
    assert nothing_left(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
        with pytest.raises(ModelError, match="1000 B free"):
            merge_directory(choice, tmp_path / "merged", verify=False)
    assert nothing_left(tmp_path)


def test_an_interrupt_or_an_overflow_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sharded(base_dir(tmp_path / "base", dtype=torch.float16))
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])
    choice = ModelChoice(model=str(base), adapter=str(adapter))

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_put", stopped)
        with pytest.raises(KeyboardInterrupt):
            merge_directory(choice, tmp_path / "merged", verify=False)
    assert nothing_left(tmp_path)
    wild = adapt(base, tmp_path / "wild", values=3e4, targets=["q_proj"])
    with pytest.raises(StateError, match="overflows"):
        merge_directory(ModelChoice(model=str(base), adapter=str(wild)), tmp_path / "merged", verify=False)
    assert not (tmp_path / "merged").exists()


def test_files_are_copied_where_the_kernel_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])

    def refuses(*args: object) -> int:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "copy_file_range", refuses, raising=False)
    merge_both_ways(base, adapter, tmp_path / "merged", verify=False)


MEASURE = """
import resource, sys
from pathlib import Path
from deltaw.ship.merge import merge_directory
from deltaw.ship.opening import ModelChoice
from transformers import AutoModelForCausalLM, LlamaForCausalLM
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, base, adapter, small_adapter, place = sys.argv[1:]
merge_directory(ModelChoice(model=small, adapter=small_adapter), place + "-small", verify=False)
before = peak()
written = merge_directory(ModelChoice(model=base, adapter=adapter), place, verify=False)
assert written.streamed
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read as Linux counts them")
def test_the_model_is_never_held(tmp_path: Path) -> None:
    small = base_dir(tmp_path / "small")
    large = base_dir(
        tmp_path / "large", dtype=torch.bfloat16, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6
    )
    whole = (large / "model.safetensors").stat().st_size
    sharded(large, "40MB")
    adapters = [adapt(base, tmp_path / f"{base.name}-adapter", targets="all-linear") for base in (small, large)]
    words = [str(word) for word in (small, large, adapters[1], adapters[0], tmp_path / "merged")]
    ran = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert whole > 130e6 and int(ran.stdout) < whole / 2


def test_a_polite_kill_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stops_as_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_verb_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_dir(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", targets=["q_proj"])
    words = ["merge", "--model", str(base), "--adapter", str(adapter), "--json", "--output"]
    assert main([*words, str(tmp_path / "one")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["streamed"] and told["faithful"] and told["notes"] == []
    assert main([*words, str(tmp_path / "two"), "--no-verify"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["streamed"] and told["faithful"] is None and told["fidelity"] is None
    assert told["notes"][0].startswith("not verified, as asked")
    assert bits(tensors(tmp_path / "one")) == bits(tensors(tmp_path / "two"))
