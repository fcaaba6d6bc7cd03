"""Fidelity of a merge: faithful ones pass in every dtype, sabotaged ones do not, and the model is left as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import deltaw as dw
from builders import bert, gpt2, llama, lookup
from deltaw.errors import FaithError, StateError
from deltaw.factors import Factors
from deltaw.ship.fidelity import FidelityReport, SiteFidelity, fidelity, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def wear(model: nn.Module, scale: float = 0.5, **config: Any) -> nn.Module:
    dw.attach(model, dw.LoRAConfig(**{"rank": 3, "alpha": 5, "seed": 0, **config}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in dw.trainable(model):
            if name.endswith(("lora_A", "lora_B", "bias")) or ".module." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def probes(count: int = 32) -> list[torch.Tensor]:
    return [torch.randint(0, count, (2, 12), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def sabotaged(model: nn.Module, factor: float) -> None:
    for module in model.modules():
        if isinstance(module, Factors):
            module.part = dataclasses.replace(module.part, scaling=module.part.scaling * factor)


MODELS: dict[str, Any] = {
    "llama": lambda: wear(llama()),
    "gpt2": lambda: wear(gpt2()),
    "slices": lambda: wear(gpt2(), targets=["c_attn[q,v]"]),
    "biases": lambda: wear(gpt2(), bias="lora_only"),
    "head": lambda: wear(llama(), targets=["q_proj"], train_also=["lm_head"]),
    "embedding": lambda: wear(llama(), targets=["embed_tokens", "q_proj"]),
    "shared": lambda: wear(llama(tied=True), targets=["embed_tokens", "q_proj"], ties="share"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_our_own_merge_is_faithful(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    report = fidelity(model, probes())
    assert report.faithful, str(report)
    assert report.dtype == dtype and report.tokens == 48 and report.effect > 0.01
    assert len(report.sites) >= 2 and all(site.bound > 0 for site in report.sites)


@pytest.mark.parametrize("name", ["llama", "gpt2", "slices", "shared"])
def test_a_scaling_one_percent_off_is_found(name: str) -> None:
    model = MODELS[name]()
    taken = reference(model, probes())
    sabotaged(model, 1.01)
    dw.merge(model)
    report = taken.judge(model)
    assert not report.faithful and report.unfaithful_sites
    with pytest.raises(FaithError, match="does not reproduce"):
        report.require("a sabotaged merge")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_merge_into_another_base_is_found(dtype: torch.dtype) -> None:
    model = wear(llama(), scale=0.1).to(dtype)
    taken = reference(model, probes())
    other = dict(model.named_modules())["model.layers.1.mlp.up_proj"]
    with torch.no_grad():
        other.weight.mul_(1.5)
    dw.merge(model)
    report = taken.judge(model)
    assert report.unfaithful_sites[0].path == "model.layers.1.mlp.up_proj"


def test_a_merge_that_did_nothing_is_found() -> None:
    model = wear(llama())
    taken = reference(model, probes())
    dw.detach(model)
    report = taken.judge(model)
    assert not report.faithful and report.logit_error == pytest.approx(report.effect)


def test_the_model_is_as_it_was() -> None:
    model = wear(llama()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objects = {key: id(value) for key, value in model.named_parameters()}
    random = torch.get_rng_state()
    fidelity(model, probes())
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    assert objects == {key: id(value) for key, value in model.named_parameters()}
    assert all(module.training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_is_not_judged_and_plain_models_work() -> None:
    ids = probes()[0]
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    report = fidelity(wear(llama()), [{"input_ids": ids, "attention_mask": mask}])
    assert report.tokens == 18 and report.faithful
    assert fidelity(wear(lookup(), targets=["head"]), probes(10)).faithful


def test_a_mix_is_judged_as_the_mix_it_is() -> None:
    model = wear(llama())
    dw.attach(model, dw.LoRAConfig(rank=2, seed=1), name="other")
    dw.activate(model, {"default": 0.5, "other": 2.0})
    assert fidelity(model, probes()).faithful


def test_another_dtype_is_bounded_by_what_that_dtype_costs() -> None:
    model = wear(llama())
    taken = reference(model, probes(), dtype=torch.bfloat16)
    dw.merge(model)
    narrow = llama().to(torch.bfloat16)
    narrow.load_state_dict(model.state_dict())
    report = taken.judge(narrow)
    assert report.faithful and report.logit_error > 1e-4
    assert not dataclasses.replace(report, tolerance=1e-6, logit_bound=1e-6).faithful


def test_what_cannot_be_judged_is_refused() -> None:
    model = wear(llama())
    with pytest.raises(StateError, match="cannot be judged"):
        reference(model, [])
    dw.activate(model, None)
    with pytest.raises(StateError, match="cannot be judged"):
        reference(model, probes())


def report(**changes: Any) -> FidelityReport:
    site = SiteFidelity(path="layers.0", error=1e-7, bound=1e-6)
    values: dict[str, Any] = {
        "dtype": torch.float32, "sites": (site,), "logit_error": 1e-6, "logit_bound": 1e-5, "kl_mean": 1e-12,
        "kl_max": 1e-11, "kl_bound": 1e-10, "tokens": 10, "disagreements": 0, "undecided": 1, "effect": 0.1,
    }  # fmt: skip
    return FidelityReport(**{**values, **changes})


def failures() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"logit_error": 1e-4}, "logit error"
    yield {"logit_error": float("nan")}, "logit error"
    yield {"kl_mean": 1e-9}, "mean KL"
    yield {"disagreements": 2}, "2 of 10 greedy tokens"
    yield {"sites": (SiteFidelity(path="layers.3", error=2e-6, bound=1e-6),)}, "'layers.3'"


@pytest.mark.parametrize(("changes", "said"), failures())
def test_each_bound_is_judged_alone(changes: dict[str, Any], said: str) -> None:
    assert report().faithful and "merge: faithful" in str(report())
    found = report(**changes)
    assert not found.faithful and len(found.failures) == 1 and said in found.failures[0]
    assert "NOT FAITHFUL" in str(found)


def test_a_tolerance_replaces_the_bounds() -> None:
    loose = report(logit_error=1e-3, logit_bound=1e-2, kl_mean=1.0, disagreements=3, tolerance=1e-2)
    assert loose.faithful
    assert not report(logit_error=1e-1, logit_bound=1e-2, tolerance=1e-2).faithful


def test_an_effect_lost_in_rounding_is_said() -> None:
    assert "merge in float32" in str(report(effect=1e-6, logit_error=1e-6))
    assert "changes no output" in str(report(effect=0.0))


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"variant": "dora"},
    "vera": {"variant": "vera", "rank": 8, "alpha": 8},
    "together": {"variant": "dora,lora_fa,lora_bias", "init": "pissa", "targets": ["query", "value"]},
    "lora_bias": {"variant": "lora_bias", "targets": ["query", "value"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_of_every_variant_is_judged_and_a_wrong_one_found(kind: str) -> None:
    model = bert()
    dw.attach(model, dw.LoRAConfig(**{"targets": "all-linear", "rank": 4, "seed": 0, **KINDS[kind]}))
    shake(model)
    probes = [torch.arange(12).view(1, 12)]
    assert fidelity(model, probes).faithful
    taken = reference(model, probes)
    dw.merge(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.query.weight.mul_(1.001)
    assert "query" in taken.judge(model).failures[0] or not taken.judge(model).faithful


def test_a_weight_that_others_read_is_judged_without_its_update_twice() -> None:
    model = llama(tied=True)
    dw.attach(model, dw.LoRAConfig(targets=["lm_head.weight"], rank=4, ties="share", seed=0))
    shake(model)
    report = fidelity(model, [torch.arange(12).view(1, 12)])
    assert report.faithful and report.logit_bound < 1e-4
    assert {site.path for site in report.sites} == {"lm_head", "model.embed_tokens"}


def test_trained_rows_are_judged_at_the_table_and_at_the_head() -> None:
    model = llama(tied=True)
    dw.attach(model, dw.LoRAConfig(targets=["q_proj"], rank=4, ties="share", train_rows={"embed_tokens": [3, 5]}))
    shake(model)
    report = fidelity(model, [torch.arange(12).view(1, 12)])
    assert report.faithful and report.effect > 1e-3


def shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
