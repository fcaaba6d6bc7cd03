"""M: what a merge makes of the base, and what an unmerge leaves."""

from __future__ import annotations

from pathlib import Path

import torch
from bases import LAYERS, Case, Mlp, OneWeight, Spec, Table, TwoNames, floats, llama, made, output, tokens
from drivers import Driver, fill
from rows import bits, case, near, row

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def worn(driver: type[Driver], of: Case, dtype: torch.dtype = torch.float32, **changes: object) -> Driver:
    """A model of a case with its adapter, filled with values of trained size."""
    made_of = driver(of.base().to(dtype))
    made_of.attach(of.spec.but(**changes))
    fill(made_of)
    return made_of


row("M1", "merged = unmerged, every layer type, fp32", "1e-5")
row("M2", "merge, then unmerge restores the base's bits, after 1 and 100 cycles", "exact", slow=True)
row("M3", "a careful and a fast merge give the same bits", "exact")
row("M4", "a bf16 merge is the fp32 merge rounded once", "exact")
row("M5", "shared weights and tied heads: merged = unmerged, or refused", "1e-5", refusable=True)
row("M6", "one module under two names: merged = unmerged", "1e-5", refusable=True)
row("M7", "a forward writes to no weight, in any mode", "exact", refusable=True)
row("M8", "replicated layers: merge is right, or refused", "1e-5", refusable=True)


@case("M1", LAYERS)
@torch.no_grad()
def merged_is_unmerged(driver: type[Driver], _: Path, name: str) -> None:
    model, x = worn(driver, LAYERS[name]), LAYERS[name].x()
    unmerged = model.run(x)
    model.merge()
    near(model.run(x), unmerged, 1e-5)
    model.unmerge()
    near(output(model.export_merged()(x)), unmerged, 1e-5)


@case("M2", DTYPES)
def unmerge_restores(driver: type[Driver], _: Path, dtype: torch.dtype) -> None:
    model = worn(driver, LAYERS["linear"], dtype)
    before, wide = bits(model.base_state()), {k: t.clone().double() for k, t in model.base_state().items()}
    for cycle in range(1, 101):
        model.merge()
        model.unmerge()
        if cycle in (1, 100) and bits(model.base_state()) != before:
            drift = max(float((t.double() - wide[k]).abs().max()) for k, t in model.base_state().items())
            raise AssertionError(f"off by {drift:.0e} after {cycle} cycle{'s' if cycle > 1 else ''}")


@case("M3", DTYPES)
def careful_is_fast(driver: type[Driver], _: Path, dtype: torch.dtype) -> str:
    found = []
    for careful in (False, True):
        model = worn(driver, LAYERS["linear"], dtype)
        model.merge(careful=careful)
        found.append({k: t for k, t in model.base_state().items() if k.endswith("weight")})
    unequal = torch.cat([(found[0][key] != found[1][key]).flatten() for key in found[0]]).double().mean()
    assert bits(found[0]) == bits(found[1]), f"{unequal:.0%} of the values differ"
    return "there is one road, and it is the careful one" if driver.title == "deltaw" else ""


@case("M4", ("fast", "careful"))
def one_rounding(driver: type[Driver], _: Path, how: str) -> None:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model = driver(made(Mlp).bfloat16().to(dtype))
        model.attach(LAYERS["linear"].spec)
        fill(model)
        model.merge(careful=how == "careful")
        found.append({k: t.bfloat16() for k, t in model.base_state().items() if k.endswith("weight")})
    unequal = torch.cat([(found[0][key] != found[1][key]).flatten() for key in found[0]]).double().mean()
    assert bits(found[0]) == bits(found[1]), f"{unequal:.0%} of the values differ"


SHARED = {
    "two modules over one weight": Case(make=OneWeight, x=floats(3, 8), spec=Spec(targets=("left", "right"))),
    "tied head (alone)": Case(make=lambda: Table(tied=True), x=tokens, spec=Spec(targets=("head",))),
    "tied head (and table)": Case(make=lambda: Table(tied=True), x=tokens, spec=Spec(targets=("table", "head"))),
    "tied head (one update asked for)": Case(
        make=lambda: Table(tied=True), x=tokens, spec=Spec(targets=("table", "head"), ties="share")
    ),
    "tied language model (one update asked for)": Case(
        make=lambda: llama(tied=True), x=tokens, spec=Spec(targets=("embed_tokens", "lm_head"), ties="share")
    ),
}


@case("M5", SHARED)
@torch.no_grad()
def shared_weights(driver: type[Driver], _: Path, name: str) -> None:
    model, x = worn(driver, SHARED[name]), SHARED[name].x()
    unmerged = model.run(x)
    model.merge()
    near(model.run(x), unmerged, 1e-5)


@case("M6")
@torch.no_grad()
def two_names(driver: type[Driver], _: Path) -> None:
    model, x = driver(made(TwoNames)), floats(3, 8)()
    model.attach(Spec(targets=("first",)))
    fill(model)
    unmerged = model.run(x)
    model.merge()
    near(model.run(x), unmerged, 1e-5)


@case("M7", ("linear", "embedding", "conv2d", "dora", "attention"))
def forwards_write_nothing(driver: type[Driver], _: Path, name: str) -> None:
    model, x = worn(driver, LAYERS[name]), LAYERS[name].x()
    tensors = model.base_state()
    before, versions = bits(tensors), {key: t._version for key, t in tensors.items()}
    for training in (True, False):
        model.callable().train(training)
        model.run(x)
        with model.disabled():
            model.run(x)
        assert bits(model.base_state()) == before, "other bits afterwards"
    assert versions == {key: t._version for key, t in tensors.items()}, "weights are written and restored in a forward"


@case("M7")
@torch.no_grad()
def disabled_while_merged(driver: type[Driver], _: Path) -> None:
    model, x = worn(driver, LAYERS["linear"]), LAYERS["linear"].x()
    model.merge()
    before = bits(model.base_state())
    with model.disabled():
        model.run(x)
    assert bits(model.base_state()) == before, "the forward unmerges"


@case("M8")
@torch.no_grad()
def replicated_layers(driver: type[Driver], _: Path) -> None:
    model, x = driver(made(llama)), tokens()
    model.attach(Spec(targets=("q_proj",), replication=((0, 2), (1, 2))))
    fill(model)
    unmerged = model.run(x)
    model.merge()
    near(model.run(x), unmerged, 1e-5)
