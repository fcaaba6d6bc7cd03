"""Batches of many adapters: the arithmetic against float64, every layout, every way to say which row is whose."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import builders
import deltaw as dw
import reference
from deltaw.layer import container_of
from deltaw.mixed import stack_factors
from deltaw.routing import Groups, Route, Seats
from deltaw.stacked import Each, Grouped, Layout, Masked, Padded, Runs, Sorted, add_stacked, grouped_works

COUNT, RANK, IN, OUT = 3, 8, 8, 16
NAMES = [None, "a", "b", "c"]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wanted(out: Tensor, x: Tensor, A: Tensor, B: Tensor, s: Tensor, places: list[int]) -> Tensor:
    """Row by row, in float64."""
    rows = [
        o if p < 0 else o + s[p].double() * (v @ A[p].t() @ B[p])
        for o, v, p in zip(out.double(), x.double(), places, strict=True)
    ]
    return torch.stack(rows)


def layouts(places: list[int]) -> dict[str, Layout]:
    """Every layout that these rows can have."""
    index = torch.tensor(places)
    groups, clamped = Groups(index, COUNT, torch.device("cpu")), index.clamp_min(0)
    found: dict[str, Layout] = {way: groups._make(way) for way in ("rows", "padded", "grouped")}
    if groups.together:
        found["runs"] = groups._make("runs")
    ends = torch.bincount(clamped, minlength=COUNT).cumsum(0).to(torch.int32)
    found |= {"each": Each(index), "masked": Masked(index), "sorted": Sorted(index, clamped.argsort(stable=True), ends)}
    return found


ROUTINGS = [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0, 2, 2, 1], [-1, 2, 0, -1, 2], [1], [-1, 1, -1], [2, 2, 2, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("places", ROUTINGS, ids=str)
def test_every_layout_is_the_sum_row_by_row(places: list[int], tokens: int, dtype: torch.dtype) -> None:
    count = len(places)
    out, x = numbers(count, tokens, OUT, seed=1, dtype=dtype), numbers(count, tokens, IN, seed=2, dtype=dtype)
    A, B = numbers(COUNT, RANK, IN, seed=3, dtype=dtype), numbers(COUNT, RANK, OUT, seed=4, dtype=dtype)
    s = torch.tensor([0.5, 2.0, -1.0])
    want = wanted(out, x, A.double(), B.double(), s, places)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    tried = set()
    for (way, layout), fresh in itertools.product(layouts(places).items(), (False, True)):
        if way in ("grouped", "sorted") and dtype not in grouped_works("cpu"):
            continue
        got = add_stacked(out.clone(), x, A, B, s, layout, fresh)
        assert got.dtype == dtype
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error < tolerance, f"{way}, fresh={fresh}: {error}"
        for row, place in enumerate(places):
            assert place >= 0 or torch.equal(got[row], out[row]), f"{way} touched a row of the base"
        tried.add(way)
    assert {"rows", "padded", "each", "masked"} <= tried and (dtype == torch.float64 or "grouped" in tried)


@pytest.mark.parametrize("way", ["rows", "padded", "each", "masked", "runs"])
def test_gradients_of_a_layout(way: str) -> None:
    places = [0, 0, 1, 1, 2, 2] if way == "runs" else [2, -1, 0, 2, 2]
    layout = layouts(places)[way]
    tensors = [numbers(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes(len(places)))]
    s = torch.tensor([0.5, 2.0, -1.0])
    assert torch.autograd.gradcheck(lambda o, x, A, B: add_stacked(o, x, A, B, s, layout), tensors)


def shapes(rows: int) -> list[tuple[int, ...]]:
    return [(rows, 2, OUT), (rows, 2, IN), (COUNT, RANK, IN), (COUNT, RANK, OUT)]


@pytest.mark.parametrize("way", ["grouped", "sorted"])
def test_gradients_of_the_grouped_product(way: str) -> None:
    if torch.float32 not in grouped_works("cpu"):
        pytest.skip("this torch has no grouped product here")
    places = [2, -1, 0, 2, 2]
    grads = {}
    for name in (way, "padded"):
        tensors = [numbers(*shape, seed=i, dtype=torch.float32).requires_grad_() for i, shape in enumerate(shapes(5))]
        out, x, A, B = tensors
        add_stacked(out, x, A, B, torch.tensor([0.5, 2.0, -1.0]), layouts(places)[name]).square().sum().backward()
        grads[name] = [t.grad for t in tensors]
    for got, want in zip(grads[way], grads["padded"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_cheapest_layout_is_taken() -> None:
    def way(places: list[int], tokens: int, rank: int = 4, width: int = 64) -> type[Layout]:
        index = torch.tensor(places)
        groups = Groups(index, max(places) + 1, torch.device("cpu"))
        return type(groups.layout(torch.zeros(len(places), tokens, width), width, rank, width))

    assert way([0, 0, 1, 1], 1) is Runs and way([0, 0, 1, 1], 64) is Runs
    assert way([0, 1, 0, 1], 64).__name__ == "ByRow"
    assert way([0, 1, 0, 1], 1) is Padded and way([0, 1, 0, -1], 1) is Padded
    uneven = [0] * 20 + [1, 2, 3, 4]
    assert way(uneven, 1) is (Grouped if torch.float32 in grouped_works("cpu") else Padded)
    assert way([0, 1] * 200, 1) is way(uneven, 1), "many tokens"
    assert way(uneven, 1, width=6) is Padded, "rows that are no multiples of 16 bytes"
    seats = Route(["a", None], ["a"], torch.device("cpu")).seats
    grouped = Sorted if torch.float32 in grouped_works("cpu") else Masked
    assert type(seats.layout(torch.zeros(2, 1, 64), 64, 4, 64)) is grouped
    assert type(seats.layout(torch.zeros(2, 64, 64), 64, 4, 64)) is Each
    assert type(seats.layout(torch.zeros(2, 1, 6), 6, 4, 6)) is Masked


# whole layers


class Three(nn.Module):
    """A table, a linear layer and transformers' Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 6, padding_idx=1)
        self.linear = nn.Linear(6, 8)
        self.conv1d = builders.conv1d(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.conv1d(self.linear(self.embed(ids)))


def three(names: str = "abc", **config: Any) -> Three:
    """Adapters of ranks 2, 3 and 5 with different scalings; the last leaves the linear layer alone."""
    model = Three().eval()
    for seed, name in enumerate(names):
        targets = ["embed", "linear", "conv1d"] if seed < 2 else ["embed", "conv1d"]
        rank = (2, 3, 5)[seed % 3]
        builders.attach(model, name, **{"targets": targets, "rank": rank, "alpha": 3.0 + seed, "seed": seed, **config})
        builders.randomize(model, seed, size=0.5, adapter=name)
    return model


def by_hand(model: Three, ids: Tensor, name: str | None) -> np.ndarray[Any, Any]:
    """The model for one adapter, in float64."""

    def terms(path: str, table: bool = False) -> list[reference.Term]:
        entry: Any = container_of(model.get_submodule(path))._modules.get(name or "")
        if entry is None:
            return []
        A, B = (t.detach().double().numpy() for t in (entry.lora_A, entry.lora_B))
        return [reference.Term(A, B, alpha=entry.part.alpha)]

    def wide(tensor: Tensor) -> Any:
        return tensor.detach().double().numpy()

    onehot = np.eye(10)[ids.numpy().reshape(-1)]
    x = reference.forward(wide(model.embed.weight).T, None, onehot, terms("embed"))
    x = reference.forward(wide(model.linear.weight), wide(model.linear.bias), x, terms("linear"))
    conv: Any = model.conv1d
    return reference.forward(wide(conv.weight).T, wide(conv.bias), x, terms("conv1d")).reshape(*ids.shape, -1)


IDS = torch.randint(0, 10, (6, 5), generator=torch.Generator().manual_seed(4))
ROWS = ["c", None, "a", "b", "a", "c"]


@pytest.mark.parametrize("bank", [False, True])
def test_rows_against_float64(bank: bool) -> None:
    model = three()
    if bank:
        dw.AdapterBank(model, size=5)
    for names in (ROWS, ["a", "a", "b", "b", "c", "c"], ["b"] * 6):
        with torch.no_grad(), dw.route(model, names):
            got = model(IDS)
        for row, name in enumerate(names):
            np.testing.assert_allclose(got[row].numpy(), by_hand(model, IDS[row], name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bank", [False, True])
def test_tokens_against_float64(bank: bool) -> None:
    model = three()
    if bank:
        dw.AdapterBank(model, size=5)
    names = [[NAMES[(3 * row + token) % 4] for token in range(5)] for row in range(6)]
    with torch.no_grad(), dw.route(model, names):
        got, flat = model(IDS), model(IDS.flatten())
    for row, token in itertools.product(range(6), range(5)):
        want = by_hand(model, IDS[row, token : token + 1], names[row][token])[0]
        np.testing.assert_allclose(got[row, token].numpy(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flat, got.flatten(0, 1))


@pytest.mark.parametrize("bank", [False, True])
def test_rows_of_the_base_keep_every_bit(bank: bool) -> None:
    model = three()
    if bank:
        dw.AdapterBank(model, size=5)
    with dw.disabled(model):
        base = model(IDS)
    for names in (ROWS, ROWS[::-1], [None] * 6):
        with dw.route(model, names):
            got = model(IDS)
        for row, name in enumerate(names):
            assert (builders_bits(got[row]) == builders_bits(base[row])) == (name is None)
    with dw.route(model, [[NAMES[t % 2] for t in range(5)] for _ in range(6)]):
        got = model(IDS)
    assert builders_bits(got[:, 0::2]) == builders_bits(base[:, 0::2])


def builders_bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_places_are_names() -> None:
    model = three()
    with dw.route(model, ROWS):
        want = model(IDS)
    with dw.route(model, torch.tensor([2, -1, 0, 1, 0, 2])):
        assert torch.equal(model(IDS), want)
    bank = dw.AdapterBank(model, size=4, rank=6)
    bank.remove("a")
    bank.put("a")
    dw.detach(model, "b")
    builders.attach(model, "d", targets=["linear"], rank=1)
    assert bank.names == ("a", "d", "c", None)
    with torch.no_grad(), dw.route(model, torch.tensor([2, -1, 0, 1, 0, 2], dtype=torch.int32)):
        got = model(IDS)
    torch.testing.assert_close(got[[0, 1, 2, 4, 5]], want[[0, 1, 2, 4, 5]])


@settings(max_examples=25, deadline=None)
@given(
    routing=st.lists(st.lists(st.sampled_from(NAMES), min_size=4, max_size=4), min_size=1, max_size=6),
    banked=st.booleans(),
)
def test_any_routing_is_its_parts(routing: list[list[str | None]], banked: bool) -> None:
    model, x = three(), torch.randint(0, 10, (len(routing), 4), generator=torch.Generator().manual_seed(len(routing)))
    alone: dict[str | None, Tensor] = {}
    for name in NAMES:
        with torch.no_grad(), dw.disabled(model) if name is None else dw.active(model, name):
            alone[name] = model(x)
    if banked:
        dw.AdapterBank(model, size=3)
    with torch.no_grad(), dw.route(model, routing):
        tokens = model(x)
    with torch.no_grad(), dw.route(model, [row[0] for row in routing]):
        rows = model(x)
    for row, names in enumerate(routing):
        torch.testing.assert_close(rows[row], alone[names[0]][row], rtol=1e-5, atol=1e-5)
        for token, name in enumerate(names):
            torch.testing.assert_close(tokens[row, token], alone[name][row, token], rtol=1e-5, atol=1e-5)


# training


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in dw.trainable(model) if p.grad is not None}


@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_training_together_is_training_alone(dropout: float, tokens: int, bank: bool) -> None:
    """In float64, where nothing but the order of sums can differ, and to 1e-6 in fp32."""
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        model = linear_pair(dropout).to(dtype).train()
        x = numbers(6, tokens, 6, seed=5, dtype=dtype)
        names = ["a", "b", None, "a", "b", "b"]
        alone: dict[str, Tensor] = {}
        for name in "ab":
            dw.set_draws(model, dict.fromkeys(dw.draws(model), 0))
            with dw.active(model, name):
                alone |= gradients(model, x[[row for row, other in enumerate(names) if other == name]])
        if bank:
            dw.AdapterBank(model, size=3)
        dw.set_draws(model, dict.fromkeys(dw.draws(model), 0))
        with dw.route(model, names):
            together = gradients(model, x)
        assert set(together) == set(alone) and len(alone) == 6
        for name, want in alone.items():
            assert (together[name] - want).norm() <= tolerance * want.norm(), name


def linear_pair(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    for seed, name in enumerate("ab"):
        targets = ["0", "2"] if name == "a" else ["2"]
        builders.attach(model, name, targets=targets, rank=2 + seed, dropout=dropout, seed=seed)
        builders.randomize(model, seed, adapter=name)
    return model


def test_an_adapter_without_rows_gets_no_gradient() -> None:
    model = linear_pair(0.0)
    with dw.route(model, ["a", "a", None]):
        found = gradients(model, numbers(3, 6, dtype=torch.float32))
    assert all(".a." in name for name in found) and len(found) == 4


def test_embeddings_are_trained_apart() -> None:
    model = three()
    with dw.route(model, ROWS):
        together = gradients(model, IDS)
    for name in "abc":
        with dw.active(model, name):
            alone = gradients(model, IDS[[row for row, other in enumerate(ROWS) if other == name]])
        for key, want in alone.items():
            torch.testing.assert_close(together[key], want, rtol=1e-5, atol=1e-5)
    padded = together["embed.lora.a.lora_A"][:, 1]
    assert (IDS == 1).any() and torch.count_nonzero(padded) == 0, "padding gets no gradient"


def test_under_autocast_the_activation_is_not_cast_up() -> None:
    model, x = linear_pair(0.0).eval(), numbers(4, 3, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with dw.route(model, ["a", "b", None, "b"]):
            got = model(x)
        for row, name in enumerate(["a", "b", None, "b"]):
            with dw.disabled(model) if name is None else dw.active(model, name):
                torch.testing.assert_close(got[row], model(x)[row], rtol=2e-2, atol=2e-2)
    assert got.dtype == torch.bfloat16


def test_checkpointing_draws_the_same_masks() -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for recompute in (False, True):
        model, x = linear_pair(0.4).train(), numbers(4, 3, 6, dtype=torch.float32)
        with dw.route(model, ["a", "b", None, "b"]):
            out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
            out.square().sum().backward()
        found.append({name: p.grad for name, p in dw.trainable(model)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_cannot_be_stacked_stands_beside_what_can() -> None:
    model, x = linear_pair(0.0).eval(), numbers(6, 3, 6, dtype=torch.float32)
    builders.attach(model, "dora", targets=["2"], rank=2, variant="dora")
    builders.attach(model, "full", targets=["0"], rank=2, train_also=["2"])
    builders.randomize(model, 5, adapter="dora")
    builders.randomize(model, 6, adapter="full")
    names = ["a", "dora", None, "b", "full", "dora"]
    with dw.route(model, names), torch.no_grad():
        got = model(x)
    with dw.route(model, [[name] * 3 for name in names]), torch.no_grad():
        torch.testing.assert_close(model(x), got)
    for row, name in enumerate(names):
        with dw.disabled(model) if name is None else dw.active(model, name):
            torch.testing.assert_close(got[row], model(x)[row], rtol=1e-5, atol=1e-5)


def test_a_stack_pads_with_zeros() -> None:
    model = three()
    entries: list[Any] = [container_of(model.linear)._modules.get(name) for name in "abc"]
    A, B, scalings = stack_factors(entries, torch.float32)
    assert A.shape == (3, 3, 6) and B.shape == (3, 3, 8) and scalings.tolist() == [1.5, pytest.approx(4 / 3), 0.0]
    assert torch.equal(A[0, :2], entries[0].lora_A) and torch.equal(B[1], entries[1].lora_B.t())
    assert not A[0, 2:].any() and not B[0, 2:].any() and not A[2].any()


def test_seats_are_tensors_of_the_routing() -> None:
    seats: Seats = Route(["b", None, "a"], ["a", None, "b"], torch.device("cpu")).seats
    assert seats.place.tolist() == [2, -1, 0] and seats.ends.tolist() == [2, 2, 3] and seats.names == ("a", None, "b")
    assert seats.place.clamp_min(0)[seats.order].tolist() == [0, 0, 2]


@pytest.mark.slow
def test_generation_row_for_row() -> None:
    model = builders.llama()
    for seed, name in enumerate("abc"):
        builders.attach(model, name, targets="all-linear", rank=2 + seed)
        builders.randomize(model, seed, size=0.8, adapter=name)
    ids, options = builders.ids(shape=(5, 4)), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    names = ["b", None, "a", "c", "b"]
    alone = []
    for row, name in enumerate(names):
        with dw.disabled(model) if name is None else dw.active(model, name):
            alone.append(model.generate(ids[row : row + 1], **options)[0])
    assert len({tuple(row[4:].tolist()) for row in alone}) > 2, "the adapters say different things"
    for bank in (None, dw.AdapterBank(model, size=4)):
        with dw.route(model, names):
            got = model.generate(ids, **options)
        for row, want in enumerate(alone):
            torch.testing.assert_close(got[row, : len(want)], want, msg=f"row {row}, bank {bank}")
