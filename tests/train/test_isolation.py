"""Packed against separate: equal losses and gradients where a way is found, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import deltaw as dw
from deltaw.train import Isolation, find_isolation, pack, trial_rows
from deltaw.train.batches import Batch, collate
from deltaw.train.data import Example
from deltaw.train.loss import Losses

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WINDOW = 4
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "mistral": ("MistralForCausalLM", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2ForCausalLM", MIXED),
    "gemma3_text": ("Gemma3ForCausalLM", MIXED),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", EXPERTS),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", QUIET),
    "roberta": ("RobertaForMaskedLM", QUIET),
}
BACKENDS = ("eager", "sdpa")


def build(kind: str, attention: str = "eager", **changes: Any) -> Any:
    name, values = (CAUSAL | ENCODERS | REFUSED)[kind]
    family = getattr(transformers, name)
    if attention == "sdpa" and not family._supports_sdpa:
        pytest.skip(f"transformers gives {name} no sdpa")
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **values, **changes})
    return family._from_config(config, attn_implementation=attention)


def rows(*lengths: int) -> list[Example]:
    draw = torch.Generator().manual_seed(sum(lengths))
    ids = [torch.randint(3, SIZES["vocab_size"], (length,), generator=draw).tolist() for length in lengths]
    return [
        Example(ids=each, weights=[0.0, *(0.5 + (place % 3) / 2 for place in range(len(each) - 1))]) for each in ids
    ]


EXAMPLES = rows(7, 13, 1, 9, 2)
assert min(len(example.ids) for example in EXAMPLES) < WINDOW < 9


def adapted(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """An adapter on everything, with a B that does something."""
    dw.attach(model, dw.LoRAConfig(rank=3, targets="all-linear"))
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return list(dw.trainable(model))


def gradients(parameters: list[tuple[str, nn.Parameter]], totals: Sequence[Tensor]) -> tuple[float, dict[str, Tensor]]:
    loss = torch.stack(list(totals)).sum()
    found = torch.autograd.grad(loss, [parameter for _, parameter in parameters])
    return float(loss.detach()), {name: gradient for (name, _), gradient in zip(parameters, found, strict=True)}


def assert_equal(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0, name
        assert float((found[1][name] - gradient).abs().max()) < 2e-6 * largest, name


def way_for(model: nn.Module, *, causal: bool = True) -> Isolation:
    chosen = [EXAMPLES[row] for row in trial_rows([len(example.ids) for example in EXAMPLES])]
    way, reason = find_isolation(model, chosen, causal=causal)
    assert way is not None and reason == str(way), reason
    return way


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_packed_equals_separate(kind: str, attention: str) -> None:
    model = build(kind, attention)
    way = way_for(model)
    parameters, losses = adapted(model), Losses(model, "causal")
    separate = gradients(parameters, [losses(collate([example], (0,), 1)).total for example in EXAMPLES])
    together = gradients(parameters, [losses(pack(EXAMPLES, isolation=way)).total])
    assert_equal(together, separate)
    padded = gradients(parameters, [losses(collate(EXAMPLES, range(5), 1)).total])
    assert_equal(together, padded)


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """An encoder's loss: each token has a label, here another token."""
    logits = model(**batch.inputs()).logits
    return F.cross_entropy(logits.flatten(0, 1), (batch.input_ids.flatten() * 7) % SIZES["vocab_size"], reduction="sum")


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_packed_encoders_equal_separate(kind: str, attention: str) -> None:
    model = build(kind, attention)
    way = way_for(model, causal=False)
    assert way.offset == (2 if kind == "roberta" else 0)
    parameters = adapted(model)
    separate = gradients(parameters, [token_loss(model, pack([example])) for example in EXAMPLES])
    assert_equal(gradients(parameters, [token_loss(model, pack(EXAMPLES, isolation=way))]), separate)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_both_ways_are_the_same(kind: str) -> None:
    """The masks made here hold the model's own windows."""
    model = build(kind, "sdpa").eval()
    chosen = way_for(model)
    assert chosen.windows is not None  # one mask for all layers instead of one kept by each
    batches = [pack(EXAMPLES, isolation=way) for way in (chosen, Isolation())]
    first, second = (model(**batch.inputs()).logits for batch in batches)
    assert torch.equal(first, second)


