"""Comparisons against dense matrices and against the paper's formula written out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from values import MODULES, PREFIX, adapter, deltas

from deltaw.algebra import compare, overlaps, subspace_similarity
from deltaw.errors import CheckpointError, ConfigError

ALL = tuple(MODULES)


def phi(one: np.ndarray, other: np.ndarray, i: int, j: int) -> float:
    """Equation 4 of the paper: columns of U are right singular vectors of the factor."""
    U, V = (np.linalg.svd(factor)[2].T for factor in (one, other))
    return float(np.linalg.norm(U[:, :i].T @ V[:, :j]) ** 2 / min(i, j))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), rank=st.integers(1, 3), other=st.integers(1, 3), alpha=st.floats(-8, -0.5))
def test_the_whole_comparison_is_that_of_the_dense_updates(seed: int, rank: int, other: int, alpha: float) -> None:
    a, b = adapter(ALL, 2 * rank, 3, seed), adapter(ALL, 2 * other, alpha, seed + 1, use_rslora=True)
    found, dense = compare(a, b), [deltas(a), deltas(b)]
    for module in found.modules:
        one, two = (each[module.path] for each in dense)
        product = float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two))
        assert module.cosine == pytest.approx(product, abs=1e-12)
        assert module.norms == pytest.approx((np.linalg.norm(one), np.linalg.norm(two)), rel=1e-12)
        assert module.ranks == (2 * rank, 2 * other)
        for side, value in (("A", module.phi_A), ("B", module.phi_B)):
            grid = found.phi(module.path, side)
            assert value == pytest.approx(float(grid[-1, -1])) and 0 <= float(grid.min()) <= float(grid.max()) <= 1
    flat = [np.concatenate([value.ravel() for value in each.values()]) for each in dense]
    whole = float(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
    assert found.cosine == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("side", ["A", "B"])
def test_phi_is_the_papers_equation(side: str) -> None:
    a, b = adapter(("fc",), 4, seed=1), adapter(("fc",), 3, seed=2)
    one, two = (made.factors("fc")["AB".index(side)].double().numpy() for made in (a, b))
    one, two = (one, two) if side == "A" else (one.T, two.T)
    grid = a.similarity(b).phi("fc", side)
    assert grid.shape == (4, 3)
    for i in range(1, 5):
        for j in range(1, 4):
            assert float(grid[i - 1, j - 1]) == pytest.approx(phi(one, two, i, j), abs=1e-12)
            assert subspace_similarity(torch.tensor(one), torch.tensor(two), i, j) == float(grid[i - 1, j - 1])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), weight=st.floats(0.1, 9))
def test_an_adapter_is_like_itself(seed: int, weight: float) -> None:
    a = adapter(ALL, 4, 3, seed)
    same = a.similarity(a)
    assert same.cosine == pytest.approx(1, abs=1e-12) and "the same content" in str(same)
    for module in same.modules:
        assert (module.cosine, module.phi_A, module.phi_B) == pytest.approx((1, 1, 1), abs=1e-12)
    assert a.similarity(weight * a).cosine == pytest.approx(1, abs=1e-12)
    assert a.similarity(-weight * a).cosine == pytest.approx(-1, abs=1e-12)


def test_what_is_in_one_only_counts_as_zero_in_the_other() -> None:
    a, b = adapter(("fc", "conv"), 4, seed=1), adapter(("fc", "embed"), 4, seed=1)
    found = a.similarity(b)
    alone = {m.path: m for m in found.modules}
    assert alone["conv"].ranks == (4, 0) and alone["conv"].phi_A is None and alone["embed"].cosine == 0
    norms = {path: np.linalg.norm(value) for path, value in deltas(a).items()}
    other = {path: np.linalg.norm(value) for path, value in deltas(b).items()}
    expected = norms["fc"] ** 2 / math.hypot(*norms.values()) / math.hypot(*other.values())
    assert found.cosine == pytest.approx(expected)
    assert len(found.notes) == 3 and "only in adapter-1: 'conv'" in found.notes


def test_zero_and_dependent_factors_have_no_directions_to_compare() -> None:
    a = adapter(("fc",), 4)
    zero = 0 * a
    found = a.similarity(zero)
    assert found.cosine == 0 and found.modules[0].phi_B is None and found.modules[0].phi_A == pytest.approx(1)
    assert "-" in str(found).splitlines()[-2]
    twice = torch.ones(2, 5)
    assert overlaps(twice, torch.eye(5)).shape == (1, 5)
    with pytest.raises(ConfigError, match="rank at most"):
        subspace_similarity(twice, torch.eye(5), 2, 1)
    with pytest.raises(ConfigError, match="no such subspaces"):
        found.phi("fcc")
    with pytest.raises(ConfigError, match="no such subspaces"):
        found.phi("fc", "C")


def test_nothing_in_common_and_what_is_not_compared() -> None:
    with pytest.raises(CheckpointError, match="no module in common"):
        adapter(("fc",)).similarity(adapter(("conv",), seed=1))
    dora = adapter(("fc",), extra={PREFIX + "fc.lora_magnitude_vector": torch.ones(8)}, use_dora=True)
    assert any("not compared" in note for note in dora.similarity(adapter(seed=1)).notes)


def test_the_report_prints() -> None:
    found = adapter(ALL, 4, seed=1).similarity(adapter(ALL, 2, seed=2))
    assert "cosine" in str(found) and "phi A" in str(found) and found.phi_A is not None
    many = dataclasses.replace(found, modules=found.modules * 12)
    assert "--modules lists each" in str(many) and "--modules" not in str(dataclasses.replace(many, every=True))
