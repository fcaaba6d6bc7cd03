"""The training loss in chunks against the model's own full logits: architectures, ties, trained heads, fallbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import builders
from deltaw.chunked import Rules
from deltaw.errors import ConfigError
from deltaw.train.batches import Batch, collate
from deltaw.train.loss import Losses, before
from deltaw.train.readout import readouts

VOCAB = 48
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
# family -> what its config says of the logits, and what that means
FAMILIES: dict[str, tuple[dict[str, Any], Rules]] = {
    "llama": ({}, Rules()),
    "gpt2": ({}, Rules()),
    "gemma2": ({"final_logit_softcapping": 2.0}, Rules(soft_cap=2.0)),
    "gemma3_text": ({"final_logit_softcapping": 30.0}, Rules(soft_cap=30.0)),
    "cohere": ({"logit_scale": 0.0625}, Rules(logit_scale=0.0625)),
    "cohere2": ({"logit_scale": 0.25}, Rules(logit_scale=0.25)),
    "granite": ({"logits_scaling": 8.0}, Rules(logit_scale=0.125)),
    "nanochat": ({"final_logit_softcapping": 15.0}, Rules(soft_cap=15.0)),
}


@dataclass
class Row:
    ids: list[int]
    weights: list[float]
    label: int | None = None
    types: None = None


def make(family: str, **more: Any) -> Any:
    torch.manual_seed(0)
    values = {**SMALL, **FAMILIES[family][0], **more} if family in FAMILIES else {**SMALL, **more}
    if family == "gpt2":
        values = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCAB, "bos_token_id": 0,
                  "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **more}  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values), attn_implementation="eager")
    with torch.no_grad():
        # logits of the size that trained models have
        model.get_output_embeddings().weight.mul_(20)
    return model.train()


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in (5, 9, 7):
        ids = torch.randint(1, VOCAB, (length,), generator=generator).tolist()
        rows.append(Row(ids, [0.0, 0.0] + [1.0 if place % 3 else 0.25 for place in range(length - 2)]))
    return collate(rows, range(3), 0)


def by_hand(model: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The weighted sum, from the model's own logits."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    rows, columns = batch.where
    targets = batch.input_ids[rows, columns]
    log_p = F.log_softmax(logits[before(batch)].float(), -1)
    each = -(1 - smoothing) * log_p.gather(1, targets[:, None])[:, 0] - smoothing * log_p.mean(1)
    return (each * batch.weights[rows, columns]).sum()


def compare(model: Any, losses: Losses, smoothing: float = 0.0) -> None:
    """Loss and gradients of every trained parameter."""
    batch = make_batch()
    model.zero_grad(set_to_none=True)
    got = losses(batch).total
    got.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    want = by_hand(model, batch, smoothing)
    want.backward()
    torch.testing.assert_close(got, want)
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained and {name for name, grad in found.items() if grad is not None} == set(trained)
    for name, p in model.named_parameters():
        if p.grad is not None:
            scale = float(p.grad.abs().max()) + 1e-8
            assert float((found[name] - p.grad).abs().max()) <= 3e-5 * scale, name


SHORT = "only trained tokens go through the head, a chunk at a time"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trained", ["adapter", "everything"])
def test_the_step_is_that_of_full_logits(family: str, tied: bool, trained: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("deltaw.head.chunk_tokens", lambda vocabulary: 4)
    model = make(family, tie_word_embeddings=tied)
    assert readouts(model)[0] == FAMILIES[family][1]
    if trained == "adapter":
        builders.attach(model, targets="all-linear", rank=2)
        builders.randomize(model)
    losses = Losses(model, "causal")
    losses.verify(make_batch())
    assert losses.note == SHORT and losses.chunked and losses._forms == [FAMILIES[family][1]]
    compare(model, losses)


HEADS: dict[str, dict[str, Any]] = {
    "adapter on the head": {"targets": ["q_proj", "lm_head"]},
    "adapter on its weight": {"targets": ["q_proj", "lm_head.weight"]},
    "trained copy": {"targets": ["q_proj"], "train_also": ["lm_head"]},
    "tied, adapter on the table": {"targets": ["q_proj", "embed_tokens"], "ties": "share"},
    "tied, adapter on both": {"targets": ["q_proj", "lm_head"], "ties": "share"},
    "tied, trained rows": {"targets": ["q_proj"], "train_rows": {"embed_tokens": [3, 9]}, "ties": "share"},
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_head_that_is_trained(kind: str, family: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("deltaw.head_module.chunk_tokens", lambda vocabulary: 4)
    model = make(family, tie_word_embeddings="tied" in kind)
    builders.attach(model, rank=2, **HEADS[kind])
    builders.randomize(model)
    losses = Losses(model, "causal")
    losses.verify(make_batch())
    assert losses.note == SHORT
    compare(model, losses)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
@pytest.mark.parametrize("chunked", [True, False])
def test_smoothing_is_torchs_in_training_and_off_in_validation(smoothing: float, chunked: bool) -> None:
    model, batch = make("llama"), make_batch()
    losses, plain = Losses(model, "causal", smoothing), Losses(model, "causal")
    if not chunked:
        losses._split = plain._split = None
    compare(model, losses, smoothing)
    assert losses(batch).total.item() != pytest.approx(plain(batch).total.item(), rel=1e-3)
    model.eval()
    assert losses(batch).total.item() == plain(batch).total.item()


def test_values_cannot_be_smoothed() -> None:
    with pytest.raises(ConfigError, match="values cannot be smoothed"):
        Losses(nn.Linear(2, 1), "regression", 0.1)


def test_token_logits_are_the_models_own() -> None:
    for family in FAMILIES:
        model, batch = make(family).eval(), make_batch()
        losses = Losses(model, "causal")
        losses.verify(batch)
        with torch.no_grad():
            full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[before(batch)]
            torch.testing.assert_close(losses.token_logits(batch), full.float(), rtol=1e-4, atol=1e-5)


def test_a_declaration_that_the_model_does_not_read() -> None:
    """As MPT's ``logit_scale``: a word says nothing, and a number is tried and found wrong."""
    model = make("llama")
    model.config.logit_scale = "inv_sqrt_d_model"
    assert readouts(model) == [Rules()]
    model.config.logit_scale = 0.5
    losses = Losses(model, "causal")
    losses.verify(make_batch())
    assert losses.note == SHORT and losses._forms == [Rules()]
    compare(model, losses)


