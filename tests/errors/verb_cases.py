"""Bad command lines, models and adapters, one case per kind; each callable gets an empty directory and must raise."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import deltaw as dw
from deltaw.cli import _run
from deltaw.ship.fidelity import FidelityReport, SiteFidelity

sys.path.insert(0, str(Path(__file__).parents[1]))
from verb_models import adapter_dir, base_dir

ROWS = '{"prompt": "the fox", "completion": "jumps"}\n'


def line(*words: object) -> Callable[[Path], None]:
    """A command line; ``{tmp}`` in a word is the directory."""

    def run(tmp: Path) -> None:
        _run([str(word).replace("{tmp}", str(tmp)) for word in words])

    return run


def with_models(*words: object, **config: Any) -> Callable[[Path], None]:
    """The same, with ``base`` and ``adapter`` in the directory."""

    def run(tmp: Path) -> None:
        adapter_dir(base_dir(tmp / "base"), tmp / "adapter", **config)
        (tmp / "rows.jsonl").write_text(ROWS)
        line(*words)(tmp)

    return run


def edited(change: Callable[[dict[str, Any], dict[str, Any]], None], *words: object) -> Callable[[Path], None]:
    """The same, with the adapter changed."""

    def run(tmp: Path) -> None:
        found = dw.Adapter.open(adapter_dir(base_dir(tmp / "base"), tmp / "adapter", targets=["q_proj"]))
        tensors, raw = dict(found.tensors), dict(found.raw)
        change(tensors, raw)
        dw.Adapter(tensors=tensors, raw=raw).save(tmp / "adapter")
        line(*words)(tmp)

    return run


def drop_one(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    del tensors[next(key for key in sorted(tensors) if "lora_B" in key)]


def wrong_rank(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    key = next(key for key in sorted(tensors) if "lora_A" in key)
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def other_method(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    raw["peft_type"] = "IA3"


def unnamed(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    raw["base_model_name_or_path"] = None


def stray(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    for key in [key for key in tensors if "q_proj" in key]:
        tensors[key.replace("q_proj", "q_projj")] = tensors.pop(key)
    raw["target_modules"] = ["q_projj"]


def truncated(tmp: Path) -> None:
    file = adapter_dir(base_dir(tmp / "base"), tmp / "adapter") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    line("inspect", "{tmp}/adapter")(tmp)


def other_base(tmp: Path) -> None:
    adapter_dir(base_dir(tmp / "base"), tmp / "adapter", targets=["q_proj"])
    base_dir(tmp / "other", seed=5)
    line("generate", "--model", "{tmp}/other", "--adapter", "{tmp}/adapter", "-p", "x")(tmp)


def adapter_as_model(tmp: Path) -> None:
    adapter_dir(base_dir(tmp / "base"), tmp / "adapter")
    line("generate", "--model", "{tmp}/adapter", "-p", "x")(tmp)


def unknown_architecture(tmp: Path) -> None:
    base_dir(tmp / "base")
    config = json.loads((tmp / "base" / "config.json").read_text())
    (tmp / "base" / "config.json").write_text(json.dumps({**config, "model_type": "llamma"}))
    line("generate", "--model", "{tmp}/base", "-p", "x")(tmp)


def no_tokenizer(tmp: Path) -> None:
    base_dir(tmp / "base")
    for file in (tmp / "base").glob("tokenizer*"):
        file.write_text("{}")
    line("generate", "--model", "{tmp}/base", "-p", "x")(tmp)


def task_unsaid(tmp: Path) -> None:
    base_dir(tmp / "base")
    config = json.loads((tmp / "base" / "config.json").read_text())
    (tmp / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    line("plan", "{tmp}/base")(tmp)


def merge_over(tmp: Path) -> None:
    (tmp / "merged").mkdir()
    with_models("merge", "--adapter", "{tmp}/adapter", "--output", "{tmp}/merged")(tmp)


def unfaithful(tmp: Path) -> None:
    site = SiteFidelity(path="model.layers.0.self_attn.q_proj", error=3e-2, bound=1e-2)
    FidelityReport(
        dtype=torch.bfloat16, sites=(site,), logit_error=0.5, logit_bound=0.05, kl_mean=0.2, kl_max=1.5, kl_bound=0.01,
        tokens=120, disagreements=7, undecided=1, effect=0.4,
    ).require("<tmp>/adapter merged into <tmp>/base")  # fmt: skip


def bad_prompts(tmp: Path) -> None:
    (tmp / "prompts.jsonl").write_text('{"prompt": "the fox"}\n{"text": "the dog"}\n')
    line("generate", "--model", "{tmp}/base", "--prompts", "{tmp}/prompts.jsonl")(tmp)


def classes(*labels: object) -> Callable[[Path], None]:
    def run(tmp: Path) -> None:
        base_dir(tmp / "base", "bert", num_labels=3)
        rows = [json.dumps({"text": f"the fox {i}", "label": label}) for i, label in enumerate(labels)]
        (tmp / "rows.jsonl").write_text("\n".join(rows) + "\n")
        line("eval", "--model", "{tmp}/base", "--data", "{tmp}/rows.jsonl", "--cache-dir", "{tmp}/cache")(tmp)

    return run


def fresh_head(tmp: Path) -> None:
    base_dir(tmp / "base")
    rows = [json.dumps({"text": f"the fox {i}", "label": label}) for i, label in enumerate(["good", "bad"] * 2)]
    (tmp / "rows.jsonl").write_text("\n".join(rows) + "\n")
    line("eval", "--model", "{tmp}/base", "--data", "{tmp}/rows.jsonl", "--cache-dir", "{tmp}/cache")(tmp)


generate = functools.partial(line, "generate", "--model", "{tmp}/base")

CASES: dict[str, Callable[[Path], None]] = {
    "verb_unknown": line("trian"),
    "verb_option_unknown": line("plan", "gpt2", "--rnk", "4"),
    "verb_option_value": line("plan", "gpt2", "--rank", "four"),
    "verb_option_choice": line("plan", "gpt2", "--dtype", "float8"),
    "verb_option_without_value": line("plan", "gpt2", "--rank"),
    "verb_argument_missing": line("plan"),
    "verb_argument_extra": line("inspect", "a", "b"),
    "verb_pair_wrong": line("plan", "gpt2", "--rank-pattern", "c_attn"),
    "verb_no_model": line("generate", "-p", "x"),
    "verb_no_prompt": generate(),
    "verb_merged_without_adapter": generate("-p", "x", "--merged"),
    "verb_base_and_merged": generate("-p", "x", "--merged", "--base", "--adapter", "{tmp}/adapter"),
    "verb_sampling_without_temperature": generate("-p", "x", "--top-p", "0.9"),
    "verb_sampling_range": generate("-p", "x", "--temperature", "-1"),
    "verb_prompts_missing": generate("--prompts", "{tmp}/none.txt"),
    "verb_prompts_without_prompt": bad_prompts,
    "verb_prompt_too_long": with_models("generate", "--model", "{tmp}/base", "-p", "word " * 100),
    "verb_no_chat_template": with_models("generate", "--model", "{tmp}/base", "-p", "x", "--form", "chat"),
    "verb_plan_target": line("plan", "gpt2", "--target", "c_atn"),
    "verb_plan_length": line("plan", "gpt2", "--length", "5000"),
    "verb_plan_batch": line("plan", "gpt2", "--batch", "0"),
    "verb_plan_preset": line("plan", "{tmp}/gpt2-medum"),
    "verb_plan_task_unsaid": task_unsaid,
    "verb_model_missing": line("generate", "--model", "{tmp}/none", "-p", "x"),
    "verb_model_is_an_adapter": adapter_as_model,
    "verb_model_architecture": unknown_architecture,
    "verb_model_tokenizer": no_tokenizer,
    "verb_adapter_missing": line("inspect", "{tmp}/none"),
    "verb_adapter_truncated": truncated,
    "verb_adapter_half_a_pair": edited(drop_one, "inspect", "{tmp}/adapter"),
    "verb_adapter_ranks_differ": edited(wrong_rank, "inspect", "{tmp}/adapter"),
    "verb_adapter_other_method": edited(other_method, "inspect", "{tmp}/adapter"),
    "verb_adapter_base_unnamed": edited(unnamed, "generate", "--adapter", "{tmp}/adapter", "-p", "x"),
    "verb_adapter_does_not_fit": edited(
        stray, "merge", "--model", "{tmp}/base", "--adapter", "{tmp}/adapter", "-o", "{tmp}/merged"
    ),
    "verb_adapter_other_base": other_base,
    "verb_merge_output_exists": merge_over,
    "verb_merge_no_parent": with_models("merge", "--adapter", "{tmp}/adapter", "--output", "{tmp}/no/merged"),
    "verb_merge_without_adapter": line("merge", "--model", "{tmp}/base", "--output", "{tmp}/merged"),
    "verb_merge_tolerance": with_models(
        "merge", "--adapter", "{tmp}/adapter", "--output", "{tmp}/merged", "--tolerance", "-1"
    ),
    "verb_merge_unread_tolerance": with_models(
        "merge", "--adapter", "{tmp}/adapter", "--output", "{tmp}/merged", "--no-verify", "--tolerance", "0.1"
    ),
    "verb_merge_unfaithful": unfaithful,
    "verb_eval_no_data": line("eval", "--model", "{tmp}/base"),
    "verb_eval_rows_exist": with_models(
        "eval", "--model", "{tmp}/base", "--data", "{tmp}/rows.jsonl", "--rows", "{tmp}/rows.jsonl"
    ),
    "verb_eval_class_names": classes("good", "bad", "good", "bad"),
    "verb_eval_fresh_head": fresh_head,
}
