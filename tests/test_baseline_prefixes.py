"""Inserted positions: the base on longer inputs is the reference; masks, numbers, labels, caches and generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baseline_models import CAUSAL, LAYERS, MODELS, ids, make, method, shake
from deltaw import baselines as bl
from deltaw.baselines.layout import Layout
from deltaw.baselines.prefix_embedding import starting_ids
from deltaw.errors import DataError, StateError

causal = pytest.mark.parametrize("family", CAUSAL)
encoders = pytest.mark.parametrize("family", ("bert", "roberta", "deberta"))
PREFIX, INFIX = 3, 2


def inserted_ids(model: Any, method: bl.PrefixEmbedding) -> torch.Tensor:
    """The tokens whose embeddings the inserted positions start as."""
    table = model.get_input_embeddings().weight
    path = {"GPT2": "transformer", "Llama": "model", "Bert": "bert", "Roberta": "roberta", "DebertaV2": "deberta"}
    name = next(value for key, value in path.items() if type(model).__name__.startswith(key))
    return starting_ids(method, method.inserted, table, name)


def longer(tokens: torch.Tensor, extra: torch.Tensor, start: int) -> torch.Tensor:
    """Rows with the prefix before them and the infix before token ``start``."""
    rows = len(tokens)
    prefix, infix = extra[:PREFIX].expand(rows, -1), extra[PREFIX:].expand(rows, -1)
    return torch.cat([prefix, tokens[:, :start], infix, tokens[:, start:]], dim=1)


@causal
@pytest.mark.parametrize("start", [0, 4, 9])
@torch.no_grad()
def test_a_decoder_starts_as_the_base_with_those_tokens(family: str, start: int) -> None:
    """Each token's logits are those of the position right before the next token, in the base on the longer rows."""
    base, tokens = make(family), ids()
    model = make(family)
    settings = bl.PrefixEmbedding(prefix_length=PREFIX, infix_length=INFIX)
    bl.attach(model, settings)
    whole = base(longer(tokens, inserted_ids(model, settings), start)).logits
    shown = [PREFIX + j + 1 + INFIX * (j + 1 >= start) - 1 for j in range(tokens.shape[1])]
    with bl.completion_starts(torch.tensor([start, start])):
        found = model(input_ids=tokens)
    assert torch.allclose(found.logits, whole[:, shown], atol=1e-4)
    # the loss of a completion, as a caller computes it on its own positions
    labels = tokens.clone()
    labels[:, :start] = -100
    if 0 < start < 9:
        loss = model(input_ids=tokens, labels=labels).loss
        target = longer(labels, torch.full((PREFIX + INFIX,), -100), start)
        expected = base(longer(tokens, inserted_ids(model, settings), start), labels=target).loss
        assert torch.allclose(loss, expected, atol=1e-4)


@causal
@torch.no_grad()
def test_without_labels_the_infix_stands_behind_the_last_token(family: str) -> None:
    model, tokens = make(family), ids()
    bl.attach(model, method("prefix-embedding"))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    plain = model(input_ids=tokens, attention_mask=mask).logits
    with bl.completion_starts(torch.tensor([9, 5])):
        assert torch.equal(model(input_ids=tokens, attention_mask=mask).logits, plain)
    alone = model(input_ids=tokens[1:, :5]).logits
    assert torch.allclose(plain[1, :5], alone[0], atol=1e-4)


@causal
@torch.no_grad()
def test_labels_say_where_completions_start_row_by_row(family: str) -> None:
    model, tokens = make(family), ids()
    bl.attach(model, method("prefix-layer"))
    labels = tokens.clone()
    labels[0, :3], labels[1, :6] = -100, -100
    told = model(input_ids=tokens, labels=labels).logits
    with bl.completion_starts(torch.tensor([3, 6])):
        assert torch.equal(model(input_ids=tokens).logits, told)
    assert not torch.allclose(model(input_ids=tokens).logits, told, atol=1e-3)
    for row, start in enumerate((3, 6)):
        with bl.completion_starts(torch.tensor([start])):
            alone = model(input_ids=tokens[row : row + 1]).logits
        assert torch.allclose(told[row], alone[0], atol=1e-4)


