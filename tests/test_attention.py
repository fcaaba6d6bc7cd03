"""nn.MultiheadAttention and the fused path of nn.TransformerEncoderLayer: no adapter on them is ever bypassed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import ModelError, TargetError


def attention(batch_first: bool = True, heads: int = 2, **kwargs: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, heads, batch_first=batch_first, **kwargs)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.eval()


def inputs(batch_first: bool = True, batched: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 7, 8, generator=generator)
    if not batched:
        return query[0], key[0]
    return (query, key) if batch_first else (query.transpose(0, 1), key.transpose(0, 1))


MASKS: dict[str, Any] = {
    "none": {},
    "causal": {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1), "is_causal": True},
    "float": {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(2))},
    "per-head": {"attn_mask": torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(2))},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])},
    "both": {
        "attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5]),
    },
}


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_own_road_is_torchs(batch_first: bool, extra: Any, mask: str, weights: Any) -> None:
    """With an update of zero, everything that torch computes is computed alike."""
    module, plain = attention(batch_first, **extra), attention(batch_first, **extra)
    builders.attach(nn.ModuleDict({"a": module}), targets="a")
    x, _ = inputs(batch_first)
    got, want = module(x, x, x, **MASKS[mask], **weights), plain(x, x, x, **MASKS[mask], **weights)
    torch.testing.assert_close(got[0], want[0])
    assert (got[1] is None) == (want[1] is None)
    if got[1] is not None:
        torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_cross_attention(batched: bool, shared: bool) -> None:
    module, plain = attention(), attention()
    model = nn.ModuleDict({"a": module})
    builders.attach(model, targets="a", rank=3)
    builders.randomize(model)
    query, key = inputs(batched=batched)
    value = key if shared else key * 0.5
    got = module(query, key, value)
    dw.merge(model)
    merged = module(query, key, value)
    torch.testing.assert_close(got[0], merged[0])
    torch.testing.assert_close(got[1], merged[1])
    assert not torch.allclose(got[0], plain(query, key, value)[0])


def test_training_mode_drops_attention_weights_by_the_global_generator() -> None:
    module, plain = attention(dropout=0.5).train(), attention(dropout=0.5).train()
    builders.attach(nn.ModuleDict({"a": module}), targets="a")
    x, _ = inputs()
    torch.manual_seed(3)
    got = module(x, x, x)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(got, plain(x, x, x)[0])


@pytest.mark.parametrize("target", ["a", "a[q,v]", "a[0:4]", "out_proj"])
def test_targets(target: str) -> None:
    module = attention()
    model = nn.ModuleDict({"a": module})
    report = builders.attach(model, targets=target, rank=2)
    paths = {site.path for site in report.sites}
    assert paths == {"a": {"a", "a.out_proj"}, "out_proj": {"a.out_proj"}}.get(target, {"a"})
    builders.randomize(model)
    x, _ = inputs()
    on = module(x, x, x)[0]
    on.sum().backward()
    assert all(p.grad is not None for _, p in dw.trainable(model))
    assert dw.check(model).ok
    with dw.disabled(model):
        assert not torch.allclose(module(x, x, x)[0], on)
    dw.merge(model)
    assert type(module) is nn.MultiheadAttention
    torch.testing.assert_close(module(x, x, x)[0], on)


@pytest.mark.parametrize("inner", [2, 5])
@pytest.mark.parametrize("alpha", [{}, {"alpha_pattern": {"out_proj": 3.0}}])
@pytest.mark.parametrize("target", ["a", "a[q,v]", "out_proj", "a[k]"])
def test_files_go_round(target: str, alpha: Any, inner: int, tmp_path: Any) -> None:
    """PEFT has one rank for both projections: ours are padded for the file and come back as they were."""
    if "out_proj" not in target and target != "a":
        alpha = {}
    patterns = {"rank_pattern": {"out_proj": inner}} if target in ("a", "out_proj") else {}
    model = nn.ModuleDict({"a": attention()})
    builders.attach(model, targets=target, rank=3, **patterns, **alpha)
    builders.randomize(model)
    dw.save(model, tmp_path)
    other = nn.ModuleDict({"a": attention()})
    report = dw.load(other, tmp_path)
    assert report.applied == report.total
    x, _ = inputs()
    torch.testing.assert_close(other["a"](x, x, x)[0], model["a"](x, x, x)[0])
    if target != "a" and not alpha:
        assert builders.bits(other) == builders.bits(model)


def encoder(layers: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **kwargs)
    model = nn.TransformerEncoder(layer, layers) if layers else nn.ModuleDict({"layer": layer})
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        {"targets": "linear1"},
        {"targets": "linear2"},
        {"targets": "self_attn"},
        {"targets": "self_attn.out_proj"},
        {"targets": "linear1", "bias": "lora_only"},
        {"targets": (), "train_also": "linear2"},
        {"targets": (), "train_also": "norm1"},
        {"targets": "all-linear"},
    ],
)
def test_the_fused_path_never_bypasses_an_adapter(config: Any) -> None:
    """In eval mode without gradients torch would read the children's weights itself."""
    model, plain = encoder(), encoder()
    builders.attach(model, **config)
    with torch.no_grad():
        for _, p in dw.trainable(model):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    x, _ = inputs()
    with torch.no_grad():
        on, base = model["layer"](x), plain.requires_grad_(False)["layer"](x)
        assert (on - base).abs().max() > 1e-2
        torch.testing.assert_close(on, model["layer"](x.requires_grad_()).detach())
        with dw.disabled(model):
            assert torch.equal(model["layer"](x.detach()), base), "the base keeps its own fused path"
        dw.merge(model)
        torch.testing.assert_close(model["layer"](x.detach()), on)
        dw.unmerge(model)
    dw.detach(model)
    assert type(model["layer"]) is nn.TransformerEncoderLayer
    assert "activation_relu_or_gelu" in vars(model["layer"])