def test_a_name_that_one_family_multiplies_by_and_another_divides_by() -> None:
    """HyperCLOVA X against Granite: the model's own logits decide."""
    model = make("granite", logits_scaling=4.0)
    plain = model.forward

    def multiplied(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits = out.logits * 16
        return out

    model.forward = multiplied
    losses = Losses(model, "causal")
    losses.verify(make_batch())
    assert losses.note == SHORT and losses._forms == [Rules(logit_scale=4.0)]
    compare(model, losses)


def test_a_cap_that_hardly_shows_yet_is_found_out() -> None:
    """The logits of a fresh model are a hundredth of the cap; those of the trained one will not be."""
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    plain = model.forward

    def capped(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    model.forward = capped
    losses, batch = Losses(model, "causal"), make_batch()
    unseen = plain(input_ids=batch.input_ids).logits
    torch.testing.assert_close(capped(input_ids=batch.input_ids).logits, unseen, rtol=1e-3, atol=1e-6)
    losses.verify(batch)
    assert "changes its logits after the head" in losses.note and not losses.chunked
    compare(model, losses)


def test_a_head_that_trains_what_is_not_its_own_falls_back() -> None:
    model = make("llama")
    stranger = nn.Parameter(torch.ones(VOCAB))
    model.register_parameter("stranger", stranger)
    model.lm_head.register_forward_hook(lambda module, inputs, out: out * stranger)
    losses = Losses(model, "causal")
    losses.verify(make_batch())
    assert "trains tensors that are not among its parameters" in losses.note and not losses.chunked
    compare(model, losses)