@encoders
@torch.no_grad()
def test_an_encoder_starts_as_the_base_with_those_tokens(family: str) -> None:
    """Its head reads the caller's first position, which stands behind the prefix."""
    base, model, tokens = make(family), make(family), ids()
    settings = bl.PrefixEmbedding(prefix_length=PREFIX, infix_length=INFIX)
    bl.attach(model, settings)
    rows = longer(tokens, inserted_ids(model, settings), tokens.shape[1])
    shown = [*range(PREFIX, PREFIX + tokens.shape[1])]
    body = base.base_model(rows).last_hidden_state[:, shown]
    assert torch.allclose(model.base_model(tokens).last_hidden_state, body, atol=1e-4)
    if family == "bert":
        head = base.classifier(base.bert.pooler(body))
    elif family == "roberta":
        head = base.classifier(body)
    else:
        head = base.classifier(base.pooler(body))
    assert torch.allclose(model(tokens).logits, head, atol=1e-4)


@pytest.mark.parametrize("family", tuple(MODELS))
@pytest.mark.parametrize("name", ["prefix-embedding", "prefix-layer"])
@torch.no_grad()
def test_padding_and_token_types_change_nothing(family: str, name: str) -> None:
    model, tokens = make(family), ids()
    bl.attach(model, method(name))
    shake(model)
    alone = model(tokens[:1, :6], attention_mask=torch.ones(1, 6, dtype=torch.long)).logits
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if family == "bert":
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    padded = model(**inputs).logits
    found, wanted = (padded[0, :6], alone[0]) if family in CAUSAL else (padded[0], alone[0])
    assert torch.allclose(found, wanted, atol=1e-4)


@causal
@torch.no_grad()
def test_prefix_layer_replaces_what_every_block_reads(family: str) -> None:
    """With the base's own activations as vectors, the model computes what the base computes on the longer rows."""
    base, model, tokens = make(family), make(family), ids()
    prefix = ids(1, PREFIX, seed=8)
    bl.attach(model, bl.PrefixLayer(prefix_length=PREFIX))
    states = base(prefix, output_hidden_states=True).hidden_states
    vectors = [p for key, p in bl.trainable(model) if key.endswith("vectors")]
    assert len(vectors) == LAYERS
    for parameter, state in zip(vectors, states, strict=False):
        parameter.copy_(state[0])
    whole = base(torch.cat([prefix.expand(2, -1), tokens], dim=1)).logits
    assert torch.allclose(model(tokens).logits, whole[:, PREFIX:], atol=1e-4)
    hidden = model(tokens, output_hidden_states=True).hidden_states
    assert all(state.shape[1] == tokens.shape[1] for state in hidden)


@torch.no_grad()
def test_every_prefix_vector_is_effective() -> None:
    """Also the last block's, and also the last infix position's, from which the completion's first token is read."""
    model, tokens = make("gpt2"), ids()
    bl.attach(model, method("prefix-layer"))

    def run(rows: torch.Tensor) -> torch.Tensor:
        with bl.completion_starts(torch.tensor([5, 5])):
            return model(rows).logits

    plain = run(tokens)
    for key, parameter in bl.trainable(model):
        for row in range(PREFIX + INFIX):
            kept = parameter[row].clone()
            parameter[row] += torch.randn_like(kept)
            assert not torch.allclose(run(tokens), plain, atol=1e-5), (key, row)
            parameter[row] = kept
    other = tokens.clone()
    other[:, 0] += 1
    assert not torch.allclose(run(other)[:, 4], plain[:, 4], atol=1e-3), "the readout must see the context"


@causal
@pytest.mark.parametrize("name", ["prefix-embedding", "prefix-layer", "lora+prefix-layer"])
@torch.no_grad()
def test_generation_with_a_cache(family: str, name: str) -> None:
    """Greedy text with a cache is that without one, token by token; left padding and beams go along."""
    model, tokens = make(family), ids(2, 6)
    bl.attach(model, method(name))
    shake(model)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(tokens)
    cached = model.generate(tokens, attention_mask=mask, **options)
    sequence = tokens
    for _ in range(5):
        with bl.completion_starts(torch.tensor([6, 6])):
            step = model(sequence, use_cache=False).logits[:, -1].argmax(-1)
        sequence = torch.cat([sequence, step[:, None]], dim=1)
    assert torch.equal(cached, sequence)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], dim=1)
    wide = torch.cat([torch.zeros(2, 3, dtype=torch.long), mask], dim=1)
    assert torch.equal(model.generate(padded, attention_mask=wide, **options)[:, 3:], cached)
    beams = model.generate(tokens, attention_mask=mask, num_beams=3, **options)
    single = [model.generate(tokens[i : i + 1], attention_mask=mask[:1], num_beams=3, **options) for i in (0, 1)]
    assert torch.equal(beams, torch.cat(single))


