"""What a step keeps for its backward beyond the frozen model's own: distinct storages, counted and not timed.

Of each site it is the product with A, of R numbers a token; fp32 sites whose update is added to the weight first have
none, and with few rows and small layers, as here, that is all of them where nothing drops out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from saved_bytes import saved_bytes

transformers = pytest.importorskip("transformers")
TOKENS, WIDTH, LAYERS, RANK = 128, 64, 2, 4


def llama(attention: str) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=160, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(attention: str) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=100, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, attn_implementation=attention, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def roberta(attention: str) -> nn.Module:
    config = transformers.RobertaConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=160, vocab_size=100,
        max_position_embeddings=70, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.RobertaForMaskedLM(config)


MODELS = {"llama": llama, "gpt2": gpt2, "roberta": roberta}


def beyond_floor(base: nn.Module, **config: Any) -> int:
    """Bytes kept beyond those of the frozen model, whose embeddings' output needs a gradient in both."""
    ids = torch.randint(3, 100, (2, TOKENS // 2), generator=torch.Generator().manual_seed(0))

    def run(model: Any) -> Callable[[], Tensor]:
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        return lambda: model(inputs_embeds=embedded * 1).logits

    frozen = copy.deepcopy(base).requires_grad_(False)
    floor = saved_bytes(frozen, run(frozen))
    builders.attach(base, rank=RANK, **config)
    return saved_bytes(base, run(base)) - floor


def products(model: nn.Module, dtype: torch.dtype, dropout: float) -> int:
    """Bytes of the products with A of all sites."""
    if dtype == torch.float32 and not dropout:
        return 0
    return len(dw.trainable(model)) // 2 * TOKENS * RANK * dtype.itemsize


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_keeps_the_frozen_models_bytes_and_rank_space(name: str, dtype: torch.dtype, dropout: float) -> None:
    """Norms, gates, activations and fused attention keep what the layers' inputs are made from."""
    base = MODELS[name]("sdpa").to(dtype).train()
    assert beyond_floor(base, targets="all-linear", dropout=dropout) == products(base, dtype, dropout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_eager_attention_leaves_one_input_a_block(name: str, dtype: torch.dtype) -> None:
    base = MODELS[name]("eager").to(dtype).train()
    inputs = LAYERS * TOKENS * WIDTH * dtype.itemsize
    assert beyond_floor(base, targets="all-linear") == inputs + products(base, dtype, 0.0)


def test_the_count_sees_a_kept_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without recipes every distinct input is kept, and no more than that."""
    from deltaw import recall

    monkeypatch.setattr(recall, "_find", lambda x: None)
    inputs = 2 * WIDTH + 160  # two norms and the inner width; attention keeps its own output
    assert beyond_floor(llama("sdpa").train(), targets="all-linear") == 4 * LAYERS * TOKENS * inputs


def test_the_first_adapted_block_needs_no_gradient_of_its_input() -> None:
    model = llama("sdpa").train()
    builders.attach(model, targets=["layers.1.self_attn.q_proj"], rank=4)
    ids = torch.randint(3, 100, (2, TOKENS // 2), generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    model.model.layers[0].register_forward_hook(lambda *a: seen.append(a[2]))
    model(input_ids=ids)
    assert not seen[0].requires_grad
    assert all(name.startswith("model.layers.1.") for name, _ in dw.trainable(model))
