"""Adapters that travel: other names, other bases, several on one model, and the files of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import deltaw as dw
from deltaw.errors import CheckpointError
from peft_features import gpt2, llama, roberta
from peft_files import CONFIG, NET, Net, key, refused, rewrite, state
from peft_judge import (
    compare_models,
    fill,
    inputs,
    output,
    peft_load,
    peft_model,
    quiet,
    seeded,
    site_paths,
    tensors,
    wear,
)

# Sharing, several adapters, continuing


def test_several_adapters_on_one_model_with_heads(tmp_path: Path) -> None:
    one, two = {"rank": 3, "alpha": 7}, {"rank": 2, "alpha": 5, "rank_stabilized": True}
    make = lambda: gpt2(head=True)  # noqa: E731
    model = seeded(make)
    for seed, (name, more) in enumerate((("a", one), ("b", two))):
        dw.attach(model, dw.LoRAConfig(targets=["c_attn"], train_also=["score"], **more), name)
        fill([(key, p) for key, p in dw.trainable(model) if f".lora.{name}." in key], seed)
        dw.save(model, tmp_path / name, name)
    model.eval()
    x, again = inputs(model, tokens=True), seeded(make)
    for name in "ab":
        assert not any(".lora." in key for key in tensors(tmp_path / name))
        dw.load(again, tmp_path / name, f"{name}_again")
    import peft

    with quiet():
        theirs = peft.PeftModel.from_pretrained(seeded(make), str(tmp_path / "a"), adapter_name="a")
        theirs.load_adapter(str(tmp_path / "b"), adapter_name="b")
    theirs.eval()
    for name in "ab":
        theirs.set_adapter(name)
        with dw.active(model, name), dw.active(again, f"{name}_again"):
            assert output(model, x).equal(output(again, x))
            compare_models(model, theirs, x)


def test_a_loaded_adapter_can_be_trained_further_under_another_name(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    model = seeded(Net)
    dw.load(model, tmp_path, "mine")
    assert not dw.trainable(model)
    dw.detach(model)
    dw.load(model, tmp_path, "mine", trainable=True)
    names = [name for name, _ in dw.trainable(model)]
    assert names == [f"{p}.lora.mine.lora_{f}" for p in ("one", "two") for f in "AB"]
    optimizer = torch.optim.SGD([p for _, p in dw.trainable(model)], lr=0.1)
    model(inputs(model, tokens=False)).square().sum().backward()
    optimizer.step()
    dw.save(model, tmp_path / "more", "mine")
    before, after = tensors(tmp_path), tensors(tmp_path / "more")
    assert before.keys() == after.keys() and all(not before[k].equal(after[k]) for k in before)
    assert dw.Adapter.open(tmp_path / "more").config == dw.Adapter.open(tmp_path).config


def test_a_name_in_use_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model = wear(NET, tmp_path)
    before = state(model, tmp_path)
    with pytest.raises(dw.DeltawError, match="taken"):
        dw.load(model, tmp_path)
    assert state(model, tmp_path) == before


def test_a_shared_update_stays_whole_where_the_tie_is_gone(tmp_path: Path) -> None:
    tied = seeded(lambda: llama(tied=True))
    dw.attach(tied, dw.LoRAConfig(rank=3, alpha=7, targets=["embed_tokens"], ties="share"))
    fill(dw.trainable(tied))
    dw.save(tied, tmp_path)
    untied = seeded(lambda: llama(tied=False))
    untied.load_state_dict(tied.state_dict() and {k: v for k, v in tied.state_dict().items() if ".lora." not in k})
    report = dw.load(untied, tmp_path)
    assert report.applied == report.total == 2 and any("shared a weight" in note for note in report.notes)
    x = inputs(tied, tokens=True)
    torch.testing.assert_close(output(tied, x), output(untied, x))


def test_twins_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    make = lambda: llama(tied=True)  # noqa: E731
    tied = seeded(make)
    dw.attach(tied, dw.LoRAConfig(rank=3, alpha=7, targets=["embed_tokens"], ties="share"))
    fill(dw.trainable(tied))
    dw.save(tied, tmp_path)
    rewrite(tmp_path, lambda t: t[key("lm_head", "A")].add_(1))
    refused(tmp_path, "share one update", model=seeded(make))


def test_a_frozen_table_of_another_base_is_refused(tmp_path: Path) -> None:
    theirs = {"r": 3, "target_modules": ["embed_tokens"]}
    with quiet():
        peft_model(seeded(llama), theirs).save_pretrained(str(tmp_path))
    assert any(".base_layer.weight" in name for name in tensors(tmp_path))
    assert any("copy of the frozen base" in note for note in dw.load(seeded(llama), tmp_path).notes)
    refused(tmp_path, "not this base's", model=seeded(llama, seed=1))


def test_a_reader_that_knows_two_numbers_gets_the_same_update(tmp_path: Path) -> None:
    """Portable: plain adapters mean alpha / r * B A to every server."""
    wear(NET, tmp_path)
    raw, held = json.loads((tmp_path / CONFIG).read_text()), tensors(tmp_path)
    adapter = dw.Adapter.open(tmp_path)
    assert adapter.modules() == sorted(site_paths(held)) == ["one", "two"]
    for path in adapter.modules():
        dense = raw["lora_alpha"] / raw["r"] * (held[key(path, "B")].double() @ held[key(path, "A")].double())
        torch.testing.assert_close(adapter.delta(path), dense.float())


# Adapters of others


def test_a_configuration_of_four_fields(tmp_path: Path) -> None:
    ours = wear(NET, tmp_path)
    rewrite(tmp_path, foreign=True)
    raw = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": ["one", "two"]}
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    again, x = seeded(Net), inputs(ours, tokens=False)
    dw.load(again, tmp_path)
    assert output(ours, x).equal(output(again, x))


def test_a_head_of_layers_that_only_the_task_names(tmp_path: Path) -> None:
    """PEFT before 0.13 saved the head of a classifier without writing it into ``modules_to_save``."""
    ours = seeded(roberta)
    dw.attach(ours, dw.LoRAConfig(rank=3, alpha=7, targets=["query"], train_also=["classifier"]))
    fill(dw.trainable(ours))
    dw.save(ours, tmp_path / "a")
    rewrite(tmp_path / "a", config={"modules_to_save": None}, foreign=True)
    again = seeded(roberta)
    report = dw.load(again, tmp_path / "a")
    assert report.applied == report.total == 3
    dw.save(again, tmp_path / "b")
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["modules_to_save"] == ["classifier"]
    x = inputs(ours.eval(), tokens=True)
    assert output(ours, x).equal(output(again, x))


def test_a_resized_table_saved_whole_is_applied_or_refused_by_its_size(tmp_path: Path) -> None:
    """PEFT writes a resized vocabulary along; the base must be resized alike before the adapter fits."""
    base = seeded(llama)
    base.resize_token_embeddings(43)  # type: ignore[operator]
    theirs = peft_model(base, {"r": 3, "target_modules": ["q_proj"]})
    fill([(name, p) for name, p in theirs.named_parameters() if p.requires_grad])
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=True)
    table = "base_model.model.model.embed_tokens.weight"
    assert table in tensors(tmp_path)
    refused(tmp_path, "embed_tokens", "(43, 32) for (41, 32)", model=seeded(llama))
    resized = seeded(llama)
    resized.resize_token_embeddings(43)  # type: ignore[operator]
    report = dw.load(resized, tmp_path)
    assert report.applied == report.total
    compare_models(resized.eval(), theirs, inputs(resized, tokens=True))


def test_one_adapter_under_two_names_of_one_module(tmp_path: Path) -> None:
    def make() -> nn.Module:
        net = Net()
        net.two = net.one
        return net

    model = seeded(make)
    dw.attach(model, dw.LoRAConfig(rank=3, alpha=7, targets=["two"]))
    fill(dw.trainable(model))
    dw.save(model, tmp_path)
    again, x = seeded(make), inputs(model, tokens=False)
    report = dw.load(again, tmp_path)
    assert report.applied == report.total == 1
    assert output(model, x).equal(output(again, x))


@pytest.mark.shared
def test_the_grouped_layout_of_2023_is_refused_by_name(shared: Path) -> None:
    with pytest.raises(CheckpointError, match="enable_lora"):
        dw.Adapter.open(shared / "adapters" / "bloom560m-mergedlinear")


def _real(name: str) -> nn.Module:
    import transformers as tf

    if name == "peft-gpt2-seqcls":
        return tf.GPT2ForSequenceClassification(tf.GPT2Config(num_labels=6, pad_token_id=0, vocab_size=5000))
    return tf.DistilBertForSequenceClassification(tf.DistilBertConfig())


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("name", "modules"), [("peft-gpt2-seqcls", 13), ("distilbert-imdb", 14)])
def test_real_adapters_give_pefts_outputs(shared: Path, name: str, modules: int) -> None:
    base = seeded(lambda: _real(name))
    x = torch.randint(1, 5000, (2, 9), generator=torch.Generator().manual_seed(3))
    plain = output(base, x)
    report = dw.load(base, shared / "adapters" / name)
    assert report.applied == report.total == modules
    got = output(base, x)
    with dw.disabled(base):
        assert output(base, x).equal(plain)
    with dw.active(base, "default"):
        assert not torch.allclose(got, plain)
    dw.detach(base)
    theirs = peft_load(base, shared / "adapters" / name)
    judged = output(theirs, x)
    exact = output(theirs.double(), x)
    size, own = exact.abs().max(), (judged.double() - exact).abs().max()
    assert (got.double() - judged.double()).abs().max() <= max(4 * own, size * 2.0**-22)
