"""Adapters that deltaw saved, computed with, and worn again: slices, tied weights, biases, other bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw as dw
from deltaw.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, tied: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(12, 8)
        self.c_attn = nn.Linear(8, 24)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.c_attn(x).unflatten(-1, (3, 8)).sum(-2))  # type: ignore[no-any-return]


IDS = torch.arange(12).reshape(3, 4)


def saved(place: Path, tied: bool = False, base: int = 0, seed: int = 1, **fields: Any) -> dw.Adapter:
    model = Net(tied, base)
    dw.attach(model, dw.LoRAConfig(**{"rank": 4, "alpha": 6, **fields}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    dw.save(model, place)
    return dw.Adapter.open(place)


def output(place: Path, made: dw.Adapter, tied: bool = False) -> Tensor:
    made.save(place)
    model = Net(tied)
    dw.load(model, place)
    return model(IDS).detach()


SLICED: dict[str, dict[str, Any]] = {
    "slices": {"targets": ["c_attn[q,v]"]},
    "slices of several scalings": {"targets": ["c_attn[q,v]"], "rank_pattern": {"c_attn[v]": 2}},
    "table, tied": {"targets": ["embed"], "ties": "share"},
    "stabilized": {"targets": ["c_attn", "head"], "rank_stabilized": True},
}


@pytest.mark.parametrize("kind", SLICED)
def test_scaled_resized_and_added_adapters_are_worn(kind: str, tmp_path: Path) -> None:
    tied = "tied" in kind
    a = saved(tmp_path / "a", tied, **SLICED[kind])
    base, full = Net(tied)(IDS).detach(), output(tmp_path / "again", a, tied)
    model = Net(tied)
    dw.load(model, tmp_path / "a")
    with dw.active(model, {"default": 0.5}):
        half = model(IDS).detach()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(output(tmp_path / "half", 0.5 * a, tied), half, **close)
    torch.testing.assert_close(output(tmp_path / "sum", 0.25 * a + 0.75 * a, tied), full, **close)
    torch.testing.assert_close(output(tmp_path / "zero", a - a, tied), base, **close)
    most = max(a.factors(path)[0].shape[0] for path in a.modules())
    torch.testing.assert_close(output(tmp_path / "same", a.resize(rank=most), tied), full, rtol=0, atol=0)
    torch.testing.assert_close(output(tmp_path / "whole", a.resize(energy=1.0), tied), full, **close)
    small = a.resize(rank=1)
    assert not torch.allclose(output(tmp_path / "small", small, tied), full, **close)
    assert {small.factors(path)[0].shape[0] for path in small.modules()} == {1}


def test_a_shared_update_stays_shared_and_merges(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", True, **SLICED["table, tied"])
    b = saved(tmp_path / "b", True, seed=2, **SLICED["table, tied"])
    for made in (a + b, a.resize(rank=2), dw.combine([a, b], [1, -1], method="concatenate").adapter):
        made.save(tmp_path / "made")
        model = Net(tied=True)
        dw.load(model, tmp_path / "made")
        adapted = model(IDS)
        dw.merge(model)
        torch.testing.assert_close(model(IDS), adapted, rtol=1e-5, atol=1e-5)


def test_biases_and_copies_are_carried(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", targets=["c_attn"], bias="lora_only", train_also=["head"])
    b = saved(tmp_path / "b", seed=2, targets=["c_attn", "embed"])
    made = dw.combine([b, a], [0.5, 1.0]).adapter
    made.save(tmp_path / "made")
    model = Net()
    dw.load(model, tmp_path / "made")
    bias, head = (a.tensors[f"base_model.model.{key}"] for key in ("c_attn.base_layer.bias", "head.weight"))
    other = Net()
    with torch.no_grad():
        other.c_attn.bias.copy_(bias)
        other.head.weight.copy_(head)
        other.c_attn.weight += a.delta("c_attn") + 0.5 * b.delta("c_attn")
        other.embed.weight += 0.5 * b.delta("embed").t()
    torch.testing.assert_close(model(IDS), other(IDS), rtol=1e-5, atol=1e-5)


def test_bases_must_be_one(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", targets=["c_attn"])
    other = saved(tmp_path / "b", base=7, seed=2, targets=["c_attn", "embed"])
    for call in (lambda: a + other, lambda: a.similarity(other)):
        with pytest.raises(CheckpointError, match="different bases"):
            call()
    report = dw.combine([a, other], allow_other_base=True)
    assert any("as allowed" in note for note in report.notes)
    assert a.similarity(other, allow_other_base=True).modules


def test_the_bases_fingerprint_goes_on(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", targets=["c_attn"])
    b = saved(tmp_path / "b", seed=2, targets=["c_attn", "embed"])
    for made in (a + b, a.resize(rank=2), 0.5 * a):
        made.save(tmp_path / "made")
        dw.load(Net(), tmp_path / "made")
        with pytest.raises(CheckpointError, match="another base"):
            dw.load(Net(seed=3), tmp_path / "made")
    assert set((a + b).own["fingerprint"]["sites"]) == {"c_attn", "embed"}


class Wide(nn.Module):
    """Every kind of site."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.grouped(self.conv(x.mT)).mT
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.fc(x)  # type: ignore[no-any-return]


