"""The memory formula against measured peaks of a forward and backward pass, and its plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.train import Isolation, pack
from deltaw.train.batches import Batch, collate
from deltaw.train.data import Example
from deltaw.train.kept import frozen_values, kept_by, kept_in, stored_values
from deltaw.train.loss import Losses
from deltaw.train.memory import ADAM_BYTES, Workload, activation_bytes, block_bytes, memory_plan
from deltaw.train.shape import meta_model

VOCAB, BATCH, LENGTH = 1024, 4, 128
FACTOR = 1.25
"""The formula and the measured peak differ by at most this factor, either way."""

DECODER = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
           "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB, "max_position_embeddings": 256,
           "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256, "vocab_size": VOCAB, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
BERT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
        "vocab_size": VOCAB, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
DEBERTA = {**BERT, "relative_attention": True, "position_buckets": 64, "share_att_key": True,
           "norm_rel_ebd": "layer_norm", "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3}  # fmt: skip
CLASSIFIERS = ("bert", "deberta-v2")

SHAPES = {
    "llama": (DECODER, AutoModelForCausalLM, ["q_proj", "v_proj"]),
    "qwen3": (DECODER, AutoModelForCausalLM, ["q_proj", "v_proj"]),
    "gpt2": (GPT2, AutoModelForCausalLM, ["c_attn[q,v]"]),
    "bert": (BERT, AutoModelForSequenceClassification, ["query", "value"]),
    "deberta-v2": (DEBERTA, AutoModelForSequenceClassification, ["query_proj", "value_proj"]),
}


@dataclass
class Row:
    ids: list[int]
    weights: list[float]
    label: None = None
    types: None = None


def build(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    values, family, _ = SHAPES[kind]
    return family.from_config(AutoConfig.for_model(kind, **values, **more), dtype=dtype).train()


def peak_bytes(step: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = top = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    return top


def stepper(model: Any, kind: str, chunked: bool = True) -> Callable[[], None]:
    vocab = model.config.vocab_size
    ids = torch.randint(0, vocab, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = [Row(row, [0.0] + [1.0] * (LENGTH - 1)) for row in ids.tolist()]
    batch, losses = collate(rows, range(BATCH), 0), Losses(model, "classification" if kind in CLASSIFIERS else "causal")

    def step() -> None:
        if kind in CLASSIFIERS:
            loss = model(input_ids=ids, labels=ids[:, 0] % 2).loss
        elif chunked:
            loss = losses(batch).total
        else:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()

    return step


CASES = [
    ("llama", torch.float32, "all-linear", False),
    ("llama", torch.bfloat16, "all-linear", False),
    ("llama", torch.float32, "all-linear", True),
    ("qwen3", torch.float32, "all-linear", False),
    ("gpt2", torch.float32, "qv", False),
    ("gpt2", torch.float32, "all-linear", True),
    ("bert", torch.float32, "qv", False),
    ("bert", torch.float32, "all-linear", True),
    ("deberta-v2", torch.float32, "qv", False),
    ("deberta-v2", torch.float32, "all-linear", False),
    ("deberta-v2", torch.float32, "all-linear", True),
]


@pytest.mark.parametrize(("kind", "dtype", "targets", "full"), CASES)
def test_activations_match_the_measured_peak(kind: str, dtype: torch.dtype, targets: str, full: bool) -> None:
    torch.manual_seed(0)
    model = build(kind, dtype)
    config = dw.LoRAConfig(targets=SHAPES[kind][2] if targets == "qv" else targets, rank=8)
    plan = dw.plan(model, config)
    report = memory_plan(
        model,
        sites={site.path: site.rank for site in plan.sites},
        trained=plan.parameters,
        workload=Workload(batch=BATCH, length=LENGTH, dtype=dtype),
    )
    if not full:
        dw.attach(model, config)
    step = stepper(model, kind)
    step()
    model.zero_grad(set_to_none=False)
    side = report.full if full else report.lora
    ratio = (side.activations + side.logits) / peak_bytes(step)
    assert 1 / FACTOR < ratio < FACTOR


WIDE = 65_536
"""A vocabulary whose logits are most of a small model's memory; the loss takes 256 of 508 tokens at a time."""

