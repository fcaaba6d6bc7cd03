"""``deltaw train --method``: every baseline trains, resumes, is saved, read again and told of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_train import make_tokenizer

import deltaw as dw
from deltaw import baselines as bl
from deltaw.cli import _run, main
from deltaw.errors import ConfigError
from deltaw.train import Callback, from_values, run
from deltaw.train.baseline import RATES
from deltaw.train.method_config import METHODS, READS, BaselineConfig, is_baseline
from deltaw.train.metrics import read_metrics

SMALL = {"bottleneck": 8, "prefix_length": 4, "infix_length": 2, "blocks": 1, "drop_layers": 1}
NAMES = [name for name in METHODS if is_baseline(name)]
LEARNING = {"bias": 0.05, "prefix-embedding": 0.05, "prefix-layer": 0.05, "lora+prefix-layer": 0.02}


@pytest.fixture(scope="session")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, which has biases, with its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path, tokenizer = tmp_path_factory.mktemp("gpt2"), make_tokenizer()
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
                        eos_token_id=1, resid_pdrop=0.1)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head."""
    from transformers import BertConfig, BertModel

    path, tokenizer = tmp_path_factory.mktemp("bert"), make_tokenizer()
    torch.manual_seed(5)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, max_position_embeddings=64, pad_token_id=1)  # fmt: skip
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def settings(model: Path, rows: Path, out: Path, name: str, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(model)},
        "data": {"path": str(rows), "valid_fraction": 0.25},
        "adapter": {"method": name},
        "baseline": {field: SMALL[field] for field in READS[name] if field in SMALL},
        "optim": {"steps": 12, "batch_size": 8, "lr": LEARNING.get(name, 0.01)},
        "run": {"output": str(out), "sample_tokens": 3, "plot": False, "save_every": 4, "eval_every": 6},
    }
    for section, table in more.items():
        values[section] |= table
    return values


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*words: object) -> Any:
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return call


