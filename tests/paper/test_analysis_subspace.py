"""phi between adapters, within one, with its control; Table 7 and the amplification factor against float64 numpy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_cases import PREFIX, made, orthonormal, piece
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from deltaw.errors import CheckpointError, ConfigError
from deltaw.paper.analyses.base import TOP, against_base
from deltaw.paper.analyses.pieces import chosen, drawn_labels, open_adapter, pieces_of
from deltaw.paper.analyses.subspace import gaussian, subspace
from deltaw.paper.analyses.weights import subspace_base
from deltaw.paper.analyses.within import within
from verb_models import adapter_dir, base_dir

few = settings(max_examples=15, deadline=None)


def phi(one: np.ndarray, other: np.ndarray, i: int, j: int) -> float:
    """Equation 4, with the right singular vectors of the factors."""
    U, V = (np.linalg.svd(factor)[2] for factor in (one, other))
    return float(np.linalg.norm(U[:i] @ V[:j].T) ** 2 / min(i, j))


@few
@given(seed=st.integers(0, 999), r=st.integers(1, 5), s=st.integers(1, 5), side=st.sampled_from(["A", "B"]))
def test_phi_is_the_equation_within_bounds_and_symmetric(seed: int, r: int, s: int, side: str) -> None:
    a, b = made(r, seed=seed, layers=1), made(s, seed=seed + 1, layers=1)
    found, back = subspace(a, b, side=side), subspace(b, a, side=side)
    for grid, turned in zip(found.grids, back.grids, strict=True):
        values = np.array(grid.phi)
        assert values.shape == (r, s) and values.min() >= 0 and values.max() <= 1
        np.testing.assert_allclose(values, np.array(turned.phi).T, atol=1e-12)
        one, two = (each.factors(grid.label)["AB".index(side)].double().numpy() for each in (a, b))
        one, two = (one, two) if side == "A" else (one.T, two.T)
        assert grid.width == one.shape[1]
        assert values[-1, -1] == pytest.approx(phi(one, two, r, s), abs=1e-12)
        assert values[0, -1] == pytest.approx(phi(one, two, 1, s), abs=1e-12)


@few
@given(seed=st.integers(0, 999), r=st.integers(1, 4))
def test_equal_spans_give_one_and_orthogonal_ones_zero(seed: int, r: int) -> None:
    basis = orthonormal(12, 8, seed).t().float()
    a = made(r, seed=seed, layers=1)
    turn = torch.randn(r, r, generator=torch.Generator().manual_seed(seed)) + 3 * torch.eye(r)
    spans = {"a": basis[:r], "equal": turn @ basis[:r], "other": basis[r : 2 * r]}
    key = f"{PREFIX}h.0.q.lora_A.weight"
    one, equal, other = (dataclasses.replace(a, tensors={**a.tensors, key: span}) for span in spans.values())
    assert subspace(one, equal, modules=["q"]).grids[0].phi[-1][-1] == pytest.approx(1, abs=1e-6)
    assert subspace(one, other, modules=["q"]).grids[0].phi[-1][-1] == pytest.approx(0, abs=1e-6)


def test_the_printed_form_of_appendix_g_is_not_the_trace_form() -> None:
    """ERR4: with d^2 = p - sum of squared cosines, 1 - d^2 / p is phi; (1 / p)(1 - d^2) is not."""
    a, b = made(3, seed=1, layers=1), made(3, seed=2, layers=1)
    found = subspace(a, b, modules=["q"]).grids[0].phi[-1][-1]
    bases = [np.linalg.qr(each.factors("h.0.q")[0].double().numpy().T)[0] for each in (a, b)]
    cosines = np.linalg.svd(bases[0].T @ bases[1])[1]
    distance = math.sqrt(3 - (cosines**2).sum())
    assert found == pytest.approx(1 - distance**2 / 3, abs=1e-12)
    assert abs(found - (1 - distance**2) / 3) > 0.1


def test_ranks_cut_the_grid_and_say_what_there_is() -> None:
    a, b = made(4), made(3, seed=1)
    whole, cut = subspace(a, b), subspace(a, b, ranks=(2, 3))
    assert cut.grids[0].ranks == (2, 3)
    np.testing.assert_array_equal(np.array(whole.grids[0].phi)[:2, :3], np.array(cut.grids[0].phi))
    with pytest.raises(ConfigError, match="from 1,1 to 4,3"):
        subspace(a, b, ranks=(5, 1))
    with pytest.raises(ConfigError, match="from 1,1"):
        subspace(a, b, ranks=(0, 1))


def test_the_control_is_near_its_expectation() -> None:
    """Of 8 against 64 in 768, the ranks of figure 3: near 64 / 768 = 0.083."""
    a, b = made(8, width=768, out=4, layers=1), made(64, width=768, out=4, layers=1)
    grids = [subspace(a, b, control=True, seed=seed).grids[0] for seed in (0, 1)]
    assert grids[0].expected == pytest.approx(64 / 768)
    values = [grid.control[-1][-1] for grid in grids if grid.control is not None]
    assert values == pytest.approx([0.083, 0.083], abs=0.008) and values[0] != values[1]
    assert subspace(a, b, control=True).grids[0] == grids[0]
    assert subspace(a, b).grids[0].control is None


def test_the_control_does_not_depend_on_the_order_of_modules() -> None:
    a, b = made(seed=1), made(seed=2)
    both, one = subspace(a, b, control=True), subspace(a, b, control=True, modules=["h.1.v"])
    assert one.grids[0] == both.grids[-1]
    assert not torch.equal(gaussian((2, 3), 0, "a"), gaussian((2, 3), 0, "b"))


def test_other_bases_and_other_modules_are_refused() -> None:
    note = '{"fingerprint": {"id": "%s", "dtype": "float32", "sites": {"h.0.q": [[10, 12], [%s]]}}}'
    pair = [
        dataclasses.replace(made(), metadata={"deltaw": note % (name, ", ".join([value] * 8))})
        for name, value in (("first", "0.5"), ("second", "0.25"))
    ]
    with pytest.raises(CheckpointError, match="different bases"):
        subspace(*pair)
    assert any("another base" in line for line in subspace(*pair, allow_other_base=True).notes)
    with pytest.raises(CheckpointError, match="no module in common"):
        lone = {key.replace("h.", "layers."): value for key, value in made().tensors.items()}
        subspace(made(), dataclasses.replace(made(), tensors=lone))
    with pytest.raises(CheckpointError, match="shapes"):
        subspace(made(), made(width=8))
    with pytest.raises(ConfigError, match="side"):
        subspace(made(), made(), side="C")


def test_modules_are_chosen_as_targets_are() -> None:
    labels = ["h.0.attn.c_attn[q]", "h.0.attn.c_attn[v]", "h.10.attn.c_attn[q]"]
    assert chosen(labels, ["c_attn[q]"], "a") == [labels[0], labels[2]]
    assert chosen(labels, ["h.0.*"], "a") == labels[:2] and chosen(labels, [], "a") == labels
    with pytest.raises(ConfigError, match=r"nearest: 'h\.0\.attn\.c_attn\[q\]'"):
        chosen(labels, ["h.0.attn.c_atn[q]"], "a")


def test_a_figure_shows_evenly_spaced_layers() -> None:
    labels = [f"h.{layer}.{leaf}" for layer in range(96) for leaf in "qv"]
    shown = drawn_labels(labels, 8)
    assert shown == [f"h.{layer}.{leaf}" for layer in (0, 32, 63, 95) for leaf in "qv"]
    assert drawn_labels(["q", "v"], 8) == ["q", "v"]


def test_within_compares_matrices_of_one_width_with_each_other() -> None:
    found = within(made(3), seed=3)
    assert [own.label for own in found.own] == ["h.0.q", "h.0.v", "h.1.q", "h.1.v"]
    grid = np.array(found.phi, dtype=float)
    np.testing.assert_allclose(grid, grid.T)
    np.testing.assert_allclose(np.diag(grid), 1)
    factors = [made(3).factors(own.label)[0].double().numpy() for own in found.own]
    assert grid[0, 1] == pytest.approx(phi(factors[0], factors[1], 3, 3), abs=1e-12)
    first = found.own[0]
    dense = made(3).delta("h.0.q").double().numpy()
    values = np.linalg.svd(dense)[1]
    assert first.norm == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    assert first.top == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-6)
    assert first.closest == pytest.approx(max(grid[0, 1:])) and first.mean == pytest.approx(grid[0, 1:].mean())
    assert within(made(3), seed=4).own[0].control != first.control
    assert within(made(3), side="B").own[0].width == 10


def test_within_refuses_what_was_never_trained() -> None:
    a = made()
    zeros = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in a.tensors.items()}
    with pytest.raises(ConfigError, match="lora_B is zero"):
        within(dataclasses.replace(a, tensors=zeros), side="B")


def test_slices_of_a_fused_projection_stand_apart(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "gpt2")
    adapter = open_adapter(adapter_dir(base, tmp_path / "a", targets=["c_attn[q,v]"], rank=2))
    found = pieces_of(adapter)
    assert list(found) == [f"transformer.h.{n}.attn.c_attn[{part}]" for n in (0, 1) for part in "qv"]
    whole = adapter.delta("transformer.h.0.attn.c_attn").double()
    for part, rows in (("q", slice(0, 32)), ("v", slice(64, 96))):
        own = found[f"transformer.h.0.attn.c_attn[{part}]"]
        assert own.rank == 2
        torch.testing.assert_close(own.scaling * own.lora_B @ own.lora_A, whole[rows], rtol=1e-5, atol=1e-6)


@few
@given(strength=st.floats(0.1, 50), place=st.integers(0, 5), scaling=st.floats(0.25, 4))
def test_a_planted_direction_is_amplified_by_exactly_its_ratio(strength: float, place: int, scaling: float) -> None:
    """W has singular values 8 to 3; the update stresses one of its directions with a known strength."""
    U, V = orthonormal(9, 6, 1), orthonormal(7, 6, 2)
    values = torch.arange(8.0, 2.0, -1.0, dtype=torch.float64)
    W = U @ torch.diag(values) @ V.t()
    planted = piece("m", V[:, place : place + 1].t(), strength * U[:, place : place + 1], scaling)
    (row,) = against_base({"m": planted}, {"m": W}).projections
    assert row.delta_norm == pytest.approx(strength * scaling, rel=1e-12)
    assert row.in_delta == pytest.approx(float(values[place]), rel=1e-12)
    assert row.factor == pytest.approx(strength * scaling / float(values[place]), rel=1e-12)
    assert row.in_weight == pytest.approx(8, rel=1e-12) and row.weight_norm == pytest.approx(float(values.norm()))


@pytest.mark.parametrize("side", ["A", "B"])
def test_table_7_is_that_of_dense_numpy(side: str) -> None:
    generator = torch.Generator().manual_seed(5)
    A, B, W = (torch.randn(*shape, generator=generator) for shape in ((4, 30), (20, 4), (20, 30)))
    found = against_base({"m": piece("m", A, B, 2.5)}, {"m": W}, directions=(1, 3, 4), side=side)
    delta, weight = 2.5 * (B.double() @ A.double()).numpy(), W.double().numpy()
    U, S, Vt = np.linalg.svd(delta)
    UW, _, VWt = np.linalg.svd(weight)
    for row, r in zip(found.projections, (1, 3, 4), strict=True):
        assert row.directions == r
        assert row.in_delta == pytest.approx(np.linalg.norm(U[:, :r].T @ weight @ Vt[:r].T), rel=1e-10)
        assert row.in_weight == pytest.approx(np.linalg.norm(UW[:, :r].T @ weight @ VWt[:r].T), rel=1e-10)
        assert row.delta_norm == pytest.approx(np.linalg.norm(S), rel=1e-10)
        assert row.weight_norm == pytest.approx(np.linalg.norm(weight), rel=1e-10)
        own, others = (VWt, Vt) if side == "A" else (UW.T, U.T)
        top = max(1, round(TOP * 20))
        assert row.shared == pytest.approx(np.linalg.norm(own[:top] @ others[:r].T) ** 2 / min(top, r), rel=1e-9)
    grid = np.array(found.overlaps["m"])
    assert grid.shape == (20, 4) and found.steps["m"] == tuple(range(1, 21))
    own, others = (VWt, Vt) if side == "A" else (UW.T, U.T)
    assert grid[6, 2] == pytest.approx(np.linalg.norm(own[:7] @ others[:3].T) ** 2 / 3, rel=1e-9)


def test_random_directions_hold_what_chance_gives() -> None:
    """E ||U^T W V^T||^2 = ||W||^2 r^2 / (O K), as the paper's 0.02 and 0.33 of 61.95 at r = 4 and 64 in 12288."""
    W = torch.randn(40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = piece("m", orthonormal(50, 8, 3).t(), orthonormal(40, 8, 4))
    squares = [against_base({"m": update}, {"m": W}, seed=seed).projections[0].in_random ** 2 for seed in range(12)]
    assert np.mean(squares) == pytest.approx(float(W.norm()) ** 2 * 64 / 2000, rel=0.15)
    assert len(set(squares)) == 12
    assert [61.95 * r / 12288 for r in (4, 64)] == pytest.approx([0.02, 0.33], abs=0.01)


def test_more_directions_than_the_update_has_are_refused() -> None:
    update = piece("m", torch.eye(2, 5), torch.eye(4)[:, :2])
    with pytest.raises(ConfigError, match="from 1 to 2"):
        against_base({"m": update}, {"m": torch.eye(4, 5)}, directions=(3,))
    with pytest.raises(ConfigError, match="trained adapter"):
        against_base({"m": piece("m", torch.eye(2, 5), torch.zeros(4, 2))}, {"m": torch.eye(4, 5)})


@pytest.mark.parametrize(("kind", "target"), [("llama", "q_proj"), ("gpt2", "c_attn[q,v]"), ("bert", "query")])
def test_weights_come_from_the_files_in_their_right_layout(kind: str, target: str, tmp_path: Path) -> None:
    """GPT-2 stores (in, out) and fuses q, k, v; the rows of Table 7 must be those of the paper's W."""
    base = base_dir(tmp_path / "base", kind)
    adapter = open_adapter(adapter_dir(base, tmp_path / "a", targets=[target], rank=2))
    found = subspace_base(adapter, str(base), modules=["*.0.*"])
    held = _stored(base)
    for row in found.projections:
        path, _, part = row.label.rstrip("]").partition("[")
        weight = next(value for key, value in held.items() if key.removeprefix("bert.") == f"{_bare(path)}.weight")
        W = weight.T[{"q": slice(0, 32), "v": slice(64, 96)}[part]] if part else weight
        own = pieces_of(adapter)[row.label]
        U, _, Vt = np.linalg.svd((own.lora_B @ own.lora_A).numpy())
        assert row.weight_norm == pytest.approx(np.linalg.norm(W), rel=1e-6)
        assert row.in_delta == pytest.approx(np.linalg.norm(U[:, :2].T @ W @ Vt[:2].T), rel=1e-5)


def _bare(path: str) -> str:
    return path.removeprefix("bert.")


def _stored(base: Path) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in load_file(base / "model.safetensors").items()}