@pytest.mark.parametrize("which", ["layers.0.linear1", "layers.1.linear1", "layers.1.self_attn"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_stack_on_nested_tensors_never_bypasses_an_adapter(which: str) -> None:
    model, plain = encoder(2), encoder(2)
    builders.attach(model, targets=which)
    builders.randomize(model, size=1.0)
    x, _ = inputs()
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    with torch.no_grad():
        on = model(x, src_key_padding_mask=padding)
        base = plain.requires_grad_(False)(x, src_key_padding_mask=padding)
        assert (on - base)[~padding].abs().max() > 1e-2
        trained = copy.deepcopy(model).train()(x, src_key_padding_mask=padding)
        torch.testing.assert_close(on[~padding], trained[~padding])
        with dw.disabled(model):
            assert torch.equal(model(x, src_key_padding_mask=padding)[~padding], base[~padding])


def test_a_decoder_layer() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)}).eval()
    builders.attach(model, targets=["self_attn", "multihead_attn"])
    builders.randomize(model)
    query, memory = inputs()
    on = model["layer"](query, memory)
    on.sum().backward()
    assert dw.check(model).ok
    dw.merge(model)
    torch.testing.assert_close(model["layer"](query, memory), on)


def test_what_cannot_be_heard_is_refused() -> None:
    separate = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=4, vdim=4)})
    with pytest.raises(TargetError, match="bypassed"):
        builders.attach(separate, targets="out_proj")
    with pytest.raises(TargetError, match="cannot be adapted"):
        builders.attach(separate, targets="a")
    with pytest.raises(TargetError, match="fused bias"):
        builders.attach(nn.ModuleDict({"a": attention()}), targets="a", bias="lora_only")


def test_inputs_that_the_own_road_cannot_run_are_refused() -> None:
    module = attention()
    builders.attach(nn.ModuleDict({"a": module}), targets="a")
    x, _ = inputs()
    with pytest.raises(ModelError, match="is_causal without attn_mask"):
        module(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)
    with pytest.raises(ModelError, match="nested tensor"):
        module(nested, nested, nested)
