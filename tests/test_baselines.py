"""Every baseline on every family: start, gradients, files, merge, detach; one contract over the registry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw as dw
from baseline_models import CAUSAL, LAYERS, MODELS, WIDTH, ids, make, method, shake, snapshot
from deltaw import baselines as bl
from deltaw.errors import CheckpointError, ConfigError, ModelError, StateError

NAMES = tuple(bl.BASELINES)
EXACT = ("full", "top-blocks", "bias", "adapter-h", "adapter-l", "adapter-p", "adapter-d")
"""Those that start as the base, bit for bit."""
MERGING = ("full", "top-blocks", "bias")
every = pytest.mark.parametrize("name", NAMES)
families = pytest.mark.parametrize("family", tuple(MODELS))


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> torch.Tensor:
    return model(**({"input_ids": ids()} | inputs)).logits


@every
@families
def test_start_disabled_and_detach(name: str, family: str) -> None:
    """Zero effect where it is promised; the base alone in a block; the same objects and bits after detach."""
    model = make(family)
    before, plain, objects = snapshot(model), logits(model), dict(model.named_parameters())
    flags = {key: p.requires_grad for key, p in objects.items()}
    classes = [type(module) for module in model.modules()]
    report = bl.attach(model, method(name))
    assert torch.equal(logits(model), plain) == (name in EXACT), report.notes
    assert set(before) <= set(model.state_dict())
    shake(model)
    assert not torch.equal(logits(model), plain)
    with bl.disabled(model), bl.disabled(model):
        assert torch.equal(logits(model), plain)
    moved = logits(model)
    assert not torch.equal(moved, plain)
    bl.detach(model)
    after = snapshot(model)
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert {key: id(p) for key, p in model.named_parameters()} == {key: id(p) for key, p in objects.items()}
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(logits(model), plain) and bl.attached(model) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every
@families
def test_gradient_reaches_exactly_what_is_trained(name: str, family: str) -> None:
    model = make(family)
    # smooth: with few rows a ReLU may be off everywhere
    bl.attach(model, method(name, **({"activation": "gelu"} if name.startswith("adapter") else {})))
    shake(model)
    model.train()
    trained = dict(bl.trainable(model))
    out = model(input_ids=ids(), **({"labels": ids()} if family in CAUSAL else {"labels": torch.tensor([0, 2])}))
    out.loss.backward()
    for key, parameter in model.named_parameters():
        if key not in trained:
            assert parameter.grad is None, key
            continue
        # tables of positions, types and padding have rows that no input reads; the gradient of a key's bias is zero
        assert parameter.grad is not None, key
        assert name in MERGING or parameter.grad.abs().sum() > 0, key
    assert sum(p.numel() for p in trained.values()) == bl.detach(model).parameters


@every
@families
def test_round_trip(name: str, family: str, tmp_path: Path) -> None:
    """The file holds the method's own tensors and the head; a fresh model with it says the same, bit for bit."""
    head = () if family in CAUSAL or name.startswith("lora+") or name == "full" else ("classifier",)
    model = make(family)
    report = bl.attach(model, method(name, **({"train_also": head} if head else {})))
    assert (report.head > 0) == bool(head)
    shake(model)
    expected, trained = logits(model), dict(bl.trainable(model))
    saved = bl.save(model, tmp_path)
    stored = load_file(str(tmp_path / "baseline_model.safetensors"))
    own = {key for key in trained if ".lora." not in key}
    assert set(stored) == own and saved.tensors == len(trained)
    assert bl.is_baseline(tmp_path) and (tmp_path / "lora").is_dir() == name.startswith("lora+")
    other = make(family)
    loaded = bl.load(other, tmp_path)
    assert loaded.tensors == len(trained) and not bl.trainable(other)
    assert torch.equal(logits(other), expected)
    assert bl.attached(other).name == name  # type: ignore[union-attr]
    first = (tmp_path / "baseline_model.safetensors").read_bytes()
    again = make(family)
    bl.load(again, tmp_path, trainable=True)
    assert {key for key, _ in bl.trainable(again)} == set(trained)
    bl.save(again, tmp_path / "again")
    assert (tmp_path / "again" / "baseline_model.safetensors").read_bytes() == first


@every
@families
def test_merge_where_it_can_and_refusal_where_not(name: str, family: str) -> None:
    model = make(family)
    before = snapshot(model)
    bl.attach(model, method(name))
    shake(model)
    worn = logits(model)
    if name not in MERGING:
        with pytest.raises(StateError, match=f"{name} cannot be merged".replace("+", r"\+")):
            bl.merge(model)
        assert torch.equal(logits(model), worn)
        return
    bl.merge(model)
    assert torch.equal(logits(model), worn) and list(model.state_dict()) == list(before)
    for verb in (bl.merge, bl.trainable, bl.detach):
        with pytest.raises(StateError, match="merged"):
            verb(model)
    fresh = make(family)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), worn)
    bl.unmerge(model)
    assert torch.equal(logits(model), worn)
    bl.detach(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every
def test_copies_are_independent(name: str) -> None:
    """A deep copy has hooks and parameters of its own."""
    model = make("gpt2")
    bl.attach(model, method(name))
    shake(model)
    expected = logits(model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), expected)
    shake(other, seed=9)
    assert torch.equal(logits(model), expected) and not torch.equal(logits(other), expected)
    bl.detach(other)
    assert torch.equal(logits(model), expected) and torch.equal(logits(other), logits(make("gpt2")))


