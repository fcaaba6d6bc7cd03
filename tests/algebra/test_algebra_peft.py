"""PEFT as judge: it loads what the algebra writes, and its own ``add_weighted_adapter`` agrees."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from values import Net, adapter, deltas, sizes, weighted

import deltaw as dw
from deltaw.algebra import resize
from peft_judge import fill, peft_load, peft_model, seeded

PATHS = ("fc", "h.0.fc", "embed", "conv")
"""Without groups: PEFT takes their A over all channels and cannot merge them."""
ALLOWED = {r"Setting `save_embedding_layers`": "", r"Could not identify embedding": "", r"groups > 1": ""}


def theirs(made: dw.Adapter, directory: Path) -> Any:
    """PEFT's model with this adapter; a missing or unexpected key or an unknown warning fails."""
    made.save(directory)
    return peft_load(seeded(Net), directory, allowed=ALLOWED)


def peft_deltas(model: Any, name: str = "default") -> dict[str, np.ndarray]:
    """PEFT's own update of every module, in our layout."""
    from peft.tuners.lora import Embedding, LoraLayer

    found = {}
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta: Tensor = module.get_delta_weight(name)
            delta = delta.t() if isinstance(module, Embedding) else delta.flatten(1)
            found[path] = delta.detach().double().numpy()
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert np.linalg.norm(found[path] - value) <= tolerance * max(np.linalg.norm(value), 1.0), path


A = adapter(PATHS, {"fc": 4, "h.0.fc": 2, "embed": 4, "conv": 6}, 6, seed=1)
B = adapter(("fc", "conv"), 2, {"fc": 3, "conv": 16}, seed=2, use_rslora=True, target_modules="(fc|conv)")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(A + B, id="sum of uneven adapters"),
        pytest.param(dw.combine([A, B], [0.7, -0.3], method="concatenate").adapter, id="concatenate"),
        pytest.param(0.5 * A, id="scaled"),
        pytest.param(-1 * B, id="negative and stabilized"),
        pytest.param(A.resize(rank=2), id="by rank"),
        pytest.param(B.resize(energy=0.6), id="by energy, stabilized"),
        pytest.param(A.resize(budget=100), id="one budget"),
        pytest.param(A - A, id="zero"),
        pytest.param(adapter(PATHS[:2], bias=True, seed=5) + B, id="bias of B"),
    ],
)
def test_peft_loads_a_result_and_means_the_same(made: dw.Adapter, tmp_path: Path) -> None:
    assert_same(peft_deltas(theirs(made, tmp_path)), deltas(made))


def test_a_combination_saved_and_loaded_by_both_gives_one_output(tmp_path: Path) -> None:
    linear = ("fc", "h.0.fc", "embed")
    made = adapter(linear, 4, 6, seed=1) - 0.25 * adapter(linear, 2, 4, seed=2)
    judge = theirs(made, tmp_path)
    ids = torch.arange(8).reshape(2, 4)
    ours = seeded(Net)
    dw.load(ours, tmp_path)
    torch.testing.assert_close(ours(ids), judge(ids), rtol=1e-5, atol=1e-5)


def pair(
    tmp_path: Path, names: Sequence[str] = ("one", "two"), ranks: Sequence[int] = (4, 2)
) -> tuple[Any, list[dw.Adapter]]:
    """Two adapters of PEFT's own making in one model, and the same as values."""
    import peft

    names, modules = ("one", "two"), ["fc", "embed", "conv"]
    base: nn.Module = seeded(Net)
    fields: dict[str, Any] = {"target_modules": modules, "lora_alpha": 6}
    judge = peft_model(base, {**fields, "r": ranks[0]}, names[0])
    judge.add_adapter(names[1], peft.LoraConfig(r=ranks[1], **{**fields, "lora_alpha": 3}))
    fill([(name, p) for name, p in judge.named_parameters() if "lora_" in name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge.save_pretrained(str(tmp_path), save_embedding_layers=False)
    return judge, [dw.Adapter.open(tmp_path / name) for name in names]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (0.7, -1.3)])
@pytest.mark.parametrize(("method", "kind"), [("concatenate", "cat"), ("exact", "cat")])
def test_peft_agrees_on_the_sum(method: str, kind: str, weights: tuple[float, float], tmp_path: Path) -> None:
    judge, ours = pair(tmp_path)
    judge.base_model.add_weighted_adapter(["one", "two"], list(weights), "mixed", combination_type=kind)
    expected = weighted(ours, weights)
    made = deltas(dw.combine(ours, weights, method=method).adapter)
    found, size = peft_deltas(judge, "mixed"), sizes(ours, weights)
    assert found.keys() == made.keys()
    for path, value in expected.items():
        # PEFT's own error against the analytic sum is the measure
        own = np.linalg.norm(found[path] - value)
        assert np.linalg.norm(made[path] - value) <= 4 * own + 1e-7 * size[path]