def test_a_model_that_passes_no_positions_on_gets_masks_by_layer_type() -> None:
    values = {**EXPERTS, "sliding_window": WINDOW}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CAUSAL, "gpt_oss", ("GptOssForCausalLM", values))
        model = build("gpt_oss", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    way = way_for(model)
    assert way.windows == {"full_attention": 0, "sliding_attention": WINDOW}
    parameters, losses = adapted(model), Losses(model, "causal")
    separate = gradients(parameters, [losses(collate([example], (0,), 1)).total for example in EXAMPLES])
    assert_equal(gradients(parameters, [losses(pack(EXAMPLES, isolation=way)).total]), separate)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaForCausalLM", {}),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "bloom": ("BloomForCausalLM", {}),
    "rwkv": ("RwkvForCausalLM", {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_carry_a_state_along_the_row_are_refused(kind: str, dtype: torch.dtype) -> None:
    model = build(kind).to(dtype)
    assert model.training
    way, reason = find_isolation(model, rows(7, 13, 9))
    assert way is None and "examples see each other" in reason and model.training


class Deaf(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Takes masks and positions as everybody does, and hears neither."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        plain = self.model.forward
        self.model.forward = lambda input_ids, **_: plain(input_ids=input_ids, use_cache=False)


def test_a_model_that_ignores_masks_is_refused() -> None:
    torch.manual_seed(0)
    model = Deaf(transformers.LlamaConfig(**SIZES))
    way, reason = find_isolation(model, rows(7, 13, 9))
    assert way is None and reason.count("examples see each other") == 2


def test_wrong_positions_are_refused() -> None:
    """Nothing leaks, and yet the numbers are others: a model of learned positions that counts on through the row."""
    model = build("gpt2")
    plain = model.transformer.forward
    model.transformer.forward = lambda position_ids=None, **inputs: plain(**inputs)
    way, reason = find_isolation(model, rows(7, 13, 9))
    assert way is None and "hidden states differ from those of the examples alone" in reason


def test_a_lost_window_is_refused() -> None:
    """Masks would lift a window that the configuration names and this page does not know."""
    model = build("bert")
    assert way_for(model, causal=False).windows == {"": 0}
    model.config.local_attention = 5
    assert find_isolation(model, rows(7, 13, 9), causal=False)[0] is None
    model.config.local_attention = 50
    assert way_for(model, causal=False).windows == {"": 0}


def test_what_cannot_be_tried_is_said() -> None:
    model = build("llama")
    assert find_isolation(model, EXAMPLES[:1]) == (None, "one example needs no packing")
    model.forward = lambda input_ids: None
    assert find_isolation(model, EXAMPLES[:3]) == (None, "LlamaForCausalLM takes no position_ids")


def test_the_longest_example_is_tried_between_others() -> None:
    assert trial_rows([4]) == [0] and trial_rows([4, 9]) == [0, 1] and trial_rows([9, 4]) == [1, 0]
    assert trial_rows([7, 90, 30, 31, 2]) == [2, 1, 0]


def test_gradient_checkpointing_hears_positions_and_masks() -> None:
    model = build("gemma3_text", "sdpa")
    ways = (way_for(model), Isolation())
    parameters, losses = adapted(model), Losses(model, "causal")
    plain = gradients(parameters, [losses(pack(EXAMPLES, isolation=ways[0])).total])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for way in ways:
        assert_equal(gradients(parameters, [losses(pack(EXAMPLES, isolation=way)).total]), plain)