@every
def test_a_base_state_dict_still_loads(name: str) -> None:
    if name in MERGING or name.startswith("lora+"):
        pytest.skip("the base's keys are what is trained, or LoRA's own tests say it")
    model = make("llama")
    base = snapshot(model)
    bl.attach(model, method(name))
    shake(model)
    expected = logits(model)
    model.load_state_dict(base)
    assert torch.equal(logits(model), expected)


@every
def test_half_precision_base(name: str) -> None:
    """Pieces stay in float32 beside a bfloat16 base, whose activations keep their dtype; copies have the base's."""
    model = make("llama").to(torch.bfloat16)
    bl.attach(model, method(name))
    out = model(input_ids=ids(), labels=ids())
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    for key, parameter in bl.trainable(model):
        assert parameter.dtype == (torch.bfloat16 if name in MERGING else torch.float32), key
        assert parameter.grad is not None


@every
def test_the_seed_alone_decides_the_start(name: str) -> None:
    torch.manual_seed(11)
    first = make("gpt2")
    state = torch.get_rng_state()
    bl.attach(first, method(name))
    assert torch.equal(torch.get_rng_state(), state)
    second = make("gpt2")
    torch.manual_seed(12)
    bl.attach(second, method(name))
    for (key, a), (_, b) in zip(bl.trainable(first), bl.trainable(second), strict=True):
        assert torch.equal(a, b), key


def test_shared_weights_stay_shared() -> None:
    """GPT-2's head is its embedding: one copy is trained and stands in both places."""
    model = make("gpt2")
    report = bl.attach(model, bl.Full())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert report.parameters == sum(p.numel() for p in model.parameters()) == report.total
    bl.detach(model)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_dropped_layers_have_no_adapter() -> None:
    counts = []
    for drop in range(LAYERS):
        model = make("gpt2")
        counts.append(bl.attach(model, bl.AdapterD(bottleneck=4, drop_layers=drop)).parameters)
        first = min(int(key.split(".")[2]) for key, _ in bl.trainable(model))
        assert first == drop
    each = 2 * WIDTH * 4 + 4 + WIDTH
    assert counts == [each * (LAYERS - drop) for drop in range(LAYERS)]
    houlsby = bl.attach(make("gpt2"), bl.AdapterD(bottleneck=4, drop_layers=1, placement="h"))
    assert houlsby.parameters == 2 * each * (LAYERS - 1)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_an_adapter_is_its_equation(activation: str) -> None:
    """In float64, written out: behind GPT-2's MLP, y + up act(down LN(y))."""
    model = make("gpt2").double()
    bl.attach(model, bl.AdapterL(bottleneck=4, activation=activation))
    shake(model)
    mlp = model.transformer.h[1].mlp
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    piece = mlp.baseline.double()
    with torch.no_grad():
        whole = mlp(x)
        piece.off = True
        y = mlp(x)
    read = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    inner = (read * piece.gain + piece.shift) @ piece.down.T + piece.down_bias
    acts = {"relu": inner.clamp(min=0), "gelu": inner * 0.5 * (1 + torch.erf(inner / 2**0.5)),
            "silu": inner * torch.sigmoid(inner)}  # fmt: skip
    assert torch.allclose(whole, y + acts[activation] @ piece.up.T + piece.up_bias, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta"])
def test_a_bert_adapter_stands_before_the_residual_sum(family: str) -> None:
    """A large output bias of the adapter behind attention reaches the LayerNorm behind the sum, which takes it out."""
    model = make(family)
    bl.attach(model, bl.AdapterH(bottleneck=4))
    plain = logits(model)
    pieces = [key for key, _ in bl.trainable(model) if key.endswith("up_bias")]
    assert len(pieces) == 2 * LAYERS and all("dropout.baseline" in key for key in pieces)
    with torch.no_grad():
        for key, parameter in bl.trainable(model):
            if key.endswith("up_bias"):
                # the same for all features: a LayerNorm does not see it
                parameter.fill_(7.0)
    assert torch.allclose(logits(model), plain, atol=1e-4)


def test_unknown_models_and_settings_are_refused_by_name() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no list of blocks"):
        bl.attach(net, bl.AdapterH())
    with pytest.raises(ModelError, match="no bias to train"):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                             num_attention_heads=1, max_position_embeddings=8)  # fmt: skip
        bl.attach(LlamaForCausalLM(config), bl.BiasOnly())
    model = make("gpt2")
    for wrong, text in (
        (lambda: bl.AdapterH(bottleneck=0), "bottleneck cannot be used"),
        (lambda: bl.AdapterH(activation="tanh"), "activation is not known"),
        (lambda: bl.AdapterD(placement="x"), "placement is not known"),
        (lambda: bl.PrefixEmbedding(prefix_length=0), "no position to train"),
        (lambda: bl.PrefixLayer(prefix_length=-1), "prefix_length cannot be used"),
        (lambda: bl.LoRAPrefixLayer(train_also=("x",)), "beside a LoRA configuration"),
        (lambda: bl.attach(model, bl.TopBlocks(blocks=4)), "fewer blocks"),
        (lambda: bl.attach(model, bl.AdapterD(drop_layers=3)), "no block keeps an adapter"),
        (lambda: bl.attach(model, bl.PrefixLayer(prefix_length=48)), "fill the model"),
    ):
        with pytest.raises(ConfigError, match=text):
            wrong()
    with pytest.raises(ModelError, match="train_also names nothing"):
        bl.attach(model, bl.AdapterP(train_also=("scorer",)))
    assert bl.attached(model) is None and all(p.requires_grad for p in model.parameters())


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="single stack of blocks"):
        bl.attach(T5ForConditionalGeneration(config), bl.AdapterH())


