"""``deltaw train``: what it prints, its exit codes, and that every flag changes something."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaw.cli import main
from deltaw.train.config import SECTIONS
from deltaw.train.fields import FieldSpec, specs

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from tiny_train import labelled, make_model, make_tokenizer, pairs, write_jsonl

ALL = {spec.key: spec for section, group in SECTIONS.items() for spec in specs(group, section)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, rows of several kinds, and an adapter."""
    root = tmp_path_factory.mktemp("train")
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), attention_bias=True, mlp_bias=True)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_jsonl(root / "rows.jsonl", pairs()[:16])
    write_jsonl(root / "held.jsonl", pairs()[16:20])
    write_jsonl(root / "labels.jsonl", labelled())
    write_jsonl(
        root / "scores.jsonl", [{"text": row["text"], "label": index % 3} for index, row in enumerate(labelled())]
    )
    write_jsonl(root / "renamed.jsonl", [{"ask": r["prompt"], "say": r["completion"]} for r in pairs()[:16]])
    write_jsonl(root / "broken.jsonl", [*pairs()[:16], {"prompt": "only"}])
    write_jsonl(root / "long.jsonl", [*pairs()[:16], {"prompt": "a hat " * 30, "completion": " a cup"}])
    chat = [[{"role": "system", "content": "be short"}, {"role": "user", "content": r["prompt"]},
             {"role": "assistant", "content": r["completion"]}] for r in pairs()[:16]]  # fmt: skip
    write_jsonl(root / "chat.jsonl", [{"messages": messages} for messages in chat])
    (root / "rows.txt").write_text("".join(f"{r['prompt']}||{r['completion']}\n" for r in pairs()[:16]))
    return root


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    """An adapter to continue from."""
    with patched_cache(place):
        code = main(["train", *base_words(place, place / "first"), "--quiet"])
    assert code == 0
    return place / "first"


class patched_cache:
    """The token cache inside a directory of the tests."""

    def __init__(self, root: Path) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("DELTAW_CACHE", str(root / "cache"))

    def __enter__(self) -> None:
        torch.set_num_threads(1)

    def __exit__(self, *parts: object) -> None:
        self.patch.undo()


@pytest.fixture(autouse=True)
def cache(place: Path) -> Iterator[None]:
    with patched_cache(place):
        yield
    torch.set_num_threads(1)


BASIC = {
    "--valid-fraction": "0.25", "--rank": "2", "--lr": "0.01", "--batch-size": "4", "--steps": "3", "--save-every": "0",
    "--eval-every": "0", "--sample-tokens": "0",
}  # fmt: skip


def base_words(place: Path, out: Path, data: str = "rows.jsonl", without: tuple[str, ...] = ()) -> list[str]:
    words = {"--model": str(place / "base"), "--data": str(place / data), "--output": str(out), **BASIC}
    flat = [word for flag, value in words.items() if flag not in without for word in (flag, value)]
    return [*flat, "--no-plot", "--no-probe", "--threads", "1"]


def test_a_run_prints_what_it_found_before_step_1(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *base_words(place, tmp_path / "out", without=("--sample-tokens",)), "--probe"]) == 0
    text = capsys.readouterr().out
    marks = [
        "\ndata\n", "example (trained tokens", "[[", "\nmodel\n", "\nsettings\n", "optim.lr = 0.01  (given)",
        "data.max_length = 64  (the longest sequence the model takes)", "\nplan\n", "forward and backward",
        "step 3/3", "finished after 3 of 3 steps", "validation before:", "validation after:", "prompt:", "before:",
        "after:", "applied to 14/14 modules", "merge: faithful", "written to", "next:",
        "deltaw generate", "deltaw merge",
    ]  # fmt: skip
    at = [("\n" + text).find(mark) for mark in marks]
    assert -1 not in at, [mark for mark, found in zip(marks, at, strict=True) if found < 0]
    assert at.index(max(at)) == len(at) - 1


