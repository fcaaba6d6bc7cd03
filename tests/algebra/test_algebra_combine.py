"""Sums of adapters against the analytic sum in float64; what cannot be added is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from values import MODULES, PREFIX, adapter, assert_sum, biases, deltas, sizes, weighted

import deltaw as dw
from deltaw.algebra import METHODS, scale
from deltaw.errors import CheckpointError, ConfigError

SUMS = [name for name, method in METHODS.items() if method.heuristic is None]
ALL = tuple(MODULES)
BIAS = {PREFIX + "fc.base_layer.bias": torch.ones(8)}
COPY = {PREFIX + "head.weight": torch.ones(2, 2)}
ROWS = {PREFIX + "embed.token_adapter.trainable_tokens_delta": torch.ones(2, 6)}
MAGNITUDE = {PREFIX + "fc.lora_magnitude_vector": torch.ones(8)}

weights = st.floats(-3, 3, allow_nan=False).filter(lambda w: abs(w) > 1e-3)


@st.composite
def adapters(draw: st.DrawFn) -> dw.Adapter:
    paths = draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=4, unique=True))
    ranks = {path: 2 * draw(st.integers(1, 3)) for path in paths}
    alphas = {path: draw(st.floats(0.5, 32)) for path in paths}
    return adapter(paths, ranks, alphas, draw(st.integers(0, 99)), use_rslora=draw(st.booleans()))


@pytest.mark.parametrize("method", SUMS)
@settings(max_examples=25, deadline=None)
@given(a=adapters(), b=adapters(), w=weights, v=weights)
def test_a_sum_is_the_sum_of_the_updates(method: str, a: dw.Adapter, b: dw.Adapter, w: float, v: float) -> None:
    report = dw.combine([a, b], [w, v], method=method)
    assert_sum(report.adapter, [a, b], [w, v])
    assert report.error < 2e-7
    ranks = {m.path: (m.ranks, m.rank) for m in report.modules}
    assert all(rank <= sum(each) for each, rank in ranks.values())
    if method == "concatenate":
        assert all(rank == sum(each) for each, rank in ranks.values())


@settings(max_examples=20, deadline=None)
@given(a=adapters(), b=adapters(), c=adapters())
def test_addition_is_associative_and_commutative(a: dw.Adapter, b: dw.Adapter, c: dw.Adapter) -> None:
    left, right = deltas((a + b) + c), deltas(a + (b + c))
    other, size = deltas(c + b + a), sizes([a, b, c], [1, 1, 1])
    for path, value in left.items():
        assert np.linalg.norm(value - right[path]) <= 1e-6 * size[path]
        assert np.linalg.norm(value - other[path]) <= 1e-6 * size[path]


@settings(max_examples=20, deadline=None)
@given(a=adapters(), w=weights)
def test_a_minus_a_is_zero_of_rank_one_or_one_for_each_group(a: dw.Adapter, w: float) -> None:
    for zero in (a + (-1) * a, a - a, w * a - w * a):
        assert all(not value.any() for value in deltas(zero).values())
        assert all(zero.factors(path)[0].shape[0] == MODULES[path][2] for path in zero.modules())


@settings(max_examples=20, deadline=None)
@given(a=adapters(), w=weights, v=weights)
def test_scaling_is_linear_and_keeps_the_bits(a: dw.Adapter, w: float, v: float) -> None:
    made = w * a
    assert_sum(made, [a], [w], 1e-12)
    assert_sum(v * made, [a], [v * w], 1e-12)
    assert all(made.tensors[key] is tensor for key, tensor in a.tensors.items())
    assert_sum(made + v * a, [a, a], [w, v])


def test_scaling_in_all_spellings() -> None:
    a = adapter()
    for made, weight in ((0.5 * a, 0.5), (a * 0.5, 0.5), (-a, -1.0), (2 * a, 2.0)):
        assert_sum(made, [a], [weight], 1e-12)
    zero = 0 * a
    assert not deltas(zero)["fc"].any() and zero.config.alpha == 6
    with pytest.raises(TypeError):
        a * "2"  # type: ignore[operator]
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_whole_alphas_stay_whole() -> None:
    assert (0.5 * adapter()).raw["lora_alpha"] == 3 and isinstance((0.5 * adapter()).raw["lora_alpha"], int)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"paths": ALL},
    "stabilized": {"paths": ALL, "use_rslora": True},
    "bias of B": {"paths": ALL, "bias": True},
    "dora": {"extra": MAGNITUDE, "use_dora": True},
    "trained bias": {"extra": BIAS},
    "full copy": {"extra": COPY, "modules_to_save": ["head"]},
    "token rows": {"paths": ("embed",), "extra": ROWS, "trainable_token_indices": {"embed": [1, 2]}},
    "half": {"dtype": torch.bfloat16},
    "vera": {"peft_type": "VERA"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SUMS)
def test_one_adapter_of_weight_one_is_itself(kind: str, method: str) -> None:
    a = adapter(**KINDS[kind])
    assert dw.combine([a], method=method).adapter is a
    assert 1 * a is a and a.hash == dw.combine([a], [1.0]).adapter.hash


def test_one_coefficient_keeps_the_factors_bits() -> None:
    a, b = adapter(ALL, 4, 8, seed=1), adapter(ALL, 2, 4, seed=2)
    made = dw.combine([a, b], [0.5, 0.5], method="concatenate").adapter
    lora_A, lora_B = made.factors("fc")
    assert torch.equal(lora_A, torch.cat([a.factors("fc")[0], b.factors("fc")[0]]))
    assert torch.equal(lora_B, torch.cat([a.factors("fc")[1], b.factors("fc")[1]], 1))
    assert made.scaling("fc") == 1.0 and made.raw["lora_alpha"] == 6


def test_exact_finds_the_least_rank() -> None:
    a = adapter(("fc",), 4)
    shared = dataclasses.replace(
        a, tensors={key: (t if "lora_A" in key else torch.randn_like(t)) for key, t in a.tensors.items()}
    )
    assert (a + shared).factors("fc")[0].shape[0] == 4
    assert (a + a).factors("fc")[0].shape[0] == 4
    assert dw.combine([a, shared], method="concatenate").adapter.factors("fc")[0].shape[0] == 8
    tiny = 1e-9 * adapter(("fc",), 1, seed=5)
    assert (a + tiny).factors("fc")[0].shape[0] == 5, "small is not nothing"


@pytest.mark.parametrize("method", SUMS)
def test_biases_of_B_are_added_like_updates(method: str) -> None:
    a, b = adapter(ALL, 4, 6, 1, bias=True), adapter(("fc", "embed"), 2, 3, 2)
    made = dw.combine([a, b], [0.5, -2.0], method=method).adapter
    expected = {path: 0.5 * value for path, value in biases(a).items()}
    found = biases(made)
    assert made.raw["lora_bias"] is True and found.keys() == {"fc", "h.0.fc", "conv", "grouped"}
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-6)
    alone = dw.combine([b, adapter(("conv",), 4, 6, 1, bias=True)]).adapter
    assert not biases(alone)["fc"].any(), "one flag for all modules: a zero bias where there was none"


def test_results_are_fp32_at_least_and_copied_where_nothing_is_computed() -> None:
    half, other = adapter(("fc", "conv"), dtype=torch.bfloat16), adapter(("fc",), seed=2, dtype=torch.bfloat16)
    made = dw.combine([half, other], [1.0, 0.3]).adapter
    assert made.factors("fc")[0].dtype == torch.float32
    assert made.factors("conv")[0].dtype == torch.bfloat16
    assert_sum(made, [half, other], [1.0, 0.3])
    wide = dw.combine([half, adapter(("fc",), seed=3, dtype=torch.float64)]).adapter
    assert wide.factors("fc")[0].dtype == torch.float64


@pytest.mark.parametrize("name", ["full copy", "token rows"])
def test_what_is_trained_in_full_comes_from_one_adapter_of_weight_one(name: str) -> None:
    owner, other = adapter(**KINDS[name]), adapter(("fc", "embed"), seed=4)
    report = dw.combine([other, owner], [0.5, 1.0])
    key = next(iter(KINDS[name]["extra"]))
    assert report.adapter.tensors[key] is owner.tensors[key]
    assert any("carried over" in note for note in report.notes)
    field = "modules_to_save" if name == "full copy" else "trainable_token_indices"
    assert report.adapter.raw[field] == owner.raw[field]
    for adapters_, factors in (([owner, other], [0.5, 1.0]), ([owner, owner], [1.0, 1.0]), ([owner], [2.0])):
        with pytest.raises(CheckpointError, match="trained in full"):
            dw.combine(adapters_, factors)


def test_dora_is_refused_by_name() -> None:
    a = adapter(extra=MAGNITUDE, use_dora=True)
    for call in (lambda: a + adapter(seed=1), lambda: 2 * a, lambda: adapter(seed=1) - a):
        with pytest.raises(CheckpointError, match="DoRA"):
            call()


def test_targets_stay_where_they_name_the_same_modules() -> None:
    a, b = adapter(("fc", "h.0.fc"), target_modules=["fc"]), adapter(("fc", "h.0.fc"), seed=1, target_modules=["fc"])
    assert (a + b).raw["target_modules"] == ["fc"]
    uneven = (a + adapter(("fc", "conv"), seed=2)).raw
    assert uneven["target_modules"] == r"(conv|fc|h\.0\.fc)"
    narrowed = adapter(("h.0.fc",), seed=3, target_modules=["fc"], layers_to_transform=[0])
    assert (a + narrowed).raw.get("layers_to_transform") is None


def test_fields_and_metadata_that_agree_stay() -> None:
    a = dataclasses.replace(adapter(base_model_name_or_path="base", future=1), metadata={"run": "7", "form": "x"})
    b = dataclasses.replace(
        adapter(seed=1, base_model_name_or_path="base", future=2), metadata={"run": "8", "form": "x"}
    )
    report = dw.combine([a, b])
    assert report.adapter.raw["base_model_name_or_path"] == "base" and "future" not in report.adapter.raw
    assert any("'future'" in note for note in report.notes)
    assert report.adapter.metadata["form"] == "x" and "run" not in report.adapter.metadata
    other = dw.combine([a, adapter(seed=2, base_model_name_or_path="other")])
    assert any("base_model_name_or_path differs" in note for note in other.notes)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        a, b = adapter(ALL, seed=1), adapter(ALL, 2, seed=2)
        for method in METHODS:
            if method != "ties":
                dw.combine([a, b], [0.7, -0.3], method=method).adapter.save(tmp_path / name / method)
        dw.combine([a, a], method="ties").adapter.save(tmp_path / name / "ties")
    for file in sorted((tmp_path / "x").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "y" / file.relative_to(tmp_path / "x")).read_bytes()
    for method in METHODS:
        again = dw.Adapter.open(tmp_path / "x" / method)
        assert again.own["origin"]["method"] == method and len(again.hash) == 64


def test_hash_of_a_result_is_of_its_content(tmp_path: Path) -> None:
    made = adapter(ALL, seed=1) + adapter(ALL, 2, seed=2)
    made.save(tmp_path)
    assert dw.Adapter.open(tmp_path).hash == made.hash


def test_a_weight_of_zero_is_left_out_and_said() -> None:
    a, b = adapter(), adapter(("conv",), seed=1)
    report = dw.combine([a, b], [1.0, 0.0])
    assert report.adapter.modules() == ["fc"] and any("weight 0" in note for note in report.notes)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), True, "1"])
def test_weights_are_finite_numbers(weight: Any) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        dw.combine([adapter(), adapter()], [1.0, weight])
    if weight == weight and not isinstance(weight, str | bool):
        with pytest.raises(ConfigError, match="finite number"):
            scale(adapter(), weight)


def test_shapes_and_bases_must_be_one() -> None:
    a = adapter()
    wide = dataclasses.replace(a, tensors={key: torch.ones(4, 7) if "A" in key.rpartition("lora_")[2] else t
                                           for key, t in a.tensors.items()})  # fmt: skip
    with pytest.raises(CheckpointError, match="different shapes"):
        a + wide


# Heuristics


def test_dare_is_the_sum_in_expectation_and_seeded() -> None:
    paths = ("fc", "grouped")
    a, b = adapter(paths, seed=1), adapter(paths, 2, seed=2)
    draws = [dw.combine([a, b], [1.0, -0.5], method="dare", density=0.7, seed=seed).adapter for seed in range(250)]
    expected, size = weighted([a, b], [1.0, -0.5]), sizes([a, b], [1.0, -0.5])
    for path, value in expected.items():
        mean = np.mean([deltas(made)[path] for made in draws], 0)
        single = np.linalg.norm(deltas(draws[0])[path] - value)
        assert np.linalg.norm(mean - value) < 0.1 * size[path] < single
    assert draws[0].hash == dw.combine([a, b], [1.0, -0.5], method="dare", density=0.7).adapter.hash != draws[1].hash
    assert_sum(dw.combine([a, b], [1.0, -0.5], method="dare", density=1.0).adapter, [a, b], [1.0, -0.5])
    same = dw.combine([a, a], [1.0, 1.0], method="dare").adapter
    half = same.factors("fc")[0]
    assert not torch.equal(half[:4], half[4:]), "equal adapters are thinned independently"


def test_ties_is_said_to_be_a_heuristic_and_reads_density() -> None:
    a, b = adapter(ALL, seed=1), adapter(ALL, seed=2)
    sparse, whole = (dw.combine([a, b], method="ties", density=density) for density in (0.3, 1.0))
    assert sparse.adapter.hash != whole.adapter.hash and "heuristic:" in str(sparse)
    assert sparse.error > 0.1
    kept = sparse.adapter.factors("fc")[0]
    assert 0 < int(kept.count_nonzero()) <= 2 * int(0.3 * kept.numel())
    with pytest.raises(ConfigError, match="ranks must be one"):
        dw.combine([a, adapter(("fc",), 2, seed=2)], method="ties")


def test_reports_print(tmp_path: Path) -> None:
    report = dw.combine([adapter(ALL, seed=1), adapter(("fc",), 2, seed=2)], [0.7, -0.3])
    text = str(report)
    assert "0.7 * adapter-1 + -0.3 * adapter-2" in text and "4 + 2" in text and "4 + 0" in text
    many = dataclasses.replace(report, modules=report.modules * 12)
    assert "count" in str(many) and "count" not in str(dataclasses.replace(many, every=True)).splitlines()[2]