def test_one_thing_is_worn_at_a_time() -> None:
    model = make("gpt2")
    bl.attach(model, bl.AdapterH(bottleneck=2))
    with pytest.raises(StateError, match="wears something already"):
        bl.attach(model, bl.AdapterP())
    bl.detach(model)
    with pytest.raises(StateError, match="wears no baseline"):
        bl.detach(model)
    dw.attach(model, dw.LoRAConfig(rank=2, targets=["c_fc"]))
    with pytest.raises(StateError, match="wears something already"):
        bl.attach(model, bl.AdapterP())


def test_save_pretrained_is_refused_where_it_would_lose_pieces(tmp_path: Path) -> None:
    model = make("gpt2")
    bl.attach(model, bl.AdapterH(bottleneck=2))
    with pytest.raises(StateError, match="save_pretrained does not know"):
        model.save_pretrained(tmp_path)
    bl.detach(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_files_that_do_not_fit_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    model = make("gpt2")
    bl.attach(model, bl.AdapterH(bottleneck=4))
    bl.save(model, tmp_path)
    file, config = tmp_path / "baseline_model.safetensors", tmp_path / "baseline_config.json"
    whole, settings = load_file(str(file)), json.loads(config.read_text())
    name = "transformer.h.0.mlp.baseline.up"

    def refused(match: str) -> None:
        other = make("gpt2")
        with pytest.raises(CheckpointError, match=match):
            bl.load(other, tmp_path)
        assert bl.attached(other) is None and not hasattr(other.transformer.h[0].mlp, "baseline")

    save_file({key: tensor for key, tensor in whole.items() if key != name}, str(file))
    refused(f"{name} is absent")
    save_file({**whole, "x": torch.zeros(1)}, str(file))
    refused("x lands nowhere")
    save_file({**whole, name: torch.zeros(2)}, str(file))
    refused(r"shape \(2,\)")
    file.write_bytes(b"cut")
    refused("cannot be read")
    save_file(whole, str(file))
    for change in ({"method": "adapter-x"}, {"options": {"bottlenek": 4}}, {"version": 9}):
        config.write_text(json.dumps({**settings, **change}))
        refused("not known|cannot be read")
    config.write_text(json.dumps(settings))
    strange = make("gpt2", spread=3.0)
    with pytest.raises(CheckpointError, match="other values than the base"):
        bl.load(strange, tmp_path)
    assert bl.load(strange, tmp_path, allow_other_base=True).tensors == len(whole)
    with pytest.raises(CheckpointError, match="this is a baseline and no LoRA adapter"):
        dw.Adapter.open(tmp_path)


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = make("gpt2")
    bl.attach(model, bl.AdapterP(bottleneck=2))
    with torch.no_grad():
        bl.trainable(model)[0][1].fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        bl.save(model, tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_report_counts_the_head_apart() -> None:
    model = make("roberta")
    report = bl.attach(model, bl.AdapterP(bottleneck=4, train_also=("classifier",)))
    head = sum(p.numel() for p in model.classifier.parameters())
    assert (report.head, report.parameters) == (head, LAYERS * (2 * WIDTH * 4 + 4 + WIDTH))
    text = str(report)
    assert "adapter-p" in text and f"{report.parameters:,}" in text and "3 x (2 x 16 x 4 + 4 + 16)" in text
    lora = dw.LoRAConfig(rank=2, targets=["query"], train_also=["classifier.out_proj"])
    beside = bl.attach(make("roberta"), bl.LoRAPrefixEmbedding(prefix_length=2, lora=lora))
    assert beside.head == 3 * WIDTH + 3 and beside.parameters == 2 * WIDTH + LAYERS * 2 * 2 * WIDTH