@causal
@torch.no_grad()
def test_a_cache_of_others_is_refused(family: str) -> None:
    model, tokens = make(family), ids()
    bl.attach(model, method("prefix-embedding"))
    with bl.disabled(model):
        cache = model(tokens, use_cache=True)
    kept = getattr(cache, "cache", None)
    name = "past_key_values" if kept is None else "cache"
    with pytest.raises(StateError, match="filled without the inserted positions"):
        model(tokens[:, :1], **{name: getattr(cache, name)}, use_cache=True)
    with pytest.raises(StateError, match="cannot be inserted under this attention mask"):
        model(tokens, attention_mask=torch.ones(2, 1, 9, 9))
    # a call that failed leaves nothing behind
    assert model(tokens).logits.shape[1] == tokens.shape[1]


@pytest.mark.parametrize("family", tuple(MODELS))
def test_the_usable_length_shrinks(family: str) -> None:
    model = make(family)
    limit = 48 - 2 if family == "roberta" else 48
    report = bl.attach(model, method("prefix-embedding"))
    room = limit - PREFIX - INFIX
    assert f"up to {room} tokens fit" in str(report)
    assert model(ids(1, room)).logits is not None
    with pytest.raises(DataError, match=f"{room + 1} tokens with 3 \\+ 2 positions"):
        model(ids(1, room + 1))


@causal
@torch.no_grad()
def test_positions_of_the_caller_are_counted_on(family: str) -> None:
    model, tokens = make(family), ids()
    bl.attach(model, method("prefix-embedding"))
    plain = model(tokens).logits
    numbers = torch.arange(tokens.shape[1])[None]
    assert torch.allclose(model(tokens, position_ids=numbers).logits, plain, atol=1e-5)
    assert torch.allclose(model(tokens, position_ids=numbers.expand(2, -1)).logits, plain, atol=1e-5)
    if family == "gpt2":
        assert not torch.allclose(model(tokens, position_ids=numbers + 4).logits, plain, atol=1e-3)


def test_checkpointed_blocks_are_refused_for_prefix_layers() -> None:
    model = make("llama")
    bl.attach(model, method("prefix-layer"))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with pytest.raises(StateError, match="does not go with gradient checkpointing"):
        model(input_ids=ids(), labels=ids())


@pytest.mark.parametrize("name", ["prefix-embedding", "adapter-h", "top-blocks"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    grads = []
    for checkpointed in (False, True):
        model = make("llama").train()
        bl.attach(model, method(name))
        shake(model)
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=ids(), labels=ids()).loss.backward()
        grads.append([p.grad for _, p in bl.trainable(model)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_a_layout_by_hand() -> None:
    layout = Layout(torch.tensor([3, 5]), 5, 2, 2, True)
    p, q, i, k = 0, 1, 2, 3
    t = [4, 5, 6, 7, 8]
    assert layout.source_BE.tolist() == [
        [p, q, t[0], t[1], t[2], i, k, t[3], t[4]],
        [p, q, t[0], t[1], t[2], t[3], t[4], i, k],
    ]
    assert layout.answers_BT.tolist() == [[2, 3, 6, 7, 8], [2, 3, 4, 5, 8]]
    assert Layout(layout.starts, 5, 2, 2, False).answers_BT.tolist() == [[2, 3, 4, 7, 8], [2, 3, 4, 5, 6]]
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert layout.attend(mask).tolist() == [[1, 1, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 1, 1]]
    numbers = torch.tensor([[1, 0, 1, 2, 3], [0, 1, 2, 3, 4]])
    assert layout.count(numbers, mask).tolist() == [[0, 1, 3, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert layout.repeat(torch.tensor([[0, 0, 1, 2, 2], [3, 4, 4, 4, 5]])).tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 2, 2],
        [3, 3, 3, 4, 4, 4, 5, 5, 5],
    ]


def test_starts_of_another_batch_are_refused() -> None:
    model = make("gpt2")
    bl.attach(model, method("prefix-embedding"))
    with pytest.raises(StateError, match="do not fit the batch"), bl.completion_starts(torch.tensor([1])):
        model(ids())


@torch.no_grad()
def test_the_base_alone_in_generation() -> None:
    model, tokens = make("gpt2"), ids(1, 6)
    plain = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
    bl.attach(model, method("prefix-layer"))
    shake(model)
    with bl.disabled(model):
        assert torch.equal(model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0), plain)