EVERY: dict[str, dict[str, Any]] = {
    "convolutions": {"targets": ["conv", "grouped"]},
    "attention": {"targets": ["attn"]},
    "one projection, its twin written as zeros": {"targets": ["attn.out_proj"]},
    "uneven projections": {"targets": ["attn"], "rank_pattern": {"attn.out_proj": 2}},
    "bias of B": {"targets": ["fc", "conv", "attn"], "variant": ("lora", "lora_bias")},
    "A frozen": {"targets": ["fc"], "variant": ("lora_fa",)},
    "a start from W": {"targets": ["fc"], "init": "pissa"},
    "token rows": {"targets": ["fc"], "train_rows": {"embed": [1, 3]}},
}


def wide(place: Path, seed: int = 1, **fields: Any) -> dw.Adapter:
    model = Wide()
    dw.attach(model, dw.LoRAConfig(**{"rank": 4, "alpha": 6, **fields}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    dw.save(model, place)
    return dw.Adapter.open(place)


def wide_output(place: Path, made: dw.Adapter, mix: float | None = None) -> Tensor:
    made.save(place)
    model = Wide()
    dw.load(model, place)
    if mix is None:
        return model(IDS).detach()
    with dw.active(model, {"default": mix}):
        return model(IDS).detach()


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_of_site_and_variant(kind: str, tmp_path: Path) -> None:
    a = wide(tmp_path / "a", **EVERY[kind])
    full, close = wide_output(tmp_path / "again", a), {"rtol": 1e-4, "atol": 1e-5}
    largest = max(a.factors(path)[0].shape[0] for path in a.modules())
    torch.testing.assert_close(wide_output(tmp_path / "same", a.resize(rank=largest)), full, rtol=0, atol=0)
    torch.testing.assert_close(wide_output(tmp_path / "whole", a.resize(energy=1.0)), full, **close)
    assert not torch.allclose(wide_output(tmp_path / "small", a.resize(rank=1)), full, **close)
    if "rows" in kind:
        with pytest.raises(CheckpointError, match="trained in full"):
            0.5 * a
        return
    half = wide_output(tmp_path / "half", a, 0.5)
    torch.testing.assert_close(wide_output(tmp_path / "scaled", 0.5 * a), half, **close)
    torch.testing.assert_close(wide_output(tmp_path / "sum", 0.2 * a + 0.3 * a), half, **close)
    side = dw.combine([a, a], [0.2, 0.3], method="concatenate").adapter
    torch.testing.assert_close(wide_output(tmp_path / "side", side), half, **close)
    b = wide(tmp_path / "b", 2, targets=["attn", "fc"], rank=2)
    plain = b.modules()
    mixed = a - 0.5 * b
    assert set(mixed.modules()) == set(a.modules()) | set(plain)
    model = Wide()
    dw.load(model, tmp_path / "a", name="a")
    dw.load(model, tmp_path / "b", name="b")
    with dw.active(model, {"a": 1.0, "b": -0.5}):
        expected = model(IDS).detach()
    torch.testing.assert_close(wide_output(tmp_path / "mixed", mixed), expected, **close)


def test_dora_is_resized_with_its_magnitudes_kept(tmp_path: Path) -> None:
    a = wide(tmp_path / "a", targets=["fc"], variant=("dora",))
    full = wide_output(tmp_path / "again", a)
    torch.testing.assert_close(wide_output(tmp_path / "whole", a.resize(energy=1.0)), full, rtol=1e-4, atol=1e-5)
    small = a.resize(rank=1)
    key = "base_model.model.fc.lora_magnitude_vector"
    assert torch.equal(small.tensors[key], a.tensors[key]) and small.raw["use_dora"] is True
    assert not torch.allclose(wide_output(tmp_path / "small", small), full, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="DoRA"):
        a + wide(tmp_path / "b", targets=["fc"])


def test_vera_is_refused_by_name(tmp_path: Path) -> None:
    a = wide(tmp_path / "a", targets=["fc"], variant=("vera",), alpha=16)
    for call in (lambda: a.resize(rank=1), lambda: 2 * a, lambda: a.similarity(a)):
        with pytest.raises(CheckpointError, match="VERA"):
            call()