class Stop(Callback):
    """Interrupts after some questions."""

    def __init__(self, left: int) -> None:
        self.left = left

    def wants_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_its_output_is_read_again(name: str, biased: Path, files: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    report = run(from_values(settings(biased, files / "pairs.jsonl", out, name)))
    assert report.method == name and report.after["loss"] < report.before["loss"] - 0.02
    assert {"baseline_config.json", "baseline_model.safetensors"} <= set(report.files)
    assert ("merge: exact" if name in ("top-blocks", "bias") else "merge: not possible") in report.fidelity
    assert "deltaw eval" in str(report) and "deltaw merge" not in str(report)
    model = AutoModelForCausalLM.from_pretrained(biased)
    loaded = bl.load(model, out)
    assert loaded.method == name and loaded.tensors > 0
    card = (out / "README.md").read_text()
    assert name in card and "deltaw merge" not in card
    # every state is a baseline by itself
    assert bl.is_baseline(out / "checkpoint-12") and bl.Stored.open(out / "checkpoint-12").method.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_continues_bit_for_bit(name: str, biased: Path, files: Path, tmp_path: Path) -> None:
    values = settings(biased, files / "pairs.jsonl", tmp_path / "whole", name)
    run(from_values(values))
    part = settings(biased, files / "pairs.jsonl", tmp_path / "part", name)
    stopped = run(from_values(part), (Stop(7),))
    assert stopped.interrupted and 0 < stopped.steps < 12
    run(from_values({"run": {"resume": str(tmp_path / "part")}}))
    whole, other = (read_metrics(tmp_path / which / "metrics.jsonl") for which in ("whole", "part"))
    assert whole == other
    for file in ("baseline_model.safetensors", "lora/adapter_model.safetensors"):
        if (tmp_path / "whole" / file).exists():
            a, b = (load_file(str(tmp_path / which / file)) for which in ("whole", "part"))
            assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter-h", "prefix-embedding", "prefix-layer", "bias", "lora+prefix-embedding"])
def test_a_classifier_keeps_its_trained_head(
    name: str, encoder: Path, files: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    report = run(from_values(settings(encoder, files / "labels.jsonl", out, name)))
    assert report.after["loss"] < report.before["loss"]
    assert any("classifier" in key for key in bl.Stored.open(out).carried)
    said = cli("eval", "--adapter", out, "--data", files / "labels.jsonl")
    assert said["task"] == "classification" and "base" not in said
    assert "of modules trained in full" in report.applied


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter-h", "top-blocks", "lora+prefix-layer"])
def test_the_verbs_read_it(name: str, biased: Path, files: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    report = run(from_values(settings(biased, files / "pairs.jsonl", out, name)))
    said = cli("eval", "--adapter", out, "--data", files / "pairs.jsonl")
    assert said["adapter"]["loss"] < said["base"]["loss"]
    assert report.after["loss"] == pytest.approx(said["adapter"]["loss"], rel=0.2)
    text = cli("generate", "--adapter", out, "--prompt", "the hat is red .", "--base", "--max-tokens", "4")
    assert set(text["outputs"][0]) == {"prompt", "base", "adapter"}


def test_verbs_that_need_low_rank_factors_refuse_it(biased: Path, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(from_values(settings(biased, files / "pairs.jsonl", out, "adapter-h")))
    with pytest.raises(dw.DeltawError, match="this is a baseline and no LoRA adapter"):
        _run(["merge", "--model", str(biased), "--adapter", str(out), "--output", str(tmp_path / "merged")])
    with pytest.raises(dw.DeltawError, match="adapter-h cannot be merged"):
        _run(["generate", "--adapter", str(out), "--prompt", "the", "--merged"])
    with pytest.raises(dw.DeltawError, match="this is a baseline and no LoRA adapter"):
        _run(["train", "--model", str(biased), "--data", str(files / "pairs.jsonl"), "--adapter", str(out)])


def test_an_output_is_overwritten_whole(biased: Path, files: Path, tmp_path: Path) -> None:
    """Nothing of an earlier method stays to be taken for the new one's."""
    out = tmp_path / "out"
    short: dict[str, dict[str, Any]] = {"optim": {"steps": 2}}
    run(from_values(settings(biased, files / "pairs.jsonl", out, "lora+prefix-layer", **short)))
    again = settings(biased, files / "pairs.jsonl", out, "adapter-p", **short, run={"overwrite": True})
    run(from_values(again))
    assert not (out / "lora").exists() and bl.Stored.open(out).method.name == "adapter-p"


def test_settings_that_are_not_read_are_refused() -> None:
    plain: dict[str, dict[str, Any]] = {"model": {"path": "m"}, "data": {"path": "d.jsonl"}}
    wrong = [
        ({"method": "adapter-h"}, {"baseline": {"blocks": 3}}, "--blocks means nothing with --method adapter-h"),
        ({"method": "lora"}, {"baseline": {"bottleneck": 3}}, "--bottleneck means nothing with --method lora"),
        ({"method": "adapter-p"}, {"baseline": {"drop_layers": 3}}, "--drop-layers means nothing"),
        ({"method": "prefix-layer", "rank": 4}, {}, "--rank means nothing with --method prefix-layer"),
        ({"method": "bias", "start": "x"}, {}, "--adapter means nothing with --method bias"),
        ({"method": "adapter-l"}, {"optim": {"lora_plus": 4.0}}, "--lora-plus means nothing"),
        ({"method": "prefix-embedding"}, {"optim": {"packing": True}}, "--packing does not go with"),
        ({"method": "prefix-layer"}, {"model": {"gradient_checkpointing": True}}, "--gradient-checkpointing does not"),
        ({"method": "lora+prefix-layer", "init": "eva"}, {}, "--init needs batches before the prefix stands"),
    ]
    for adapter, more, text in wrong:
        values = {section: {**plain.get(section, {}), **more.get(section, {})} for section in {*plain, *more}}
        with pytest.raises(ConfigError, match=text.replace("+", r"\+")):
            from_values({**values, "adapter": adapter})


def test_the_tables_name_the_registry() -> None:
    assert set(METHODS) == {"lora", *bl.BASELINES}
    assert set(RATES) | {"lora", "full", "lora+prefix-embedding", "lora+prefix-layer"} == set(METHODS)
    every = {field for read in READS.values() for field in read}
    assert every == set(BaselineConfig.__dataclass_fields__)
    for name in NAMES:
        fields = {field.name for field in dataclasses.fields(bl.BASELINES[name])}
        assert fields == {*READS[name], "train_also", "seed", *(["lora"] if name.startswith("lora+") else [])}


def test_the_usable_length_is_chosen(biased: Path, files: Path, tmp_path: Path) -> None:
    report = run(from_values(settings(biased, files / "pairs.jsonl", tmp_path / "o", "prefix-embedding")), dry_run=True)
    assert report.choices["data.max_length"] == 64 - 4 - 2
    assert report.choices["baseline.prefix_length"] == 4