HEADS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "frozen": ({"targets": ["q_proj"]}, False, True),
    "with an adapter": ({"targets": ["q_proj", "lm_head"]}, False, True),
    "trained copy": ({"targets": ["q_proj"], "train_also": ["lm_head"]}, False, True),
    "full fine-tuning": ({"targets": ["q_proj"]}, True, True),
    "all logits": ({"targets": ["q_proj"]}, False, False),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_matches_its_measured_peak(kind: str) -> None:
    """The logits here are most of the peak."""
    options, full, chunked = HEADS[kind]
    torch.manual_seed(0)
    values = {**DECODER, "vocab_size": WIDE, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))
    config = dw.LoRAConfig(rank=2, **options)
    plan = dw.plan(model, config)
    extra = [path for path, _ in plan.copies]
    report = memory_plan(
        model, sites=kept_by(plan), trained=plan.parameters, extra=extra,
        workload=Workload(batch=BATCH, length=LENGTH, loss_tokens=BATCH * (LENGTH - 1), chunked=chunked),
    )  # fmt: skip
    if not full:
        dw.attach(model, config)
    step = stepper(model, "llama", chunked)
    step()
    model.zero_grad(set_to_none=False)
    side = report.full if full else report.lora
    # a gradient is made before it is added to the one that is there
    fresh = WIDE * DECODER["hidden_size"] * 4 if extra else 0
    ratio = (side.activations + side.logits + fresh) / peak_bytes(step)
    assert 1 / 1.1 < ratio < 1.1


def test_masks_of_packed_rows_are_counted() -> None:
    """Positions alone let every layer keep a mask of its own; the masks made here are kept once."""
    torch.manual_seed(0)
    model, config, length = build("llama"), dw.LoRAConfig(targets="all-linear", rank=8), 1024
    plan = dw.plan(model, config)
    dw.attach(model, config)
    ids = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    row = [Example(ids=ids[at : at + 128], weights=[1.0] * 128) for at in range(0, length, 128)]
    planned, measured = [], []
    for way in (Isolation(), Isolation(windows={"": 0})):
        load = Workload(batch=1, length=length, mask_bytes=way.mask_bytes(length, 4, "sdpa"), chunked=False)
        side = memory_plan(model, sites=kept_by(plan), trained=plan.parameters, workload=load).lora
        planned.append(side.activations + side.logits)
        batch = pack(row, isolation=way)

        def step(batch: Batch = batch) -> None:
            logits = model(**batch.inputs()).logits[:, :-1].float()
            F.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten()).backward()

        step()
        model.zero_grad(set_to_none=False)
        measured.append(peak_bytes(step))
    for plan_bytes, peak in zip(planned, measured, strict=True):
        assert 1 / FACTOR < plan_bytes / peak < FACTOR
    assert 1 / FACTOR < (planned[0] - planned[1]) / (measured[0] - measured[1]) < FACTOR


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"variant": "dora"},
    "lora_fa": {"variant": "lora_fa"},
    "lora_bias": {"variant": "lora_bias"},
    "vera": {"variant": "vera", "rank": 64, "alpha": 64},
    "dora+lora_fa": {"variant": "dora,lora_fa"},
    "pissa": {"init": "pissa"},
    "dora+olora": {"variant": "dora", "init": "olora"},
    "lora_ga": {"init": "lora_ga"},
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lora_ga"])
def test_every_variant_matches_its_measured_peak_and_its_bytes(kind: str) -> None:
    torch.manual_seed(0)
    model = build("llama")
    config = dw.LoRAConfig(**{"targets": "all-linear", "rank": 8, **KINDS[kind]})
    plan = dw.plan(model, config)
    report = memory_plan(
        model, sites=kept_by(plan), trained=plan.parameters, frozen=frozen_values(plan),
        workload=Workload(batch=BATCH, length=LENGTH),
    )  # fmt: skip
    dw.attach(model, config)
    assert kept_in(model, "default") == kept_by(plan)
    buffers = [tensor for name, tensor in model.named_buffers() if ".lora." in name and tensor.is_floating_point()]
    assert frozen_values(plan) == sum(map(torch.Tensor.numel, buffers))
    assert plan.parameters == sum(parameter.numel() for _, parameter in dw.trainable(model))
    step = stepper(model, "llama")
    step()
    model.zero_grad(set_to_none=False)
    ratio = (report.lora.activations + report.lora.logits) / peak_bytes(step)
    assert 1 / 1.1 < ratio < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_without_values_is_counted_as_the_model_is(kind: str, tmp_path: Path) -> None:
    """The meta device is enough, for starts that need the weights or data too; the file holds what was counted."""
    config = dw.LoRAConfig(**{"targets": "all-linear", "rank": 8, **KINDS[kind]})
    with torch.device("meta"):
        shape = build("llama")
    model = build("llama")
    planned = dw.plan(shape, config)
    ids = torch.arange(32).view(2, 16)
    dw.attach(model, config, batches=[{"input_ids": ids, "labels": ids}] if kind == "lora_ga" else None)
    dw.save(model, tmp_path)
    assert stored_values(planned) == dw.Adapter.open(tmp_path).parameters


@pytest.mark.parametrize("shared", [True, False])
def test_rows_and_shared_weights_are_counted_as_they_are_stored(shared: bool, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **DECODER, tie_word_embeddings=True))
    more = {"targets": ["lm_head"]} if shared else {"train_rows": {"embed_tokens": [3, 9]}}
    config = dw.LoRAConfig(**{"targets": ["q_proj"], "rank": 2, "ties": "share", **more})
    planned = dw.plan(model, config)
    dw.attach(model, config)
    dw.save(model, tmp_path)
    assert stored_values(planned) == dw.Adapter.open(tmp_path).parameters
    assert planned.parameters == sum(parameter.numel() for _, parameter in dw.trainable(model))


