"""Continuing from an adapter of other labels, and the base's own dropout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import COLORS, THINGS, make_tokenizer, write_jsonl

import deltaw as dw
from deltaw.errors import CheckpointError, ConfigError, DataError, ModelError
from deltaw.train import AdapterConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, run
from deltaw.train.callbacks import Callback
from deltaw.train.dropping import drop_base_dropout, set_head_dropout
from deltaw.train.imprint import LABELS, TASK

QUIET = {"probe": False, "plot": False, "sample_tokens": 0, "save_every": 0}


def encoder(**changes: Any) -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=70, pad_token_id=1, bos_token_id=0, eos_token_id=1, type_vocab_size=1, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import RobertaForMaskedLM

    path = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(5)
    RobertaForMaskedLM(encoder()).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def rows(path: Path, classes: int | None) -> Path:
    found = []
    for number, color in enumerate(COLORS):
        label: Any = number / 5 if classes is None else f"class{number % classes}"
        found += [{"text": f"the {thing} is {color}", "label": label} for thing in THINGS]
    return write_jsonl(path, found)


def settings(base: Path, data: Path, output: Path, **adapter: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(base)),
        data=DataConfig(path=str(data), valid_fraction=0.0),
        adapter=AdapterConfig(**adapter),
        optim=OptimConfig(steps=4, lr=5e-3),
        run=RunConfig(output=str(output), **QUIET),
    )


@pytest.fixture(scope="module")
def three(roberta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a head of three rows, as MNLI's."""
    place = tmp_path_factory.mktemp("three")
    data = rows(place / "three.jsonl", 3)
    run(settings(roberta, data, place / "out", rank=2, targets=("query", "value")))
    return place / "out"


class Sections(Callback):
    def __init__(self) -> None:
        self.text = ""

    def on_section(self, title: str, body: Any) -> None:
        self.text += f"{title}\n{body}\n"


@pytest.mark.parametrize("classes", [2, None], ids=["two labels", "a value"])
def test_a_new_head_is_trained_and_the_body_goes_on(
    roberta: Path, three: Path, tmp_path: Path, classes: int | None
) -> None:
    data, heard = rows(tmp_path / "rows.jsonl", classes), Sections()
    # no step, so that what is saved is where training starts
    config = settings(roberta, data, tmp_path / "out", start=str(three), new_head=True)
    config = dataclasses.replace(config, optim=OptimConfig(steps=1, lr=1e-12))
    report = run(config, (heard,))
    before, after = dw.Adapter.open(three), dw.Adapter.open(tmp_path / "out")
    for path in before.modules():
        for old, new in zip(before.factors(path), after.factors(path), strict=True):
            assert torch.allclose(old, new, atol=1e-9)
    size = classes or 1
    assert after.contents.rest["classifier.out_proj.weight"].shape == (size, 16)
    dense = "classifier.dense.weight"
    assert not torch.allclose(before.contents.rest[dense], after.contents.rest[dense], atol=1e-3)
    assert after.metadata[TASK] == ("regression" if classes is None else "classification")
    assert (LABELS in after.metadata) == (classes is not None)
    line = "left behind (classifier.dense, classifier.out_proj); newly initialized and trained: classifier.dense"
    assert line in str(report) and line in heard.text


def test_the_new_head_learns_and_serves(roberta: Path, three: Path, tmp_path: Path) -> None:
    from deltaw.ship.opening import ModelChoice, open_model

    data = rows(tmp_path / "rows.jsonl", 2)
    run(settings(roberta, data, tmp_path / "out", start=str(three), new_head=True))
    opened = open_model(ModelChoice(model=str(roberta), adapter=str(tmp_path / "out")))
    assert opened.labels == ("class0", "class1") and opened.model.num_labels == 2