@pytest.mark.parametrize("rank", [1, 3])
def test_peft_agrees_on_the_truncated_sum(rank: int, tmp_path: Path) -> None:
    """PEFT decomposes the dense matrix; ours, the factors."""
    judge, ours = pair(tmp_path)
    judge.base_model.add_weighted_adapter(["one", "two"], [0.7, -1.3], "mixed", combination_type="svd", svd_rank=rank)
    made = deltas(resize(dw.combine(ours, [0.7, -1.3]).adapter, rank=rank).adapter)
    assert_same(made, peft_deltas(judge, "mixed"), 2e-6)


@pytest.mark.parametrize("density", [0.3, 0.8])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -1.3)])
def test_peft_agrees_on_ties_of_the_factors(density: float, weights: tuple[float, float], tmp_path: Path) -> None:
    judge, ours = pair(tmp_path, ranks=(4, 4))
    judge.base_model.add_weighted_adapter(
        ["one", "two"], list(weights), "mixed", combination_type="ties", density=density
    )
    made = dw.combine(ours, weights, method="ties", density=density).adapter
    assert_same(deltas(made), peft_deltas(judge, "mixed"), 1e-6)


class Several(nn.Module):
    """An attention and a convolution with groups, as PEFT adapts them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.grouped = nn.Conv1d(8, 4, 3, groups=2)
        self.fc = nn.Linear(8, 8)


def made_by_peft(place: Path, targets: list[str], r: int, seed: int = 5, **fields: Any) -> dw.Adapter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = peft_model(seeded(Several), {"target_modules": targets, "r": r, "lora_alpha": 6, **fields})
        fill([(name, p) for name, p in judge.named_parameters() if "lora_" in name], seed)
        judge.save_pretrained(str(place))
    return dw.Adapter.open(place)


def loaded(made: dw.Adapter, place: Path) -> Any:
    made.save(place)
    return peft_load(seeded(Several), place, allowed=ALLOWED)


@pytest.mark.parametrize("how", ["sum", "rank", "budget", "one scaling for both"])
def test_peft_loads_both_projections_of_an_attention(how: str, tmp_path: Path) -> None:
    a = made_by_peft(tmp_path / "a", ["attn"], 4)
    b = made_by_peft(tmp_path / "b", ["attn"], 2, 6)
    if how == "one scaling for both":
        keys = [key for key in b.tensors if "out_proj" in key]
        b = dw.Adapter(tensors={key: t for key, t in b.tensors.items() if key not in keys}, raw=b.raw)
    results = {"rank": lambda: a.resize(rank=2), "budget": lambda: (a + b).resize(budget=160)}
    made = results.get(how, lambda: a + b)()
    judge = loaded(made, tmp_path / "made")
    layer = judge.base_model.model.attn
    for path, wrapped in (("attn", layer), ("attn.out_proj", layer.base_layer.out_proj)):
        # PEFT's forward and merge add the output projection's update twice
        times = 2 if path.endswith("out_proj") else 1
        theirs_ = wrapped.get_delta_weight("default").detach() * times
        torch.testing.assert_close(made.delta(path), theirs_, rtol=1e-5, atol=1e-6)
    if how != "rank":
        return
    keys = sorted(made.tensors)
    assert keys == sorted(a.tensors) and any(".base_layer.out_proj." in key for key in keys)


def test_peft_loads_a_convolution_with_groups(tmp_path: Path) -> None:
    a = made_by_peft(tmp_path / "a", ["grouped", "fc"], 4)
    for made in (a.resize(rank=2), a + made_by_peft(tmp_path / "b", ["grouped"], 2, 7)):
        judge = loaded(made, tmp_path / "made")
        x = torch.randn(2, 8, 5)
        layer, base = judge.base_model.model.grouped, seeded(Several).grouped
        # their A is a convolution over all channels, their B one of two groups
        kernel = made.delta("grouped").reshape(4, 8, 3)
        expected = base(x) + nn.functional.conv1d(x, kernel)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_peft_loads_a_resized_dora(tmp_path: Path) -> None:
    made = made_by_peft(tmp_path / "a", ["fc"], 4, use_dora=True).resize(rank=2)
    judge = loaded(made, tmp_path / "made")
    ours = seeded(Several)
    dw.load(ours, tmp_path / "made")
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours.fc(x), judge.base_model.model.fc(x), rtol=1e-5, atol=1e-5)