def test_parts_are_plain_arithmetic() -> None:
    model = meta_model("llama-3.2-1b")
    work = Workload(batch=2, length=512, dtype=torch.bfloat16)
    plan = dw.plan(model, dw.LoRAConfig(rank=16))
    report = memory_plan(model, sites={s.path: s.rank for s in plan.sites}, trained=plan.parameters, workload=work)
    assert report.lora.weights == report.full.weights == 2 * 1_235_814_400
    assert report.lora.adapter == report.lora.gradients == 4 * plan.parameters
    assert report.lora.optimizer == ADAM_BYTES * plan.parameters
    # bfloat16 weights, a float32 master copy, bfloat16 gradients, two float32 moments: 16 bytes a parameter.
    full = report.full
    assert full.weights + full.adapter + full.gradients + full.optimizer == 16 * 1_235_814_400
    # 256 tokens at a time, in float32 and bfloat16; hidden states and their gradient for all
    assert report.lora.logits == 256 * 128256 * 6 + 2 * 2 * 1024 * 2048
    assert report.full.logits == report.lora.logits + 4 * 128256 * 2048
    parts = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
    assert report.lora.total == sum(getattr(report.lora, name) for name in parts)
    assert report.lora.activations < full.activations and report.lora.total < full.total / 3


def test_every_setting_of_the_workload_counts() -> None:
    model = meta_model("gpt2")
    sites = {f"transformer.h.{i}.attn.c_attn": 8 for i in range(12)}
    plain = Workload(batch=2, length=256)
    base = activation_bytes(model, sites, plain)
    assert activation_bytes(model, sites, Workload(batch=4, length=256)) == 2 * base
    assert activation_bytes(model, sites, Workload(batch=2, length=256, dtype=torch.bfloat16)) < base
    assert activation_bytes(model, sites, Workload(batch=2, length=256, checkpointing=True)) < base / 4
    matrix = activation_bytes(model, sites, Workload(batch=2, length=256, fused_attention=False))
    assert matrix - base == 12 * 3 * 4 * 2 * 12 * 256**2
    last = activation_bytes(model, {"transformer.h.11.attn.c_attn": 8}, plain)
    first = 4 * 512 * 768  # the input of the first adapted block, once
    assert 12 * (last - first) == base - first
    few = Workload(batch=2, length=256, loss_tokens=10)
    report = memory_plan(model, sites=sites, trained=1, workload=few)
    assert report.lora.logits == 10 * 50257 * 4 + 2 * 4 * 10 * 768
    whole = memory_plan(model, sites=sites, trained=1, workload=Workload(batch=2, length=256, chunked=False))
    assert whole.lora.logits == 512 * 50257 * 16
    assert activation_bytes(model, sites, plain, extra=["lm_head"]) == base + 4 * 512 * 768


def test_a_block_is_the_sum_of_its_parts() -> None:
    model, work = meta_model("gpt2").eval(), Workload(batch=2, length=256)
    parts, n = block_bytes(model, work), 4 * 512 * 768
    assert (parts.norms, parts.mlp, parts.dropout) == (2 * n, 16 * n, 0)
    assert parts.attention == 4 * n + 4 * 512 * 12 and parts.total == 22 * n + 4 * 512 * 12
    assert block_bytes(model.train(), work).dropout == 2 * n


def test_slices_keep_their_input_and_trained_rms_norms_what_they_scale() -> None:
    site = kept_by(dw.plan(meta_model("gpt2"), dw.LoRAConfig(targets=["c_attn[q,v]"], rank=4)))
    assert {(kept.outputs, kept.input, kept.recalled) for kept in site.values()} == {(0, True, False)}
    model, work = build("llama"), Workload(batch=1, length=8)
    norms = [f"model.layers.3.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
    counts = [activation_bytes(model, dict.fromkeys(norms[:n], 0), work) for n in (1, 2)]
    assert counts[1] - counts[0] == 4 * 8 * 128 == counts[0] - block_bytes(model, work).total


def test_dropout_of_the_base_counts_only_while_training() -> None:
    model = meta_model("gpt2")
    sites = {"transformer.h.0.attn.c_attn": 8}
    work = Workload(batch=1, length=64)
    trained = activation_bytes(model, sites, work)
    assert trained > activation_bytes(model.eval(), sites, work)


@pytest.mark.parametrize("name", ["batch", "length"])
def test_a_workload_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
        Workload(**{name: 0})


def test_the_table_has_both_columns() -> None:
    model = meta_model("gpt2")
    text = str(memory_plan(model, sites={"transformer.h.0.attn.c_attn": 8}, trained=10, workload=Workload()))
    assert "LoRA" in text and "full" in text
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "weights", "adapter", "gradients", "optimizer", "activations", "logits", "total"]  # fmt: skip
