"""The maths page against the float64 reference, and its gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import reference
from deltaw import functional as F
from deltaw.errors import ConfigError

R, IN, OUT, N = 3, 7, 6, 5


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W": (OUT, IN), "x": (N, IN), "A": (R, IN), "B": (OUT, R), "bias": (OUT,)}
    return {
        key: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for key, shape in shapes.items()
    }


def test_the_two_halves_are_the_papers_equation() -> None:
    t = tensors()
    out = torch.nn.functional.linear(t["x"], t["W"], t["bias"])
    got = F.add_term(out, F.linear_up(F.linear_down(t["x"], t["A"]), t["B"]), F.scaling_of(R, 5.0))
    n = {key: value.numpy() for key, value in t.items()}
    expected = reference.forward(n["W"], n["bias"], n["x"], [reference.Term(n["A"], n["B"], 5.0)])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [[0], [5, 1], [2, 3, 4]])
def test_a_term_on_some_rows_leaves_the_others_alone(rows: list[int]) -> None:
    t = tensors()
    out = t["x"] @ t["W"].t()
    got = F.add_term(out, F.linear_up(F.linear_down(t["x"], t["A"]), t["B"][: len(rows)]), 0.7, torch.tensor(rows))
    n = {key: value.numpy() for key, value in t.items()}
    term = reference.Term(n["A"], n["B"][: len(rows)], 0.7 * R, rows)
    np.testing.assert_allclose(got.numpy(), reference.forward(n["W"], None, n["x"], [term]), rtol=1e-12)
    others = [row for row in range(OUT) if row not in rows]
    assert torch.equal(got[:, others], out[:, others])


def test_a_lookup_is_the_linear_map_of_onehot_inputs() -> None:
    t = tensors()
    ids = torch.tensor([[1, 6], [0, 1]])
    got = F.embed_down(ids, t["A"], None, False, torch.float64)
    onehot = reference.onehot(ids.numpy(), IN)
    np.testing.assert_allclose(got.reshape(-1, R).numpy(), onehot @ t["A"].numpy().T, rtol=1e-14)


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_scaling(rank: int, stabilized: bool) -> None:
    term = reference.Term(np.zeros((rank, 1)), np.zeros((1, rank)), 5.0, stabilized=stabilized)
    assert F.scaling_of(rank, 5.0, stabilized) == pytest.approx(term.scale, rel=1e-15)


def test_scaling_of_rank_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank of at least 1"):
        F.scaling_of(0, 1.0)


def test_delta_and_merge_are_the_reference_rounded_once() -> None:
    t = tensors(torch.float32)
    n = {key: value.double().numpy() for key, value in t.items()}
    expected = reference.delta([reference.Term(n["A"], n["B"], 2.5)], OUT)
    got = F.delta_weight(t["A"], t["B"], F.scaling_of(R, 2.5))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)
    half = t["W"].bfloat16()
    assert torch.equal(F.merge_weight(half, got), (half.float() + got).bfloat16())
    assert F.merge_weight(half, got).dtype == torch.bfloat16
    wide = t["W"].double()
    assert torch.equal(F.merge_weight(wide, got), wide + got.double())


@pytest.mark.parametrize("rows", [None, [4, 0]])
def test_gradcheck(rows: list[int] | None) -> None:
    t = tensors()
    index = None if rows is None else torch.tensor(rows)
    B = t["B"] if rows is None else t["B"][: len(rows)]
    inputs = [value.clone().requires_grad_() for value in (t["x"], t["A"], B)]

    def term(x: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> torch.Tensor:
        return F.add_term(x @ t["W"].t(), F.linear_up(F.linear_down(x, lora_A), lora_B), 0.3, index)

    assert gradcheck(term, inputs)


def test_gradcheck_of_a_lookup_and_of_dropout() -> None:
    t = tensors()
    ids = torch.tensor([0, 3, 3])
    lora_A = t["A"].clone().requires_grad_()
    assert gradcheck(lambda a: F.embed_down(ids, a, None, False, torch.float64), [lora_A])
    x = t["x"].clone().requires_grad_()
    assert gradcheck(lambda v: F.drop(v, 0.4, 7), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_activation_keeps_its_dtype(dtype: torch.dtype) -> None:
    t = tensors(torch.float32)
    x = t["x"].to(dtype)
    h = F.linear_down(x, t["A"])
    out = F.add_term(torch.zeros(N, OUT, dtype=dtype), F.linear_up(h, t["B"]), 1.0)
    assert h.dtype == out.dtype == dtype
    assert F.drop(x, 0.5, 1).dtype == dtype


def test_drop_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    F.drop(torch.ones(10), 0.5, 3)
    assert torch.equal(before, torch.get_rng_state())
