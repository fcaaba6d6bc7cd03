"""R-drop and cut-off: the loss by hand, what is cut and what never is, and where neither can apply."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_train import labelled, make_model, make_tokenizer, scored, write_jsonl
from torch import Tensor

import builders
from deltaw.errors import ConfigError, StateError
from deltaw.train import Callback, from_values, run
from deltaw.train.batches import Batch, collate
from deltaw.train.cutoff import Cutoff
from deltaw.train.data import Example
from deltaw.train.loss import Losses
from deltaw.train.packed import pack
from deltaw.train.passes import check_passes, cutoff_of
from deltaw.train.rdrop import RDrop
from deltaw.train.trial import find_isolation

VOCAB = 48


def language() -> Batch:
    """Three rows of different lengths, with weights of several sizes."""
    generator, rows = torch.Generator().manual_seed(3), []
    for length in (5, 9, 7):
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        rows.append(Example(ids=ids, weights=[0.0, 0.0] + [1.0 if at % 3 else 0.25 for at in range(length - 2)]))
    return collate(rows, range(3), 1)


def labels(values: bool = False) -> Batch:
    rows = [Example(ids=ids, weights=[0.0] * len(ids), label=float(k) if values else k)
            for k, ids in enumerate(([3, 4, 5], [6, 7, 8, 9, 3], [9, 8]))]  # fmt: skip
    return collate(rows, range(3), 1)


def decoder(drop: float = 0.0) -> Any:
    """A GPT-2 with dropout everywhere, drawn from the global stream."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), drop)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, tie_word_embeddings=False, **sizes, **drops)).train()
    with torch.no_grad():
        # logits of the size that trained models have
        model.lm_head.weight.mul_(20)
    return model


def classifier(drop: float = 0.0, classes: int = 3) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), drop)
    return BertForSequenceClassification(BertConfig(vocab_size=VOCAB, num_labels=classes, **sizes, **drops)).train()


def divergence(a: list[float], b: list[float], form: str) -> float:
    """One token's, in plain numbers."""

    def softmax(logits: list[float]) -> list[float]:
        whole = sum(math.exp(x) for x in logits)
        return [math.exp(x) / whole for x in logits]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))

    p, q = softmax(a), softmax(b)
    if form == "pair":
        return (kl(p, q) + kl(q, p)) / 2
    middle = softmax([(x + y) / 2 for x, y in zip(a, b, strict=True)])
    return (kl(middle, p) + kl(middle, q)) / 2 / len(a)


