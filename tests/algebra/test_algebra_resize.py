"""Resizing against the dense decomposition: the nearest update of each rank, and reports that are measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from values import MODULES, PREFIX, adapter, biases, deltas

import deltaw as dw
from deltaw.algebra import resize
from deltaw.algebra.factored import svd
from deltaw.errors import CheckpointError, ConfigError

ALL = tuple(MODULES)


def blocks(path: str, delta: np.ndarray) -> list[np.ndarray]:
    """A convolution's groups are cut one by one."""
    return np.split(delta, MODULES[path][2])


def optimum(path: str, delta: np.ndarray, rank: int) -> float:
    """Norm of what the nearest update of a rank misses, from the dense matrix."""
    lost = 0.0
    for block in blocks(path, delta):
        values = np.linalg.svd(block, compute_uv=False)
        lost += float((values[rank // MODULES[path][2] :] ** 2).sum())
    return math.sqrt(lost)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), rank=st.integers(1, 6), alpha=st.floats(-9, 9).filter(lambda x: abs(x) > 0.1),
    stabilized=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_a_rank_gives_the_dense_optimum(
    seed: int, rank: int, alpha: float, stabilized: bool, dtype: torch.dtype
) -> None:
    a = adapter(ALL, 6, alpha, seed, dtype, use_rslora=stabilized)
    report = resize(a, rank=rank)
    before, after = deltas(a), deltas(report.adapter)
    for module in report.modules:
        old, new = before[module.path], after[module.path]
        groups = MODULES[module.path][2]
        assert module.rank == max(1, rank // groups) * groups and module.rank_before == 6
        norm, missed = np.linalg.norm(old), np.linalg.norm(old - new)
        best = optimum(module.path, old, module.rank)
        # an optimum of zero is met up to rounding of the stored factors
        assert missed == pytest.approx(best, rel=1e-6, abs=3e-7 * float(norm))
        assert module.error == pytest.approx(missed / norm, rel=1e-5, abs=1e-12)
        assert module.kept == pytest.approx(1 - (missed / norm) ** 2, abs=1e-12)
        assert report.adapter.scaling(module.path) == pytest.approx(a.scaling(module.path), rel=1e-14)
    total = math.sqrt(sum(np.linalg.norm(value) ** 2 for value in before.values()))
    lost = math.sqrt(sum(np.linalg.norm(before[path] - after[path]) ** 2 for path in before))
    assert report.error == pytest.approx(lost / total, rel=1e-5, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), energy=st.floats(0.05, 0.999))
def test_energy_keeps_the_share_with_the_least_rank(seed: int, energy: float) -> None:
    a = adapter(ALL, 6, seed=seed)
    report = resize(a, energy=energy)
    for module in report.modules:
        delta, groups = deltas(a)[module.path], MODULES[module.path][2]
        norm = float(np.linalg.norm(delta))
        assert 1 - (optimum(module.path, delta, module.rank) / norm) ** 2 >= energy - 1e-9
        if module.rank > groups:
            assert 1 - (optimum(module.path, delta, module.rank - groups) / norm) ** 2 < energy


def test_all_the_energy_drops_nothing_but_directions_without_any() -> None:
    a = adapter(("fc", "conv"), 4)
    lora_B = a.factors("fc")[1]
    key = PREFIX + "fc.lora_B.weight"
    lame = dataclasses.replace(a, tensors={**a.tensors, key: torch.cat([lora_B[:, :2], lora_B[:, :2] * 0.5], 1)})
    report = resize(lame, energy=1.0)
    assert [m.rank for m in report.modules] == [4, 2] and report.error < 1e-7
    assert report.adapter.tensors[PREFIX + "conv.lora_A.weight"] is a.tensors[PREFIX + "conv.lora_A.weight"]


def test_a_rank_above_the_numerical_rank_is_exact() -> None:
    a = adapter(("fc",), 2)
    padded = dw.combine([a, 0.5 * a, -0.25 * a], method="concatenate").adapter
    report = resize(padded, rank=2)
    assert report.error < 1e-7 and report.kept == pytest.approx(1)
    np.testing.assert_allclose(deltas(report.adapter)["fc"], 1.25 * deltas(a)["fc"], rtol=1e-5, atol=1e-6)


def test_singular_values_are_split_evenly() -> None:
    made = adapter(("fc",), 4, 8).resize(rank=3)
    lora_A, lora_B = (factor.double() for factor in made.factors("fc"))
    values = adapter(("fc",), 4, 8).spectrum("fc")[:3] / 2
    torch.testing.assert_close(lora_A @ lora_A.t(), torch.diag(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lora_B.t() @ lora_B, torch.diag(values), rtol=1e-5, atol=1e-5)


def test_modules_that_need_not_change_keep_their_bits(tmp_path: Path) -> None:
    a = adapter(ALL, {"fc": 2, "h.0.fc": 6, "embed": 4, "conv": 4, "grouped": 2})
    report = resize(a, rank=4)
    for path in ("fc", "embed", "conv", "grouped"):
        assert all(x is y for x, y in zip(report.adapter.factors(path), a.factors(path), strict=True))
    assert report.adapter.factors("h.0.fc")[0].shape[0] == 4
    assert report.adapter.raw["target_modules"] == a.raw["target_modules"]
    same = resize(a, rank=6).adapter
    assert same.hash == a.hash


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0.1, 1.0))
def test_a_budget_is_kept_and_spent_where_it_matters(seed: int, share: float) -> None:
    strong = adapter(ALL, 6, {path: 2.0 ** (index * 2) for index, path in enumerate(ALL)}, seed)
    budget = int(share * strong.parameters)
    report = resize(strong, budget=budget)
    assert report.parameters <= budget and report.parameters == report.adapter.parameters
    # no module that is kept could hand its last direction to a better and smaller one that is not
    before = deltas(strong)
    offers, last = [], []
    for module in report.modules:
        groups = MODULES[module.path][2]
        cost = sum(t.numel() for t in strong.factors(module.path)) * groups // 6
        loss = [optimum(module.path, before[module.path], r) ** 2 for r in (module.rank - groups, module.rank)
                if r >= 0]  # fmt: skip
        if module.rank:
            last.append((loss[0] - loss[1], cost))
        if module.rank < 6:
            more = optimum(module.path, before[module.path], module.rank + groups) ** 2
            offers.append((loss[-1] - more, cost))
    left = budget - report.parameters
    assert not any(gain > 0 and cost <= left for gain, cost in offers), "room for another direction"
    assert not any(
        gain / cost > lost / freed * (1 + 1e-9) and cost <= freed for gain, cost in offers for lost, freed in last
    ), "a better direction for the same room"


def test_a_budget_may_leave_modules_without_an_update(tmp_path: Path) -> None:
    a = adapter(ALL, 6, {path: 1e-3 if path != "fc" else 8.0 for path in ALL})
    report = resize(a, budget=90)
    assert report.adapter.modules() == ["fc"] and [m.rank for m in report.modules if m.path != "fc"] == [0] * 4
    assert any("no update any more" in note for note in report.notes)
    assert report.adapter.raw["target_modules"] == "(fc)"
    report.adapter.save(tmp_path)
    assert dw.Adapter.open(tmp_path).modules() == ["fc"]


def test_what_is_no_update_stays() -> None:
    extra = {
        PREFIX + "fc.lora_magnitude_vector": torch.ones(8),
        PREFIX + "h.0.fc.base_layer.bias": torch.ones(6),
        PREFIX + "head.weight": torch.ones(2, 2),
    }
    a = adapter(ALL, 6, bias=True, extra=extra, use_dora=True)
    report = resize(a, rank=2)
    assert all(report.adapter.tensors[key] is tensor for key, tensor in extra.items())
    for path, value in biases(a).items():
        np.testing.assert_allclose(biases(report.adapter)[path], value, rtol=1e-12)
    notes = "\n".join(report.notes)
    assert "DoRA: the magnitudes" in notes and "'head.weight'" in notes
    lean = resize(a, budget=260)
    assert {"fc", "h.0.fc"} <= set(lean.adapter.modules()), "what carries a magnitude or a bias keeps an update"


def test_a_frozen_table_goes_with_its_update() -> None:
    key = PREFIX + "embed.base_layer.weight"
    a = adapter(ALL, 6, {path: 1e-3 if path != "fc" else 8.0 for path in ALL}, extra={key: torch.ones(11, 6)})
    assert key not in resize(a, budget=90).adapter.tensors
    assert key in resize(a, rank=2).adapter.tensors


def test_projections_of_one_attention_and_users_of_one_weight_keep_one_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(6, 8, generator=generator), torch.randn(24, 6, generator=generator)
    out = torch.randn(6, 8, generator=generator), torch.randn(8, 6, generator=generator) * 0.01
    tensors = {
        PREFIX + "attn.lora_A.weight": pair[0],
        PREFIX + "attn.lora_B.weight": pair[1],
        PREFIX + "attn.base_layer.out_proj.lora_A.weight": out[0],
        PREFIX + "attn.base_layer.out_proj.lora_B.weight": out[1],
    }
    raw = {"peft_type": "LORA", "r": 6, "lora_alpha": 6, "target_modules": ["attn"]}
    attention = dw.Adapter(tensors=tensors, raw=raw)
    for given_ in ({"energy": 0.8}, {"budget": 200}, {"rank": 3}):
        assert len({m.rank for m in resize(attention, **given_).modules}) == 1  # type: ignore[arg-type]
    table, head = torch.randn(4, 11, generator=generator), torch.randn(8, 4, generator=generator)
    tied = dw.Adapter(
        tensors={
            PREFIX + "embed.lora_embedding_A": table,
            PREFIX + "embed.lora_embedding_B": head,
            PREFIX + "head.lora_A.weight": head.t().contiguous(),
            PREFIX + "head.lora_B.weight": table.t().contiguous(),
        },
        raw={**raw, "r": 4, "lora_alpha": 4, "target_modules": ["embed", "head"]},
        metadata={"deltaw": '{"twins": {"head": "embed"}}'},
    )
    small = tied.resize(rank=2)
    first, second = small.factors("embed"), small.factors("head")
    assert torch.equal(first[0], second[1].t()) and torch.equal(first[1], second[0].t())
    assert small.own["twins"] == {"head": "embed"}


def test_zero_rows_stay_exactly_zero() -> None:
    a = adapter(("fc",), 4)
    lora_B = a.factors("fc")[1].clone()
    lora_B[2:5] = 0
    sliced = dataclasses.replace(a, tensors={**a.tensors, PREFIX + "fc.lora_B.weight": lora_B})
    assert not sliced.resize(rank=2).factors("fc")[1][2:5].any()
    assert sliced.resize(rank=2).factors("fc")[1][:2].all()
    grouped = adapter(("grouped",), 4).resize(rank=2).factors("grouped")[0]
    assert not grouped[0, 4:].any() and not grouped[1, :4].any(), "other groups' channels"


def test_a_zero_update_resizes_to_zero() -> None:
    a = 0 * adapter(("fc", "conv"), 4)
    for given_ in ({"rank": 2}, {"energy": 0.5}, {"budget": 80}):
        report = resize(a, **given_)  # type: ignore[arg-type]
        assert report.kept == 1 and report.error == 0
        assert not any(value.any() for value in deltas(report.adapter).values())


def test_metadata_follows() -> None:
    a = dataclasses.replace(
        adapter(("fc", "h.0.fc"), 4),
        metadata={"other": "kept", "deltaw": '{"fingerprint": {"id": "x"}, "slices": {"fc": [], "h.0.fc": []}}'},
    )
    report = resize(a, rank=2)
    own = report.adapter.own
    assert own["fingerprint"] == {"id": "x"} and own["slices"] == {} and own["origin"]["rank"] == 2
    assert own["origin"]["of"] == a.hash and report.adapter.metadata["other"] == "kept"
    assert any("slices" in note for note in report.notes)
    assert set(own["scaling"]) == {"fc", "h.0.fc"}


def test_resizing_is_deterministic(tmp_path: Path) -> None:
    for name in ("x", "y"):
        adapter(ALL, 6).resize(rank=2).save(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()
    assert dw.Adapter.open(tmp_path / "x").hash == adapter(ALL, 6).resize(rank=2).hash


@pytest.mark.parametrize(
    "given_",
    [
        {}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"rank": 5}, {"rank": True}, {"rank": 2.0}, {"energy": 0.0},
        {"energy": 1.5}, {"energy": float("nan")}, {"budget": 3}, {"budget": 10**9}, {"budget": -1}, {"budget": 50.5},
    ],
)  # fmt: skip
def test_what_cannot_be_asked(given_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        adapter(("fc", "conv"), 4).resize(**given_)


@pytest.mark.parametrize("damage", ["half a pair", "not finite", "other method", "no update", "ranks"])
def test_damaged_adapters(damage: str) -> None:
    a = adapter(("fc",), 4)
    key = PREFIX + "fc.lora_B.weight"
    changed: dict[str, dict[str, Any]] = {
        "half a pair": {"tensors": {k: t for k, t in a.tensors.items() if k != key}},
        "not finite": {"tensors": {**a.tensors, key: torch.full((8, 4), float("nan"))}},
        "other method": {"raw": {**a.raw, "peft_type": "VERA"}},
        "no update": {"tensors": {PREFIX + "head.weight": torch.ones(2, 2)}},
        "ranks": {"tensors": {**a.tensors, key: torch.ones(8, 3)}},
    }
    with pytest.raises(CheckpointError):
        dataclasses.replace(a, **changed[damage]).resize(rank=2)


def test_the_decomposition_is_one() -> None:
    generator = torch.Generator().manual_seed(1)
    lora_A, lora_B = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 9), (7, 5)))
    lora_A[:, 3] = 0
    U, values, V = svd(lora_A, lora_B)
    torch.testing.assert_close(U @ torch.diag(values) @ V.t(), lora_B @ lora_A)
    torch.testing.assert_close(U.t() @ U, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(V.t() @ V, torch.eye(5, dtype=torch.float64))
    assert not V[3].any() and bool((V.gather(0, V.abs().argmax(0, keepdim=True)) > 0).all())


def test_the_report_prints() -> None:
    report = resize(adapter(ALL, 6), rank=2)
    text = str(report)
    assert "resized 5 modules" in text and "energy kept" in text and "h.0.fc" in text
    many = dataclasses.replace(report, modules=report.modules * 12)
    assert "least energy kept" in str(many) and "least" not in str(dataclasses.replace(many, every=True))
