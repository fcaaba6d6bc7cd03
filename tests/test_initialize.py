"""First values: distribution, seeds, independence of order and of the global generator."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
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


def request(seed: int = 3, **changes: Any) -> Request:
    """A request with everything that any initialization may ask for."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 400, generator=generator)
    vectors = torch.linalg.qr(torch.randn(400, 16, generator=generator)).Q.t()
    data = vectors if changes.get("init") == "eva" else torch.randn(300, 400, generator=generator)
    return dataclasses.replace(LARGE, seed=seed, weight=lambda: weight, data=data, **changes)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_fp32_and_the_same_again_from_the_same_seed(name: str) -> None:
    before = torch.get_rng_state()
    draw, asked = INITIALIZATIONS[name].draw, request(init=name)
    first, again = draw(asked), draw(asked)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].dtype == first[1].dtype == torch.float32
    assert first[0].shape == (16, 400) and first[1].shape == (300, 16)
    seeded = name in ("kaiming", "gaussian", "orthogonal")
    assert torch.equal(first[0], draw(request(seed=4, init=name))[0]) != seeded or name == "pissa_fast"
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("scaling", [2.0, 0.3, -1.5])
@pytest.mark.parametrize("name", ["pissa", "pissa_fast"])
def test_pissa_is_the_best_approximation_of_the_weight(name: str, scaling: float) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, 16, generator=generator)).Q for n in (300, 400))
    weight = left @ torch.diag(torch.linspace(9, 1, 16)) @ right.t() + 1e-3 * torch.randn(300, 400, generator=generator)
    asked = dataclasses.replace(LARGE, rank=4, scaling=scaling, weight=lambda: weight, init=name)
    lora_A, lora_B = INITIALIZATIONS[name].draw(asked)
    U, S, Vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    best = (U[:, :4] * S[:4]) @ Vh[:4]
    got, exact = scaling * (lora_B.double() @ lora_A.double()).numpy(), weight.double().numpy()
    least = np.linalg.norm(exact - best)
    assert np.linalg.norm(exact - got) <= least * (1 + 1e-5)
    np.testing.assert_allclose(got, best, atol=1e-4 if name == "pissa" else 2e-3)
    np.testing.assert_allclose(lora_A.norm(dim=1).numpy(), lora_B.norm(dim=0).numpy(), rtol=1e-4)


def test_olora_is_the_beginning_of_a_qr_decomposition() -> None:
    asked = request(init="olora")
    lora_A, lora_B = INITIALIZATIONS["olora"].draw(asked)
    np.testing.assert_allclose((lora_B.t() @ lora_B).numpy(), np.eye(16), atol=1e-5)
    np.testing.assert_allclose((lora_B @ lora_A)[:, :16].numpy(), asked.matrix()[:, :16].numpy(), atol=1e-4)


def test_orthogonal_halves_cancel_and_both_are_there() -> None:
    lora_A, lora_B = INITIALIZATIONS["orthogonal"].draw(LARGE)
    assert (lora_B @ lora_A).abs().max() < 1e-6 * lora_A.norm() * lora_B.norm()
    assert lora_A.std().item() == pytest.approx(0.1 / math.sqrt(2), rel=0.1)
    assert lora_B.std().item() == pytest.approx(0.1 / math.sqrt(2), rel=0.1)


def test_lora_ga_steps_along_the_gradient() -> None:
    """One step of B and A from these factors moves W along the gradient's strongest directions on both sides."""
    asked = request(init="lora_ga")
    lora_A, lora_B = INITIALIZATIONS["lora_ga"].draw(asked)
    gradient = asked.gathered().double()
    U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
    step = (gradient @ lora_A.double().t()) @ lora_A.double() + lora_B.double() @ (lora_B.double().t() @ gradient)
    size = (300**0.25 / 4) ** 2
    expected = size * (gradient @ Vh[:16].t() @ Vh[:16] + U[:, 16:32] @ U[:, 16:32].t() @ gradient)
    np.testing.assert_allclose(step.numpy(), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("init", "rank", "words"),
    [
        ("pissa", 301, "at most 300"),
        ("lora_ga", 151, "at most 150"),
        ("eva", 17, "at most 16"),
        ("orthogonal", 3, "even"),
    ],
)
def test_ranks_that_an_initialization_cannot_take_are_refused(init: str, rank: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        INITIALIZATIONS[init].draw(request(init=init, rank=rank))


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
