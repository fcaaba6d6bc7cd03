"""Trained rows of a token table: only they move, the table is never copied, a tied head follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError, TieError

ROWS = [2, 9, 5]


def worn(tied: bool = False, scale: float | None = None, rank: int = 0, **kwargs: Any) -> Any:
    model = builders.lookup(tied=tied, bias=True, **kwargs)
    if scale is not None:
        model.embed.register_buffer("embed_scale", torch.tensor(scale))
        model.embed.forward = lambda ids: nn.Embedding.forward(model.embed, ids) * scale
        del model.embed.forward
    dw.attach(
        model,
        dw.LoRAConfig(
            targets=["embed"] if rank else (), rank=rank or 1, train_rows={"embed": ROWS},
            ties="share" if tied else "refuse",
        ),
    )  # fmt: skip
    return model


def moved(model: Any) -> torch.Tensor:
    """The whole table with the trained rows in it."""
    tokens = model.embed.lora.default.tokens
    table = model.embed.weight.detach().clone()
    table[tokens.index] = tokens.rows.detach()
    return table


@torch.no_grad()
def train(model: nn.Module, seed: int = 1) -> None:
    for _, p in dw.trainable(model):
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))


IDS = torch.tensor([[1, 2, 2, 5], [9, 0, 3, 2]])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
def test_only_the_rows_are_trained_and_move(tied: bool, rank: int) -> None:
    model, plain = worn(tied, rank=rank), builders.lookup(tied=tied, bias=True)
    assert torch.equal(model(IDS), plain(IDS)), "a fresh adapter changed something"
    names = {name: p.shape for name, p in dw.trainable(model)}
    assert names.pop("embed.lora.default.tokens.rows") == (3, 6)
    assert len(names) == (2 if rank else 0)
    before = builders.base_bits(model)
    optimizer = torch.optim.SGD([p for _, p in dw.trainable(model)], lr=0.5)
    model(IDS).square().mean().backward()
    optimizer.step()
    assert builders.base_bits(model) == before
    assert (moved(model) != model.embed.weight).any(1).nonzero().view(-1).tolist() == sorted(ROWS)
    assert not torch.equal(model(IDS), plain(IDS))
    with dw.disabled(model):
        assert torch.equal(model(IDS), plain(IDS))


@pytest.mark.parametrize("tied", [False, True])
def test_forward_and_gradients_are_those_of_the_whole_table(tied: bool) -> None:
    model, plain = worn(tied).double(), builders.lookup(tied=tied, bias=True).double()
    train(model)
    plain.embed.weight = nn.Parameter(moved(model))
    if tied:
        plain.head.weight = plain.embed.weight
    torch.testing.assert_close(model(IDS), plain(IDS))
    model(IDS).square().sum().backward()
    plain(IDS).square().sum().backward()
    rows = model.embed.lora.default.tokens.rows
    torch.testing.assert_close(rows.grad, plain.embed.weight.grad[sorted(ROWS)])


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"scale_grad_by_freq": True}])
def test_the_tables_own_options_hold_for_trained_rows(options: dict[str, Any]) -> None:
    model, plain = worn(**options).double(), builders.lookup(bias=True, **options).double()
    train(model)
    plain.embed.weight = nn.Parameter(moved(model))
    torch.testing.assert_close(model(IDS), plain(IDS))
    model(IDS).square().sum().backward()
    plain(IDS).square().sum().backward()
    torch.testing.assert_close(model.embed.lora.default.tokens.rows.grad, plain.embed.weight.grad[sorted(ROWS)])


class Scaled(nn.Embedding):
    """As Gemma's and BART's: what is looked up is scaled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("embed_scale", torch.tensor(3.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embed_scale


def test_scaled_embeddings() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": Scaled(10, 6)})
    dw.attach(model, dw.LoRAConfig(targets="embed", rank=2, train_rows={"embed": ROWS}))
    base = model["embed"](IDS)
    with dw.disabled(model):
        assert torch.equal(model["embed"](IDS), base)
    train(model)
    on = model["embed"](IDS)
    dw.merge(model)
    torch.testing.assert_close(model["embed"](IDS), on)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_and_files(tied: bool, rank: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = worn(tied, rank=rank).to(dtype)
    train(model)
    on, before = model(IDS), builders.bits(model)
    report = dw.merge(model)
    assert report.sites == 1
    torch.testing.assert_close(
        model(IDS), on, rtol=0.05 if dtype != torch.float32 else 1e-5, atol=0.15 if dtype != torch.float32 else 1e-5
    )
    if rank == 0:
        untouched = [row for row in range(10) if row not in ROWS]
        assert torch.equal(
            model.embed.weight[untouched], builders.lookup(tied=tied, bias=True).to(dtype).embed.weight[untouched]
        )
    dw.unmerge(model)
    assert builders.bits(model) == before and torch.equal(model(IDS), on)
    dw.save(model, tmp_path / "a")
    fresh = builders.lookup(tied=tied, bias=True).to(dtype)
    report = dw.load(fresh, tmp_path / "a", trainable=True)
    assert report.applied >= report.total
    if dtype == torch.float32:
        assert torch.equal(fresh(IDS), on)
        dw.save(fresh, tmp_path / "b")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    dw.detach(fresh)
    assert builders.bits(fresh) == builders.bits(builders.lookup(tied=tied, bias=True).to(dtype))


def test_new_tokens_of_a_real_model(tmp_path: Path) -> None:
    """The usual case: resize first, then train the new rows with the rest of the adapter."""
    model = builders.llama(tied=True)
    model.resize_token_embeddings(35)
    config = dw.LoRAConfig(targets=["q_proj"], rank=2, train_rows={"embed_tokens": [32, 33, 34]}, ties="share")
    report = dw.attach(model, config)
    assert "trained rows of 'model.embed_tokens': 3" in str(report)
    assert report.parameters == sum(p.numel() for _, p in dw.trainable(model))
    ids = torch.tensor([[1, 33, 34, 5]])
    model(ids, labels=ids).loss.backward()
    assert dw.check(model).ok
    train(model)
    on = model(ids).logits
    dw.save(model, tmp_path)
    short = builders.llama(tied=True)
    with pytest.raises(DeltawError, match="resize it first"):
        dw.load(short, tmp_path)
    dw.merge(model)
    torch.testing.assert_close(model(ids).logits, on, rtol=1e-4, atol=1e-5)


def test_rows_cannot_be_mixed_and_never_part_from_a_tied_head() -> None:
    model = worn()
    with pytest.raises(StateError, match="cannot be mixed"):
        dw.activate(model, {"default": 0.5})
    for policy in ("refuse", "separate"):
        with pytest.raises(TieError, match="for all its users or not at all"):
            dw.attach(builders.lookup(tied=True), dw.LoRAConfig(targets=(), train_rows={"embed": [1]}, ties=policy))


def test_rows_of_a_table_whose_update_belongs_to_the_head(tmp_path: Path) -> None:
    """The head is the target, the table its twin: the rows stand beside the head's update and both read them."""
    model = builders.llama(tied=True)
    config = dw.LoRAConfig(targets=["lm_head"], rank=2, train_rows={"embed_tokens": [3, 7]}, ties="share")
    dw.attach(model, config)
    ids = torch.tensor([[1, 3, 7, 5]])
    base = model(ids).logits
    model(ids, labels=ids).loss.backward()
    assert dw.check(model).ok
    train(model)
    on = model(ids).logits
    assert (on - base).abs().max() > 1e-2
    dw.save(model, tmp_path)
    assert any(
        key.endswith("embed_tokens.token_adapter.trainable_tokens_delta") for key in dw.Adapter.open(tmp_path).tensors
    )
    fresh = builders.llama(tied=True)
    dw.load(fresh, tmp_path)
    torch.testing.assert_close(fresh(ids).logits, on)
    dw.merge(model)
    torch.testing.assert_close(model(ids).logits, on, rtol=1e-4, atol=1e-4)


def test_a_table_in_full_and_its_rows_are_refused_together() -> None:
    config = dw.LoRAConfig(targets=["q_proj"], rank=2, train_also="embed_tokens", train_rows={"embed_tokens": [3]})
    with pytest.raises(DeltawError, match="cannot be trained apart"):
        dw.attach(builders.llama(), config)