def test_json_is_one_object_and_quiet_is_silent(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *base_words(place, tmp_path / "a"), "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["steps"] == 3 and report["after"]["loss"] < report["before"]["loss"]
    assert report == json.loads((tmp_path / "a" / "report.json").read_text())
    assert main(["train", *base_words(place, tmp_path / "b"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_dry_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *base_words(place, tmp_path / "out"), "--dry-run"]) == 0
    assert "dry run: 3 steps planned, nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_config_file_is_overridden_by_flags(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[optim]\nlr = 0.5\nclip = 0.25\n[adapter]\nrank = 7\n", encoding="utf-8")
    assert main(["train", *base_words(place, tmp_path / "out"), "--config", str(file), "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert (choices["optim.lr"], choices["optim.clip"], choices["adapter.rank"]) == (0.01, 0.25, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_state_and_says_how_to_go_on(place: Path, tmp_path: Path, kind: int) -> None:
    words = base_words(place, tmp_path / "out", without=("--steps",))
    command = [sys.executable, "-c", "import sys; from deltaw.cli import main; sys.exit(main())", "train", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--steps", "100000"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text().count('"step"') > 3):
        time.sleep(0.05)
    process.send_signal(kind)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    resume = next(line.strip() for line in out.splitlines() if "--resume" in line)
    state = Path(resume.split()[-1])
    assert resume.startswith("deltaw train --resume") and (state / "state.json").is_file()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def effects(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Everything that can be seen of a run, without times."""
    code = main(["train", *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    files = {path.name for path in out.iterdir()}
    report = json.loads((out / "report.json").read_text())
    kept = ("steps", "total", "before", "after", "best_step", "early", "sample_after", "choices", "notes", "method")
    metrics = (out / "metrics.jsonl").read_text()
    weights = (out / "adapter_model.safetensors").read_bytes() if "adapter_model.safetensors" in files else b""
    sections = captured.out.partition("step 0:")[0].replace(str(out), "OUT")
    return {
        "files": files, "report": {name: report[name] for name in kept}, "metrics": metrics, "weights": weights,
        "said": sections,
    }  # fmt: skip


TEMPLATE = (
    "{% for m in messages %}{{ word }}{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ word }}{% endif %}"
)

# Per key: more words for the run, the words it replaces, another data file, and what must differ.
Case = tuple[list[str], tuple[str, ...], str, str]
ROWS = "rows.jsonl"
CASES: dict[str, Case] = {
    "model.task": (["--task", "regression"], (), "scores.jsonl", "metrics"),
    "model.device": (["--device", "cpu"], (), ROWS, "said"),
    "model.dtype": (["--dtype", "bfloat16"], (), ROWS, "metrics"),
    "model.gradient_checkpointing": (["--gradient-checkpointing"], (), ROWS, "flag"),
    "data.valid": (["--valid", "{place}/held.jsonl"], ("--valid-fraction",), ROWS, "metrics"),
    "data.valid_fraction": (["--valid-fraction", "0.5"], ("--valid-fraction",), ROWS, "metrics"),
    "data.format": (["--format", "text", "--column", "text=prompt"], (), ROWS, "metrics"),
    "data.separator": (["--separator", "||"], (), "rows.txt", "said"),
    "data.columns": (["--column", "prompt=ask", "--column", "completion=say"], (), "renamed.jsonl", "said"),
    "data.max_length": (["--max-length", "15", "--max-truncated", "1"], (), ROWS, "metrics"),
    "data.loss_on": (["--loss-on", "all"], (), ROWS, "metrics"),
    "data.truncation": (["--truncation", "drop"], (), "long.jsonl", "said"),
    "data.max_truncated": (["--max-truncated", "0.5"], (), "long.jsonl", "said"),
    "data.template": (["--template", "default"], (), ROWS, "metrics"),
    "data.template_options": (
        [
            "--template-options",
            "word=hat",
            "--template",
            "{% for m in messages %}{{ word }}{{ m['content'] }}{{ eos_token "
            "if m['role'] == 'assistant' }}{% endfor %}{% if add_generation_prompt %}{{ word }}{% endif %}",
        ],
        (),
        ROWS,
        "said",
    ),
    "data.system": (["--system", "drop"], (), "chat.jsonl", "metrics"),
    "data.joiner": (["--joiner", "hat"], (), ROWS, "metrics"),
    "data.end_token": (["--end-token", "none"], (), ROWS, "metrics"),
    "data.bad_rows": (["--bad-rows", "drop"], (), "broken.jsonl", "said"),
    "data.limit": (["--limit", "12"], (), ROWS, "metrics"),
    "data.shuffle_pairs": (["--shuffle-pairs"], (), ROWS, "metrics"),
    "adapter.method": (["--method", "full"], ("--rank",), ROWS, "metrics"),
    "adapter.start": (["--adapter", "{adapter}"], ("--rank",), ROWS, "metrics"),
    "adapter.rank": (["--rank", "3"], ("--rank",), ROWS, "metrics"),
    "adapter.alpha": (["--alpha", "3"], (), ROWS, "metrics"),
    "adapter.targets": (["--target", "q_proj"], (), ROWS, "metrics"),
    "adapter.exclude": (["--exclude", "q_proj"], (), ROWS, "metrics"),
    "adapter.layers": (["--layers", "last:1"], (), ROWS, "metrics"),
    "adapter.rank_pattern": (["--rank-pattern", "q_proj=5"], (), ROWS, "metrics"),
    "adapter.alpha_pattern": (["--alpha-pattern", "q_proj=5"], (), ROWS, "metrics"),
    "adapter.rank_stabilized": (["--rank-stabilized"], (), ROWS, "metrics"),
    "adapter.dropout": (["--dropout", "0.4"], (), ROWS, "metrics"),
    "adapter.init": (["--init", "gaussian"], (), ROWS, "metrics"),
    "adapter.init_batches": (["--init-batches", "1", "--init", "eva"], (), ROWS, "metrics"),
    "adapter.variant": (["--variant", "dora,lora_bias"], (), ROWS, "metrics"),
    "adapter.train_rows": (["--train-rows", "embed_tokens=5,260-305"], (), ROWS, "metrics"),
    "adapter.new_tokens": (["--new-tokens", "<tool>,</tool>"], (), ROWS, "metrics"),
    "optim.lora_plus": (["--lora-plus", "16"], (), ROWS, "metrics"),
    "adapter.bias": (["--bias", "lora_only"], (), ROWS, "metrics"),
    "adapter.train_also": (["--train-also", "lm_head"], (), ROWS, "metrics"),
    "optim.lr": (["--lr", "0.02"], ("--lr",), ROWS, "metrics"),
    "optim.schedule": (["--schedule", "constant"], (), ROWS, "metrics"),
    "optim.warmup": (["--warmup", "2"], (), ROWS, "metrics"),
    "optim.batch_size": (["--batch-size", "3"], ("--batch-size",), ROWS, "metrics"),
    "optim.batch_tokens": (["--batch-tokens", "60"], ("--batch-size",), ROWS, "metrics"),
    "optim.packing": (["--packing"], ("--batch-size",), ROWS, "metrics"),
    "optim.accumulate": (["--accumulate", "2"], (), ROWS, "metrics"),
    "optim.epochs": (["--epochs", "2"], ("--steps",), ROWS, "metrics"),
    "optim.steps": (["--steps", "2"], ("--steps",), ROWS, "metrics"),
    "optim.beta1": (["--beta1", "0.5"], (), ROWS, "metrics"),
    "optim.beta2": (["--beta2", "0.5"], (), ROWS, "metrics"),
    "optim.eps": (["--eps", "0.1"], (), ROWS, "metrics"),
    "optim.weight_decay": (["--weight-decay", "0.5"], (), ROWS, "metrics"),
    "optim.clip": (["--clip", "0.001", "--eps", "1e-3"], (), ROWS, "metrics"),
    "optim.label_smoothing": (["--label-smoothing", "0.2"], (), ROWS, "metrics"),
    "optim.rdrop": (["--rdrop", "1", "--dropout", "0.2"], (), ROWS, "metrics"),
    "optim.rdrop_form": (["--rdrop-form", "mean", "--rdrop", "1", "--dropout", "0.2"], (), ROWS, "metrics"),
    "optim.cutoff": (["--cutoff", "0.3"], (), ROWS, "metrics"),
    "optim.cutoff_kind": (["--cutoff-kind", "feature", "--cutoff", "0.3"], (), ROWS, "metrics"),
    "optim.decay": (["--decay", "all", "--weight-decay", "0.5", "--variant", "lora_bias"], (), ROWS, "metrics"),
    "optim.optimizer": (["--optimizer", "adamw_reference", "--weight-decay", "0.5"], (), ROWS, "metrics"),
    "optim.correct_bias": (["--optimizer", "adamw_reference", "--no-correct-bias"], (), ROWS, "metrics"),
    "optim.warmup_tokens": (["--warmup-tokens", "100"], (), ROWS, "metrics"),
    "baseline.bottleneck": (["--method", "adapter-h", "--bottleneck", "3"], ("--rank",), ROWS, "metrics"),
    "baseline.activation": (["--method", "adapter-h", "--activation", "gelu"], ("--rank",), ROWS, "metrics"),
    "baseline.prefix_length": (["--method", "prefix-embedding", "--prefix-length", "3"], ("--rank",), ROWS, "metrics"),
    "baseline.infix_length": (["--method", "prefix-embedding", "--infix-length", "2"], ("--rank",), ROWS, "metrics"),
    "baseline.blocks": (["--method", "top-blocks", "--blocks", "1"], ("--rank",), ROWS, "metrics"),
    "baseline.drop_layers": (["--method", "adapter-d", "--drop-layers", "1"], ("--rank",), ROWS, "metrics"),
    "baseline.placement": (
        ["--method", "adapter-d", "--drop-layers", "0", "--placement", "h"],
        ("--rank",),
        ROWS,
        "metrics",
    ),
    "run.eval_epochs": (["--eval-epochs", "--epochs", "2"], ("--eval-every", "--steps"), ROWS, "metrics"),
    "run.seed": (["--seed", "1"], (), ROWS, "metrics"),
    "run.threads": (["--threads", "2"], (), ROWS, "said"),
    "run.eval_every": (["--eval-every", "1"], ("--eval-every",), ROWS, "metrics"),
    "run.eval_limit": (["--eval-limit", "2"], (), ROWS, "metrics"),
    "run.best_by": (["--best-by", "perplexity"], (), ROWS, "said"),
    "run.save_every": (["--save-every", "3"], ("--save-every",), ROWS, "files"),
    "run.keep": (["--keep", "1", "--save-every", "1"], ("--save-every",), ROWS, "files"),
    "run.sample_tokens": (["--sample-tokens", "3"], ("--sample-tokens",), ROWS, "report"),
    "run.probe": (["--probe"], (), ROWS, "said"),
    "run.plot": (["--plot"], (), ROWS, "files"),
    "run.tensorboard": (["--tensorboard"], (), ROWS, "files"),
    "data.cache_dir": (["--cache-dir", "{place}/other-cache"], (), ROWS, "cache"),
}  # fmt: skip
# Settled by tests of their own: required, or about several runs.
ELSEWHERE = {
    "model.path", "data.path", "run.output", "run.resume", "run.overwrite", "run.best", "run.patience", "adapter.ties",
    "adapter.new_head", "model.base_dropout", "model.head_dropout",
}  # fmt: skip
# What a key is compared with, where the plain run would fail or would not meet it.
BESIDE: dict[str, list[str]] = {
    "data.truncation": ["--truncation", "cut"],
    "data.max_truncated": ["--truncation", "cut-prompt"],
    "data.bad_rows": ["--limit", "16"],
    "data.separator": ["--format", "text"],
    "optim.clip": ["--eps", "1e-3"],
    "run.keep": ["--save-every", "1"],
    "adapter.init_batches": ["--init", "eva"],
    "data.format": ["--loss-on", "all"],
    "data.template_options": ["--template", TEMPLATE],
    "run.eval_epochs": ["--epochs", "2"],
    "optim.decay": ["--weight-decay", "0.5", "--variant", "lora_bias"],
    "optim.optimizer": ["--weight-decay", "0.5"],
    "optim.correct_bias": ["--optimizer", "adamw_reference"],
    "optim.rdrop": ["--dropout", "0.2"],
    "optim.rdrop_form": ["--rdrop", "1", "--dropout", "0.2"],
    "optim.cutoff_kind": ["--cutoff", "0.3"],
    "baseline.bottleneck": ["--method", "adapter-h"],
    "baseline.activation": ["--method", "adapter-h"],
    "baseline.prefix_length": ["--method", "prefix-embedding"],
    "baseline.infix_length": ["--method", "prefix-embedding"],
    "baseline.blocks": ["--method", "top-blocks"],
    "baseline.drop_layers": ["--method", "adapter-d", "--drop-layers", "0"],
    "baseline.placement": ["--method", "adapter-d", "--drop-layers", "0"],
}  # fmt: skip


PLAIN: dict[tuple[str, ...], dict[str, Any]] = {}
"""Runs to compare with, by data file and words; many keys share one."""


def test_every_key_has_a_case() -> None:
    assert set(CASES) | ELSEWHERE == set(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(CASES))
def test_every_flag_changes_something(
    key: str, place: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words, without, data, what = CASES[key]
    words = [word.replace("{place}", str(place)).replace("{adapter}", str(adapter)) for word in words]
    spec: FieldSpec = ALL[key]
    assert spec.flag in words or spec.kind == "bool"
    calls: list[Any] = []
    if what == "flag":
        import transformers

        plain = transformers.PreTrainedModel.gradient_checkpointing_enable
        monkeypatch.setattr(
            transformers.PreTrainedModel, "gradient_checkpointing_enable",
            lambda self, **options: (calls.append(options), plain(self, **options)),
        )  # fmt: skip
    after = effects([*base_words(place, tmp_path / "b", data, without), *words], tmp_path / "b", capsys)
    if what == "flag":
        assert calls == [{"gradient_checkpointing_kwargs": {"use_reentrant": False}}]
        return
    if what == "cache":
        assert any((place / "other-cache").iterdir())
        return
    if key in ("data.columns",):
        with_other_names = "ask (prompt)" in after["said"] and "say (completion)" in after["said"]
        assert with_other_names
        return
    beside = BESIDE.get(key, [])
    if (data, *beside) not in PLAIN:
        less = tuple(flag for flag in BASIC if flag in beside or (beside and flag in without))
        words = [*base_words(place, tmp_path / "a", data, less), *beside]
        PLAIN[(data, *beside)] = effects(words, tmp_path / "a", capsys)
    assert PLAIN[(data, *beside)][what] != after[what]


KINDS = [
    *(["--variant", name] for name in ("dora", "lora_fa", "lora_bias", "vera", "dora,lora_fa,lora_bias")),
    ["--init", "gaussian", "--lr", "0.002"],
    *(["--init", name] for name in ("orthogonal", "pissa", "pissa_fast", "olora", "eva", "lora_ga")),
    ["--variant", "dora", "--init", "pissa"],
    ["--lora-plus", "16"],
]
"""Ways to train that end in a file, a score, a text and a merged model like any other."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_every_verb_takes_every_kind_of_adapter(
    kind: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> Any:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    out = tmp_path / "out"
    report = run("train", *base_words(place, out), *kind, "--json")
    assert report["after"]["loss"] < report["before"]["loss"]
    assert report["applied"] == "applied to 14/14 modules" and "merge: faithful" in report["fidelity"]
    found = run("inspect", out, "--json")
    assert found["facts"]["modules"] == 14 == len(found["modules"])
    assert all(module["frobenius"] > 0 for module in found["modules"]) and not found["warnings"]
    words = ("eval", "--adapter", out, "--data", place / "rows.jsonl", "--cache-dir", tmp_path, "--json")
    scores = run(*words)
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    says = ("generate", "-p", "the hat", "--max-tokens", 6, "--json")
    text = run(*says, "--adapter", out)["outputs"][0]["adapter"]
    assert run(*says, "--adapter", out, "--merged")["outputs"][0]["merged"] == text
    monkeypatch.setattr("sys.stdin", io.StringIO("the hat\n"))
    assert run("chat", "--adapter", out, "--max-tokens", 6, "--json")["turns"][-1]["side"] == "adapter"
    merged = run("merge", "--adapter", out, "--output", tmp_path / "merged", "--json")
    assert merged["faithful"]
    after = run("eval", "--model", tmp_path / "merged", *words[3:])["base"]["loss"]
    assert after == pytest.approx(scores["adapter"]["loss"], rel=1e-4)


def test_a_bias_that_has_nowhere_to_go_is_said_in_training_and_refused_in_a_merge(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    words = base_words(place, tmp_path / "out")
    words[words.index(str(place / "base"))] = str(tmp_path / "base")
    assert main(["train", *words, "--variant", "lora_bias"]) == 0
    text = capsys.readouterr().out
    assert "merge: not possible" in text and "keep the adapter beside the base" in text
    assert main(["merge", "--adapter", str(tmp_path / "out"), "--output", str(tmp_path / "merged")]) == 4
    assert "a module with a bias of its own" in capsys.readouterr().err and not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_new_tokens_are_read_written_merged_and_continued(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head is tied: the rows of the new tokens are trained for both, and every verb knows them."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), tie_word_embeddings=True)
    with torch.no_grad():
        # a random table is too small for its head to prefer anything
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    rows = [{"prompt": f"call {row['prompt']}", "completion": "<tool> hat </tool>"} for row in pairs()[:12]]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)

    def run(*words: object) -> Any:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    out = tmp_path / "out"
    words = ("--data", data, "--valid-fraction", 0, "--batch-size", 4, "--lr", 0.02, "--no-plot", "--threads", 1)
    text = run("train", "--model", tmp_path / "tied", *words, "--output", out, "--steps", 120, "--rank", 8,
               "--new-tokens", "<tool>,</tool>")  # fmt: skip
    assert f"(ids {len(tokenizer)}-{len(tokenizer) + 1}): the vocabulary grows from {len(tokenizer)}" in text
    raw = json.loads((out / "adapter_config.json").read_text())
    assert raw["trainable_token_indices"] == {"model.embed_tokens": [len(tokenizer), len(tokenizer) + 1]}
    assert (out / "tokenizer.json").is_file() and (out / "checkpoint-120" / "tokenizer.json").is_file()
    says = ("generate", "-p", rows[0]["prompt"], "--max-tokens", 8, "--json")
    answer = run(*says, "--adapter", out)["outputs"][0]["adapter"]
    assert answer == "<tool> hat </tool>"
    assert run("merge", "--adapter", out, "--output", tmp_path / "merged", "--json")["faithful"]
    assert run(*says, "--model", tmp_path / "merged")["outputs"][0]["base"] == answer
    more = run("train", "--model", tmp_path / "tied", *words, "--output", tmp_path / "more", "--adapter", out,
               "--steps", 2, "--json")  # fmt: skip
    assert more["applied"] == "applied to 14/14 modules" and (tmp_path / "more" / "tokenizer.json").is_file()
    assert "<tool>" in run("inspect", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variant", "dorra"], "closest: 'dora'"),
        (["--init", "pisa"], "closest: 'pissa'"),
        (["--variant", "vera,dora"], "choose one"),
        (["--variant", "vera", "--alpha", "7"], "leave alpha out"),
        (["--init-batches", "3"], "--init-batches means nothing with --init kaiming"),
        (["--train-rows", "embed_tokens=a"], "--train-rows embed_tokens=32000,32005-32007"),
        (["--new-tokens", "hat"], "--train-rows embed_tokens=ID"),
        (["--lora-plus", "0"], ">= 0.001"),
        (["--label-smoothing", "1"], "<= 0.99"),
        (["--variant", "vera", "--lora-plus", "16"], "LoRA+ has nothing to work on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_refused(
    words: list[str], said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *base_words(place, tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
