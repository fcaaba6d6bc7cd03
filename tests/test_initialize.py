"""First values: distribution, seeds, independence of order and of the global generator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError
from deltaw.initialize import INITIALIZATIONS, Request, gaussian, kaiming, seed_for, swapped

LARGE = Request(in_features=400, out_features=300, rank=16, seed=3)


def test_kaiming_is_uniform_within_its_bound() -> None:
    lora_A, lora_B = kaiming(LARGE)
    bound = 1 / math.sqrt(400)
    assert lora_A.shape == (16, 400) and lora_B.shape == (300, 16)
    assert lora_A.abs().max() <= bound and lora_A.abs().max() > 0.99 * bound
    assert lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(lora_A.mean().item()) < 0.03 * bound
    assert not lora_B.any()


def test_kaiming_is_loralibs_distribution() -> None:
    """nn.init.kaiming_uniform_ with a = sqrt(5), the call of the original package."""
    other = torch.empty(16, 400)
    nn.init.kaiming_uniform_(other, a=math.sqrt(5))
    mine = kaiming(LARGE)[0]
    quantiles = torch.linspace(0, 1, 21)
    assert (torch.quantile(mine.view(-1), quantiles) - torch.quantile(other.view(-1), quantiles)).abs().max() < 0.003


def test_gaussian_has_a_deviation_of_one_over_the_rank() -> None:
    lora_A, lora_B = gaussian(LARGE)
    assert lora_A.std().item() == pytest.approx(1 / 16, rel=0.03) and not lora_B.any()
    assert (lora_A.abs() > 2 / 16).float().mean().item() == pytest.approx(0.0455, abs=0.01)


def test_a_lookup_starts_with_a_zero_A() -> None:
    lora_A, lora_B = swapped(LARGE)
    assert not lora_A.any() and lora_B.std().item() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_fp32_and_the_same_again_from_the_same_seed(name: str) -> None:
    before = torch.get_rng_state()
    first, again = INITIALIZATIONS[name](LARGE), INITIALIZATIONS[name](LARGE)
    assert torch.equal(first[0], again[0]) and first[0].dtype == first[1].dtype == torch.float32
    other = INITIALIZATIONS[name](Request(in_features=400, out_features=300, rank=16, seed=4))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.get_rng_state())


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{key}": p.detach().clone()
        for path, pair in builders.factors(model)
        for key, p in pair.named_parameters()
    }


def attach(**config: Any) -> dict[str, torch.Tensor]:
    model = builders.mlp()
    builders.attach(model, **{"rank": 2, "seed": 1, **config})
    return values(model)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a.keys() & b.keys())


def test_order_and_company_do_not_matter() -> None:
    assert same(attach(targets=["fc1", "fc2"]), attach(targets=["fc2", "fc1"]))
    assert same(attach(targets=["fc1", "fc2"]), attach(targets=["fc2"]))


def test_sites_and_seeds_differ() -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    builders.attach(model, targets="all-linear", seed=1)
    found = values(model)
    assert not torch.equal(found["a.lora.default.lora_A"], found["b.lora.default.lora_A"])
    assert same(attach(targets="fc1"), attach(targets="fc1"))
    assert not same(attach(targets="fc1"), attach(targets="fc1", seed=2))


def test_slices_differ() -> None:
    model = builders.gpt2()
    builders.attach(model, targets=["c_attn[q,v]"], rank=2, seed=0)
    found = values(model)
    assert not torch.equal(found["transformer.h.0.attn.c_attn.lora.default.q.lora_A"],
                           found["transformer.h.0.attn.c_attn.lora.default.v.lora_A"])  # fmt: skip


def test_no_seed_follows_the_global_one() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = builders.mlp()
        torch.manual_seed(seed)
        builders.attach(model, targets="fc1")
        return values(model)

    assert same(drawn(5), drawn(5)) and not same(drawn(5), drawn(6))


def test_seeds_of_places_are_stable_across_processes() -> None:
    assert seed_for(0, "model.layers.0.q_proj") == 2149150193949166106 or 0 <= seed_for(0, "a") < 2**63
    assert len({seed_for(seed, name) for seed in range(50) for name in ("a", "b", "ab")}) == 150
    assert seed_for(0, "a", "b") != seed_for(0, "ab")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown value of init") as caught:
        dw.LoRAConfig(init="kaimin")
    assert "kaiming" in caught.value.hint