def test_a_base_without_safetensors_is_loaded_whole(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base")
    adapter = open_adapter(adapter_dir(base, tmp_path / "a", targets=["q_proj"]))
    mapped = subspace_base(adapter, str(base))
    held = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(held, base / "pytorch_model.bin")
    assert subspace_base(adapter, str(base)).projections == mapped.projections


def test_dora_says_that_its_magnitudes_are_left_out(tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base")
    adapter = open_adapter(adapter_dir(base, tmp_path / "a", targets=["q_proj"], variant="dora"))
    assert any("DoRA" in note for note in subspace_base(adapter, str(base)).notes)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base_dir(tmp_path / "base")
    base_dir(tmp_path / "other", seed=4)
    adapter = open_adapter(adapter_dir(tmp_path / "base", tmp_path / "a", targets=["q_proj"]))
    with pytest.raises(CheckpointError, match="base"):
        subspace_base(adapter, str(tmp_path / "other"))
    assert subspace_base(adapter, str(tmp_path / "other"), allow_other_base=True).projections


@pytest.mark.shared
def test_the_stored_adapter_of_the_authors(shared: Path) -> None:
    """24 matrices; the update of query in layer 11 has norm 2 x 6.39 at alpha 16, almost all in one direction."""
    adapter = open_adapter(shared / "adapters" / "loralib", alpha=16)
    found = within(adapter)
    assert len(found.own) == 24 and {own.width for own in found.own} == {768} and {own.rank for own in found.own} == {8}
    last = next(own for own in found.own if own.label.endswith("11.attention.self.query"))
    assert last.norm == pytest.approx(2 * 6.39, abs=0.01) and last.top == pytest.approx((6.37 / 6.39) ** 2, abs=0.003)
    # neighbors in depth share several times what chance gives; random matrices do not
    assert np.mean([own.closest for own in found.own if own.closest is not None]) > 5 * 8 / 768
    assert np.mean([own.control for own in found.own]) == pytest.approx(8 / 768, rel=0.15)
    same = subspace(adapter, adapter)
    assert len(same.grids) == 24 and min(min(map(min, grid.phi)) for grid in same.grids) == pytest.approx(1, abs=1e-9)
