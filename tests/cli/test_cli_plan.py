"""``deltaw plan``: from shapes alone, for presets and directories."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from deltaw.cli import main

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128,
        "architectures": ["LlamaForCausalLM"]}  # fmt: skip


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def shape(tmp_path: Path) -> str:
    AutoConfig.for_model("llama", **TINY).save_pretrained(tmp_path)
    return str(tmp_path)


def test_gpt3_as_in_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("gpt3-175b", "--target", "c_attn[q,v]", "--rank", "4", "--dtype", "float16")
    found = planned(capsys, *words)
    assert found["base_parameters"] == 174_604_259_328
    assert found["parameters"] == 18_874_368
    assert found["checkpoint_bytes"] == {"float32": 75_497_472, "float16": 37_748_736}
    assert found["memory_bytes"]["lora"]["weights"] == 2 * 174_604_259_328
    assert found["memory_bytes"]["lora"]["optimizer"] == 8 * 18_874_368
    assert len(found["sites"]) == 96


def test_the_text_says_plan_checkpoint_memory_and_what_next(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    assert main(["plan", shape, "--rank", "2"]) == 0
    text = capsys.readouterr().out
    for part in ("q_proj", "adapter: ", "checkpoint: ", "activations", "total", f"deltaw train --model {shape}"):
        assert part in text
    assert main(["plan", shape, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_papers_setting_is_offered_until_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    line = "the paper's setting: deltaw plan gpt2 --target 'c_attn[q,v]' --rank 4 --alpha 32"
    assert main(["plan", "gpt2"]) == 0
    assert line in capsys.readouterr().out
    assert main(["plan", "gpt2", "--target", "c_attn[q,v]", "--rank", "4", "--alpha", "32"]) == 0
    assert "the paper's setting" not in capsys.readouterr().out


FLAGS: list[tuple[list[str], Any]] = [
    (["--rank", "4"], lambda a, b: a["parameters"] == 2 * b["parameters"]),
    (["--target", "q_proj"], lambda a, b: len(a["sites"]) == 2),
    (["--exclude", "q_proj"], lambda a, b: len(a["sites"]) == 12),
    (["--layers", "last:1"], lambda a, b: len(a["sites"]) == 7),
    (["--rank-pattern", "q_proj=16"], lambda a, b: a["parameters"] == b["parameters"] + 2 * 14 * 64),
    (["--train-also", "lm_head"], lambda a, b: a["parameters"] == b["parameters"] + 64 * 32),
    (["--variant", "dora"], lambda a, b: a["parameters"] == b["parameters"] + 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)),
    (["--variant", "dora"], lambda a, b: memory(a) > memory(b)),
    (["--variant", "lora_fa"], lambda a, b: a["frozen_parameters"] + a["parameters"] == b["parameters"]),
    (["--variant", "lora_fa"], lambda a, b: memory(a) < memory(b)),
    (["--variant", "lora_fa"], lambda a, b: a["checkpoint_bytes"] == b["checkpoint_bytes"]),
    (["--variant", "vera"], lambda a, b: a["parameters"] == 14 * 2 + 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)),
    (["--variant", "vera"], lambda a, b: a["frozen_parameters"] == 2 * (64 + 64)),
    (["--init", "pissa"], lambda a, b: a["frozen_parameters"] == b["parameters"] == a["parameters"]),
    (["--init", "pissa"], lambda a, b: a["checkpoint_bytes"]["float32"] == 2 * b["checkpoint_bytes"]["float32"]),
    (["--init", "lora_ga"], lambda a, b: any("one float32 gradient" in note for note in a["notes"])),
    (["--train-rows", "embed_tokens=3-6"], lambda a, b: a["parameters"] == b["parameters"] + 4 * 32),
    (["--train-rows", "embed_tokens=3-6"], lambda a, b: a["trained_rows"] == {"model.embed_tokens": 4}),
    (["--new-tokens", "<a>,<b>"], lambda a, b: a["parameters"] == b["parameters"] + 2 * 32),
    (["--train-also", "lm_head"], lambda a, b: a["trained_in_full"] == ["lm_head"]),
    (
        ["--task", "classification", "--labels", "5"],
        lambda a, b: a["base_parameters"] == b["base_parameters"] - 59 * 32,
    ),
    (["--batch", "8"], lambda a, b: memory(a) == 2 * memory(b)),
    (["--length", "64"], lambda a, b: memory(a) < memory(b)),
    (["--dtype", "bfloat16"], lambda a, b: memory(a) < memory(b)),
    (["--gradient-checkpointing"], lambda a, b: memory(a) < memory(b)),
    (["--attention-matrix"], lambda a, b: memory(a) > memory(b)),
]


def memory(found: dict[str, Any]) -> int:
    return int(found["memory_bytes"]["lora"]["activations"])


@pytest.mark.parametrize(("words", "holds"), FLAGS, ids=[" ".join(words) for words, _ in FLAGS])
def test_every_flag_counts(words: list[str], holds: Any, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = planned(capsys, shape, "--rank", "2")
    found = planned(capsys, shape, *(words if "--rank" in words else [*words, "--rank", "2"]))
    assert holds(found, base)


def test_the_next_command_keeps_every_choice(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    said = [
        "--rank 2", "--alpha 4.0", "--target q_proj", "--target 'v_proj'", "--exclude 're:.*1.*v_proj'",
        "--rank-pattern q_proj=3", "--rank-stabilized", "--variant dora,lora_fa", "--train-rows embed_tokens=5,6",
        "--new-tokens '<a>,<b>'", "--max-length 64", "--batch-size 8", "--gradient-checkpointing", "--dtype bfloat16",
    ]  # fmt: skip
    words = shlex.split(" ".join(said).replace("--max-length", "--length").replace("--batch-size", "--batch"))
    assert main(["plan", shape, *words]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "deltaw train" in line)
    found = shlex.split(line)
    assert found[:6] == ["deltaw", "train", "--model", shape, "--data", "FILE"]
    assert sorted(found[6:]) == sorted(shlex.split(" ".join(said)))


BAD: list[tuple[list[str], int, str]] = [
    (["gpt2", "--target", "c_atn"], 4, "c_attn"),
    (["gpt2", "--length", "5000"], 2, "at most 1024"),
    (["gpt2", "--batch", "0"], 2, "batch must be at least 1"),
    (["gpt2", "--rank-pattern", "q_proj"], 2, "NAME=VALUE"),
    (["gpt2", "--rank", "-1"], 2, "rank"),
    (["gpt2-medum"], 4, "gpt2-medium"),
    (["./nowhere"], 4, "no such model directory"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD)
def test_what_cannot_be_planned_is_refused(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == code
    assert said in capsys.readouterr().err


def test_a_config_that_does_not_say_its_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AutoConfig.for_model("llama", **{**TINY, "architectures": ["LlamaModel"]}).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path)]) == 2
    assert "--task causal" in capsys.readouterr().err
    assert planned(capsys, str(tmp_path), "--task", "causal")["parameters"] > 0