def test_other_labels_without_the_flag_are_refused_with_the_flag_as_hint(
    roberta: Path, three: Path, tmp_path: Path
) -> None:
    four = rows(tmp_path / "four.jsonl", 4)
    with pytest.raises(DataError, match=r"labels that the adapter's head does not have(?s:.)*add --new-head"):
        run(settings(roberta, four, tmp_path / "a", start=str(three)))
    value = rows(tmp_path / "value.jsonl", None)
    with pytest.raises(CheckpointError, match=r"out_proj.weight \(3, 16\) for \(1, 16\)(?s:.)*add --new-head"):
        run(settings(roberta, value, tmp_path / "b", start=str(three)))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_an_adapter_without_a_head_is_not_continued_with_a_random_one(
    roberta: Path, three: Path, tmp_path: Path
) -> None:
    full = dw.Adapter.open(three)
    bare = dataclasses.replace(
        full,
        tensors={key: value for key, value in full.tensors.items() if "classifier" not in key},
        raw={**full.raw, "modules_to_save": None},
    )
    bare.save(tmp_path / "bare")
    data = rows(tmp_path / "rows.jsonl", 3)
    with pytest.raises(CheckpointError, match=r"nothing for classifier.dense(?s:.)*add --new-head"):
        run(settings(roberta, data, tmp_path / "a", start=str(tmp_path / "bare")))
    report = run(settings(roberta, data, tmp_path / "b", start=str(tmp_path / "bare"), new_head=True))
    assert "left behind (it had none)" in str(report)


def test_the_same_labels_go_on_with_the_same_head(roberta: Path, three: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", 3)
    config = settings(roberta, data, tmp_path / "out", start=str(three))
    run(dataclasses.replace(config, optim=OptimConfig(steps=1, lr=1e-12)))
    before, after = dw.Adapter.open(three), dw.Adapter.open(tmp_path / "out")
    for name, tensor in before.contents.rest.items():
        assert torch.allclose(tensor, after.contents.rest[name], atol=1e-9)


def test_a_head_trained_in_parts_is_saved_as_trained(tmp_path: Path) -> None:
    """PEFT matches the parent of the trained parts by its ending; its own values must not be written over theirs."""
    from transformers import RobertaForSequenceClassification

    for trained in (("classifier.dense", "classifier.out_proj"), ("classifier.out_proj",)):
        model = RobertaForSequenceClassification(encoder(num_labels=2))
        dw.attach(model, dw.LoRAConfig(rank=2, targets=["query"], train_also=trained))
        with torch.no_grad():
            for name, parameter in dw.trainable(model):
                if name.startswith("classifier"):
                    parameter.fill_(7.0)
        dw.save(model, tmp_path / "saved")
        held = dw.Adapter.open(tmp_path / "saved").contents.rest
        assert set(held) == {
            f"classifier.{part}.{leaf}" for part in ("dense", "out_proj") for leaf in ("weight", "bias")
        }
        for name, tensor in held.items():
            assert bool((tensor == 7.0).all()) == name.startswith(trained), name
        ids = torch.tensor([[3, 4, 5]])
        model.eval()
        expected = model(ids).logits
        dw.detach(model)
        dw.load(model, tmp_path / "saved")
        assert torch.equal(model(ids).logits, expected)


def test_a_new_head_needs_an_adapter_and_a_classifier(base: Path, files: Path, roberta: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--new-head means nothing without --adapter"):
        settings(roberta, files, tmp_path / "out", new_head=True)
    causal = TrainConfig(
        model=ModelConfig(path=str(base)), data=DataConfig(path=str(files / "pairs.jsonl")),
        adapter=AdapterConfig(rank=2), optim=OptimConfig(steps=1), run=RunConfig(output=str(tmp_path / "c"), **QUIET),
    )  # fmt: skip
    run(causal)
    again = dataclasses.replace(
        causal, adapter=AdapterConfig(start=str(tmp_path / "c"), new_head=True),
        run=RunConfig(output=str(tmp_path / "d"), **QUIET), given=None,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="there is no head to start anew"):
        run(again)


def test_base_dropout_off_leaves_the_adapters(roberta: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=20))
    ids = torch.tensor([[1, 2, 3, 4]])
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert drop_base_dropout(model) == "dropout of the base: off in 4 places (it was up to 0.1)"
    assert torch.equal(model(ids).logits, model(ids).logits)
    dw.attach(model, dw.LoRAConfig(rank=2, targets=["c_attn"], dropout=0.5, init="orthogonal"))
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.add_(0.5)
    assert not torch.equal(model(ids).logits, model(ids).logits), "the adapter's own dropout is still there"
    assert drop_base_dropout(GPT2LMHeadModel(model.config.__class__(
        n_embd=8, n_layer=1, n_head=2, vocab_size=20, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ))) == "dropout of the base: it has none to switch off"  # fmt: skip


def test_dropout_that_hides_is_found(roberta: Path) -> None:
    class Hidden(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.5, self.training)

    from transformers import RobertaForSequenceClassification

    model = RobertaForSequenceClassification(encoder(num_labels=2))
    model.roberta.encoder.layer[0].output.dropout = Hidden()
    with pytest.raises(ModelError, match="still drops something"):
        drop_base_dropout(model)


def test_the_heads_dropout_is_set_alone() -> None:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, RobertaForSequenceClassification

    model = RobertaForSequenceClassification(encoder(num_labels=2))
    assert set_head_dropout(model, 0.25, "classification") == (
        "dropout before the head: 0.25 at classifier.dropout (was 0.1)"
    )
    assert model.classifier.dropout.p == 0.25 and model.roberta.embeddings.dropout.p == 0.1
    deberta = DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            pooler_hidden_size=8, pooler_dropout=0.0,
        )
    )  # fmt: skip
    assert set_head_dropout(deberta, 0.0, "classification").endswith("at dropout (was 0.1)")
    assert deberta.dropout.p == 0.0 and deberta.pooler.dropout.p == 0.0
    with pytest.raises(ModelError, match="there is no dropout before a head"):
        set_head_dropout(torch.nn.Linear(2, 2), 0.1, "classification")