@pytest.mark.parametrize("form", ["pair", "mean"])
def test_the_divergence_is_the_formula(form: str) -> None:
    a, b = [[0.2, -1.0, 2.0], [3.0, 0.0, 0.5]], [[1.2, 0.3, -0.4], [3.0, 0.0, 0.5]]
    got = RDrop(weight=0.5, form=form)(torch.tensor(a), torch.tensor(b))
    expected = [0.5 * divergence(x, y, form) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == pytest.approx(expected, abs=1e-6) and expected[0] > 0.02 and got[1] == 0
    assert torch.equal(RDrop(weight=0.5, form=form)(torch.tensor(b), torch.tensor(a)), got)


def twice(model: Any, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of both passes, with the dropout that the loss will draw."""
    torch.manual_seed(seed)
    ids, mask = (torch.cat([part, part]) for part in (batch.input_ids, batch.attention_mask))
    extra = {"use_cache": False} if batch.labels is None else {}
    logits = model(input_ids=ids, attention_mask=mask, **extra).logits.double()
    first, second = logits.chunk(2)
    return first, second


@pytest.mark.parametrize("form", ["pair", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_tokens_by_hand(form: str, smoothing: float) -> None:
    model, batch = decoder(0.3), language()
    losses = Losses(model, "causal", smoothing, rdrop=RDrop(weight=2.0, form=form))
    assert not losses.chunked
    first, second = twice(model, batch, 5)
    terms = []
    for row, column in zip(*batch.where.tolist(), strict=True):
        a, b, target = first[row, column - 1], second[row, column - 1], batch.input_ids[row, column]
        own = sum(F.cross_entropy(x, target, label_smoothing=smoothing) for x in (a, b))
        apart = 2.0 * divergence(a.tolist(), b.tolist(), form)
        assert apart > 1e-5
        terms.append(float(batch.weights[row, column]) * (own.item() + apart))
    torch.manual_seed(5)
    assert losses(batch).total.item() == pytest.approx(sum(terms), rel=1e-5)


@pytest.mark.parametrize("form", ["pair", "mean"])
def test_the_loss_of_labels_by_hand_and_its_gradient(form: str) -> None:
    model, batch = classifier(0.2), labels()
    first, second = twice(model, batch, 7)
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    middle = ((first + second) / 2).log_softmax(-1)
    kinds = {"pair": (p.exp() * (p - q) + q.exp() * (q - p)), "mean": middle.exp() * (2 * middle - p - q) / 3}
    own = F.cross_entropy(first, batch.labels, reduction="sum") + F.cross_entropy(second, batch.labels, reduction="sum")
    want = own + 1.5 / 2 * kinds[form].sum()
    want.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    got = Losses(model, "classification", rdrop=RDrop(weight=1.5, form=form))(batch)
    assert got.total.item() == pytest.approx(want.item(), rel=1e-5) and got.logits.shape == (3, 3)
    got.total.backward()
    for name, value in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_equal_passes_cost_twice_and_validation_costs_once(kind: str) -> None:
    model, batch = (decoder(), language()) if kind == "causal" else (classifier(), labels())
    plain, both = Losses(model, kind), Losses(model, kind, rdrop=RDrop(weight=9.0))
    assert both(batch).total.item() == pytest.approx(2 * plain(batch).total.item(), rel=1e-5)
    model.eval()
    assert both(batch).total.item() == plain(batch).total.item()


def test_an_adapters_dropout_differs_between_the_passes_under_checkpointing_too() -> None:
    model, batch = make_model(VOCAB).train(), language()
    builders.attach(model, rank=2, dropout=0.5)
    builders.randomize(model)
    plain, both = Losses(model, "causal"), Losses(model, "causal", rdrop=RDrop(weight=1e4))
    assert both(batch).total.item() > 10 * plain(batch).total.item()
    model.gradient_checkpointing_enable()
    both(batch).total.backward()


def test_packed_rows_have_the_loss_of_separate_ones() -> None:
    model = make_model(VOCAB).train()
    rows = [Example(ids=ids, weights=[0.0] + [1.0] * (len(ids) - 1)) for ids in ([3, 4, 5, 6], [7, 8, 9], [9, 3, 7])]
    way, reason = find_isolation(model, rows)
    assert way is not None, reason
    losses = Losses(model, "causal", rdrop=RDrop(weight=1.0))
    apart = sum(losses(collate([row], (0,), 1)).total.item() for row in rows)
    assert losses(pack(rows, isolation=way)).total.item() == pytest.approx(apart, rel=1e-5)


SPECIAL = (0, 1, 2)


def many(kind: str = "token", share: float = 0.3) -> tuple[Cutoff, Batch]:
    """Rows of 40 and of 20 tokens, special ones at both ends."""
    rows = [Example(ids=[0, *range(3, length + 1), 2], weights=[1.0] * length) for length in (40, 20) * 100]
    return Cutoff(share=share, kind=kind, special=SPECIAL, unknown=39), collate(rows, range(200), 1)


@pytest.mark.parametrize("kind", ["token", "unknown"])
def test_tokens_are_cut_at_their_rate_and_special_ones_and_padding_never(kind: str) -> None:
    cutoff, batch = many(kind)
    torch.manual_seed(0)
    cut = cutoff.draw(batch, 16)
    assert cut.shape == batch.input_ids.shape
    assert not cut[torch.isin(batch.input_ids, torch.tensor(SPECIAL))].any()
    assert not cut[batch.attention_mask == 0].any()
    real = (batch.attention_mask == 1) & (batch.input_ids > 2)
    assert float(cut[real].double().mean()) == pytest.approx(0.3, abs=0.02)
    torch.manual_seed(0)
    assert torch.equal(cutoff.draw(batch, 16), cut)


def test_a_span_is_one_run_of_its_share_and_starts_anywhere() -> None:
    cutoff, batch = many("span", 0.25)
    cut = cutoff.draw(batch, 16)
    starts = set()
    for row, length in zip(cut.tolist(), batch.attention_mask.sum(1).tolist(), strict=True):
        places = [at for at, gone in enumerate(row) if gone]
        assert places == list(range(places[0], places[-1] + 1))
        ends = sum(at in (0, length - 1) for at in range(places[0] - 1, places[-1] + 2))
        # a special token at an end takes its place out of the run
        assert len(places) in ((length // 4, length // 4 - 1) if ends else (length // 4,))
        starts.add(places[0])
    assert len(starts) > 15


@pytest.mark.parametrize("kind", ["token", "span", "feature", "unknown"])
def test_the_model_reads_what_is_left_and_rows_above_are_whole(kind: str) -> None:
    model, (cutoff, batch) = make_model(VOCAB), many(kind)
    table = model.get_input_embeddings()
    whole = table(batch.input_ids)
    torch.manual_seed(2)
    cut = cutoff.draw(batch, 32, 150)
    torch.manual_seed(2)
    with cutoff.applied(model, batch, 150):
        read = table(batch.input_ids)
    assert torch.equal(table(batch.input_ids), whole), "nothing is left behind"
    assert torch.equal(read[:150], whole[:150]) and not torch.equal(read[150:], whole[150:])
    gone = cut.expand_as(whole) if kind == "feature" else cut[..., None].expand_as(whole)
    assert torch.equal(read[~gone], whole[~gone]), "what is left is not scaled"
    stand_in = table.weight[39].expand_as(whole) if kind == "unknown" else torch.zeros_like(whole)
    assert torch.equal(read[gone], stand_in[gone])
    if kind == "feature":
        assert cut.shape == (200, 1, 32) and float(cut[150:].double().mean()) == pytest.approx(0.3, abs=0.05)
        assert not torch.equal(cut[150], cut[151])


def test_the_second_pass_alone_is_cut_and_targets_stay() -> None:
    model, batch = decoder(), language()
    cutoff = Cutoff(share=0.5, kind="unknown", special=(), unknown=2)
    torch.manual_seed(4)
    below = cutoff.draw(batch.doubled(), 16, 3)[3:]
    assert below.any()
    read = batch.input_ids.masked_fill(below, 2)
    (rows, columns), mask = batch.where, batch.attention_mask
    total = torch.zeros(())
    seen = [model(input_ids=ids, attention_mask=mask).logits[rows, columns - 1] for ids in (batch.input_ids, read)]
    weights, targets = batch.weights[rows, columns], batch.input_ids[rows, columns]
    for logits in seen:
        total = total + (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    p, q = (logits.log_softmax(-1) for logits in seen)
    total = total + 3.0 * (0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1) * weights).sum()
    torch.manual_seed(4)
    got = Losses(model, "causal", rdrop=RDrop(weight=3.0), cutoff=cutoff)(batch).total
    assert got.item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("task", ["causal", "classification", "regression"])
def test_cut_off_alone_cuts_the_only_pass_in_training_alone(task: str) -> None:
    model = decoder() if task == "causal" else classifier(classes=1 if task == "regression" else 3)
    batch = language() if task == "causal" else labels(values=task == "regression")
    plain, cut = Losses(model, task), Losses(model, task, cutoff=Cutoff(share=0.4))
    assert cut(batch).total.item() != pytest.approx(plain(batch).total.item(), rel=1e-4)
    model.eval()
    assert cut(batch).total.item() == plain(batch).total.item()


def test_a_model_that_reads_its_tokens_another_way_is_named() -> None:
    model, (cutoff, batch) = make_model(VOCAB), many()
    with pytest.raises(StateError, match="nothing was cut off"), cutoff.applied(model, batch):
        F.embedding(batch.input_ids, model.get_input_embeddings().weight)


def config(**optim: Any) -> Any:
    more = {"adapter": optim.pop("adapter", {})}
    return from_values({"model": {"path": "base"}, "data": {"path": "rows"}, "optim": optim, **more})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"rdrop_form": "mean"}, "--rdrop-form means nothing without --rdrop"),
        ({"cutoff_kind": "span"}, "--cutoff-kind means nothing without --cutoff"),
        ({"cutoff": 0.1, "packing": True, "batch_tokens": 64}, "--cutoff does not go with --packing"),
        ({"cutoff": 0.1, "adapter": {"method": "prefix-embedding"}}, "--cutoff does not go with --method prefix-emb"),
        ({"rdrop": -1.0}, "`optim.rdrop` has a wrong value"),
        ({"cutoff": 1.0}, "`optim.cutoff` has a wrong value"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**words)


def test_where_nothing_drops_out_two_passes_are_refused() -> None:
    bare, dropping = decoder(), decoder(0.1)
    with pytest.raises(ConfigError, match="nothing drops out") as error:
        check_passes(config(rdrop=1.0), bare, "causal")
    assert "--dropout 0.1" in error.value.hint and "--cutoff 0.1" in error.value.hint
    check_passes(config(rdrop=1.0), dropping, "causal")
    check_passes(config(rdrop=1.0, cutoff=0.1), bare, "causal")
    check_passes(config(rdrop=1.0, adapter={"dropout": 0.1}), bare, "causal")
    with pytest.raises(ConfigError, match="nothing drops out"):
        check_passes(config(rdrop=1.0, adapter={"method": "full"}), bare, "causal")
    check_passes(config(), bare, "causal")


def test_values_and_a_tokenizer_without_an_unknown_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="values have no probabilities"):
        check_passes(config(rdrop=1.0), decoder(0.1), "regression")
    with pytest.raises(ConfigError, match="there is no unknown token") as error:
        cutoff_of(config(cutoff=0.1, cutoff_kind="unknown"), make_tokenizer())
    assert "--cutoff-kind token" in error.value.hint
    words = SimpleNamespace(unk_token_id=5, all_special_ids=[5, 2, 2])
    assert cutoff_of(config(cutoff=0.1, cutoff_kind="unknown"), words) == Cutoff(
        share=0.1, kind="unknown", special=(2, 5), unknown=5
    )


class Heard(Callback):
    def __init__(self) -> None:
        self.sections: dict[str, str] = {}

    def on_section(self, title: str, body: object) -> None:
        self.sections[title] = str(body)


@pytest.mark.parametrize("rows", ["labels", "scores"])
def test_a_run_with_both_says_so_and_learns(base: Path, tmp_path: Path, rows: str) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled() if rows == "labels" else scored())
    optim = {"steps": 30, "batch_size": 8, "lr": 0.01, "cutoff": 0.1, "cutoff_kind": "feature"}
    values: dict[str, Any] = {
        "model": {"path": str(base), "task": "classification" if rows == "labels" else "regression"},
        "data": {"path": str(data), "valid_fraction": 0.25},
        "adapter": {"rank": 4, "dropout": 0.1},
        "optim": optim | ({"rdrop": 1.0} if rows == "labels" else {}),
        "run": {"output": str(tmp_path / "out"), "sample_tokens": 0, "plot": False},
    }
    heard = Heard()
    report = run(from_values(values), (heard,))
    assert report.after["loss"] < report.before["loss"]
    told = heard.sections["plan"]
    assert ("R-drop: two passes of every batch" in told) == (rows == "labels")
    assert f"cut-off: 0.1 of the {'second pass' if rows == 'labels' else 'input'}" in told
    assert "optim.cutoff = 0.1" in heard.sections["settings"]
    assert f"memory of the longest batch ({'2 x ' if rows == 'labels' else ''}8 x " in told