def test_a_run_says_what_it_did_to_the_dropout(roberta: Path, tmp_path: Path) -> None:
    heard, data = Sections(), rows(tmp_path / "rows.jsonl", 2)
    config = settings(roberta, data, tmp_path / "out", rank=2)
    model = ModelConfig(path=str(roberta), base_dropout=False, head_dropout=0.5)
    report = run(dataclasses.replace(config, model=model, given=None), (heard,), dry_run=True)
    assert "dropout of the base: off in" in heard.text
    assert "dropout before the head: 0.5 at classifier.dropout" in heard.text
    assert report.choices["model.base_dropout"] is False and report.choices["model.head_dropout"] == 0.5


def test_validation_at_the_end_of_every_epoch_and_a_warm_up_in_tokens(base: Path, files: Path, tmp_path: Path) -> None:
    from deltaw.train.metrics import read_metrics

    config = TrainConfig(
        model=ModelConfig(path=str(base)), data=DataConfig(path=str(files / "pairs.jsonl"), valid_fraction=0.25),
        adapter=AdapterConfig(rank=2), optim=OptimConfig(epochs=3, batch_size=8, lr=1e-3, warmup_tokens=400),
        run=RunConfig(output=str(tmp_path / "out"), eval_epochs=True, **QUIET),
    )  # fmt: skip
    report = run(config)
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    ends = [record["step"] for record in steps if record["epoch"] == int(record["epoch"])]
    assert [record["step"] for record in records if record["kind"] == "valid"] == [0, *ends] and len(ends) == 3
    warmup = report.choices["optim.warmup"]
    rates = [record["lr"] for record in steps]
    assert 1 < warmup < len(rates) and rates.index(max(rates)) == warmup - 1
    assert rates[0] == pytest.approx(1e-3 / warmup)


def test_a_warm_up_longer_than_the_run_is_not_silent(base: Path, files: Path, tmp_path: Path) -> None:
    heard = Sections()
    config = TrainConfig(
        model=ModelConfig(path=str(base)), data=DataConfig(path=str(files / "pairs.jsonl")),
        adapter=AdapterConfig(rank=2), optim=OptimConfig(steps=2, warmup_tokens=250_000),
        run=RunConfig(output=str(tmp_path / "out"), **QUIET),
    )  # fmt: skip
    run(config, (heard,), dry_run=True)
    assert "of the 250,000 tokens of its warm-up, and ends at its peak" in heard.text


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=320, max_position_embeddings=70, pad_token_id=1, **shape)).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("adapter", "frozen"),
    [
        ({"targets": ("query",)}, True),
        ({"targets": ("query",), "train_also": ("pooler",)}, False),
        ({"targets": ("pooler.dense", "query")}, False),
        ({"method": "bias"}, True),
        ({"method": "bias", "train_also": ("pooler",)}, False),
        ({"method": "full"}, False),
    ],
    ids=lambda value: str(value),
)
def test_a_pooler_that_stays_is_told(bert: Path, tmp_path: Path, adapter: dict[str, Any], frozen: bool) -> None:
    heard, rank = Sections(), {} if "method" in adapter else {"rank": 2}
    run(settings(bert, rows(tmp_path / "rows.jsonl", 2), tmp_path / "out", **rank, **adapter), (heard,))
    assert ("reads bert.pooler, which stays as the base has it; --train-also bert.pooler" in heard.text) == frozen
