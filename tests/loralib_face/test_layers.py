"""Layers of the face over their life: casts, copies, edits while merged, dropout, dtypes, replacing and giving back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import deltaw as dw
import deltaw.loralib as lora
from deltaw.errors import ConfigError, StateError, TargetError, TieError


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8).clone()


def filled(layer: Any, std: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return layer


def every() -> list[tuple[Any, Tensor]]:
    """Each layer with an input."""
    x = torch.randn(3, 8)
    return [
        (filled(lora.Linear(8, 6, r=2, lora_alpha=4)), x),
        (filled(lora.Linear(8, 6, r=2, lora_alpha=4, fan_in_fan_out=True)), x),
        (filled(lora.MergedLinear(8, 6, r=2, lora_alpha=4, enable_lora=[False, True, True])), x),
        (filled(lora.Embedding(9, 4, r=2, lora_alpha=4, padding_idx=0)), torch.tensor([[0, 3, 8]])),
        (filled(lora.Conv1d(4, 8, 3, r=2, lora_alpha=4, groups=2)), torch.randn(2, 4, 6)),
        (filled(lora.Conv2d(4, 8, (3, 1), r=2, lora_alpha=4, padding="same")), torch.randn(4, 6, 6)),
        (filled(lora.Conv2d(4, 8, 3, r=2, lora_alpha=4, reshaped=True, groups=4)), torch.randn(2, 4, 6, 6)),
        (filled(lora.Conv3d(2, 4, 2, r=2, padding_mode="circular", padding=1)), torch.randn(2, 2, 4, 4, 4)),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_cast_while_merged_casts_the_base(dtype: torch.dtype) -> None:
    for layer, _ in every():
        base = layer.weight.detach().clone()
        layer.eval()
        assert layer.merged and layer.to(dtype) is layer and layer.merged and layer.weight.dtype == dtype
        assert torch.equal(bits(layer.state_dict()["weight"]), bits(base.to(dtype)))
        assert not torch.equal(layer.weight, base.to(dtype))
        assert torch.equal(bits(layer.train().weight), bits(base.to(dtype)))


def test_copies_and_assigned_loads_while_merged() -> None:
    for layer, x in every():
        base = layer.weight.detach().clone()
        layer.eval()
        expected = layer(x)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), expected) and torch.equal(bits(twin.train().weight), bits(base))
        assert torch.equal(layer(x), expected), "the copy is independent"
        other = {key: value * 2 for key, value in layer.state_dict().items()}
        layer.load_state_dict(other, assign=True)
        assert layer.merged and layer.lora_A.data_ptr() == other["lora_A"].data_ptr()
        assert torch.equal(bits(layer.train().weight), bits(base * 2))


def test_an_edited_merged_weight_is_refused_and_never_half_undone() -> None:
    layer, _ = every()[0]
    layer.eval()
    with torch.no_grad():
        layer.weight[0, 0] += 1
    edited = layer.weight.detach().clone()
    for call in (layer.train, layer.state_dict, lambda: layer.to(torch.float64)):
        with pytest.raises(StateError, match="merged weight was changed"):
            call()
        assert torch.equal(layer.weight, edited) and layer.merged
    with pytest.raises(StateError, match="merged weight was changed"):
        layer.load_state_dict({"lora_A": layer.lora_A.detach()}, strict=False)
    # a base that is loaded over the edit ends it
    base = torch.randn(6, 8)
    layer.load_state_dict({"weight": base}, strict=False)
    assert layer.merged and not torch.equal(layer.weight, base)
    assert torch.equal(bits(layer.train().weight), bits(base))


def test_a_sum_that_overflows_is_refused() -> None:
    layer = lora.Linear(2, 2, r=1, lora_alpha=1, dtype=torch.float16)
    with torch.no_grad():
        layer.lora_A.fill_(300)
        layer.lora_B.fill_(300)
    before = bits(layer.weight)
    with pytest.raises(StateError, match="overflows"):
        layer.eval()
    assert torch.equal(bits(layer.weight), before) and not layer.merged and layer.training
    layer.merge_weights = False
    assert not layer.eval().merged


def test_train_unmerges_whatever_merge_weights_says_by_then() -> None:
    layer, x = every()[0]
    base = bits(layer.weight)
    layer.eval()
    layer.merge_weights = False
    layer.train()
    assert torch.equal(bits(layer.weight), base) and not layer.merged
    layer(x).sum().backward()
    assert layer.lora_A.grad is not None


def test_autocast_and_a_trained_weight() -> None:
    layer, x = every()[0]
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), expected, atol=0.05)
    layer.weight.requires_grad = True
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.lora_B.grad is not None


@pytest.mark.slow
def test_compiled_layers_compute_the_same() -> None:
    model = nn.Sequential(every()[0][0], nn.ReLU(), filled(lora.MergedLinear(6, 6, r=1, enable_lora=[True, False])))
    x = torch.randn(4, 8)
    expected = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    model.eval()
    assert torch.allclose(compiled(x), expected, atol=1e-5)


def test_an_embedding_keeps_padding_and_max_norm() -> None:
    ids = torch.tensor([0, 1, 2, 2])
    layer = lora.Embedding(5, 4, r=2, padding_idx=0, max_norm=1.0)
    with torch.no_grad():
        layer.lora_B.normal_(), layer.lora_A.normal_()
        layer.lora_A[:, 0] = 0
    table = layer.weight.detach().clone()
    bounded = table * (1 / table.norm(dim=1, keepdim=True)).clamp(max=1)
    summed = bounded + (layer.lora_B @ layer.lora_A).t() * layer.scaling
    summed = (summed * (1 / summed.norm(dim=1, keepdim=True)).clamp(max=1)).detach()
    out = layer(ids)
    assert torch.allclose(out, summed[ids], atol=1e-5) and torch.equal(layer.weight, table)
    out.sum().backward()
    assert not layer.lora_A.grad[:, 0].any() and layer.lora_A.grad[:, 2].any() and not layer.lora_A.grad[:, 3].any()
    assert torch.allclose(layer.eval()(ids), summed[ids], atol=1e-5)
    assert torch.equal(bits(layer.train().weight), bits(table))


def test_from_pretrained_keeps_the_table() -> None:
    """The original draws the table anew, over the one that was handed to it."""
    table = torch.randn(5, 4)
    assert torch.equal(lora.Embedding.from_pretrained(table).weight, table)
    assert torch.equal(lora.Embedding(5, 4, r=2, _weight=table).weight, table)
    theirs = pytest.importorskip("loralib")
    assert not torch.equal(theirs.Embedding.from_pretrained(table.clone()).weight, table)


@pytest.mark.parametrize("index", [0, 2, 4, 6])
def test_dropout_is_on_the_update_alone_and_draws_from_its_own_generator(index: int) -> None:
    makers = {
        0: lambda: lora.Linear(64, 6, r=2, lora_dropout=0.5),
        2: lambda: lora.MergedLinear(64, 6, r=2, enable_lora=[True, False], lora_dropout=0.5),
        4: lambda: lora.Conv1d(4, 8, 1, r=2, lora_dropout=0.5),
        6: lambda: lora.Conv1d(4, 8, 1, r=2, lora_dropout=0.5, reshaped=True),
    }
    x = torch.randn(2, 4, 64)
    torch.manual_seed(3)
    layer = makers[index]()
    base = layer(x)
    assert torch.equal(base, nn.Module.__call__(layer.eval(), x)) and layer.train()
    filled(layer)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(state, torch.get_rng_state()) and not torch.equal(first, second)
    torch.manual_seed(3)
    again = filled(makers[index]())
    assert torch.equal(again(x), again(x)) is False
    again = filled(_seeded(makers[index]))
    again(x)
    assert torch.equal(again(x), first), "the same masks for the same seed, from the second forward on"
    # the mean over many masks is the update without dropout
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(400)]).mean(0)
        layer.eval()
        size = (layer(x) - base).abs().max()
        assert (mean - layer(x)).abs().max() < 0.35 * size
    layer.train()
    layer.lora_dropout.p = 0.0
    assert torch.equal(layer(x), layer(x))
    with pytest.raises(ConfigError):
        layer.lora_dropout.p = 1.5


def _seeded(make: Any) -> Any:
    torch.manual_seed(3)
    return make()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_masks_again(reentrant: bool) -> None:
    x = torch.randn(2, 64, requires_grad=True)
    grads = []
    for wrapped in (False, True):
        layer = filled(_seeded(lambda: lora.Linear(64, 6, r=2, lora_dropout=0.5)))
        out = checkpoint(layer, x, use_reentrant=reentrant) if wrapped else layer(x)
        out.square().sum().backward()
        grads.append([layer.lora_A.grad, layer.lora_B.grad])
    assert all(map(torch.equal, *grads)) and grads[0][0].any()


@pytest.mark.parametrize("wrong", [
    {"r": -1}, {"r": 2.0}, {"r": True}, {"lora_alpha": 0}, {"lora_alpha": float("nan")}, {"lora_dropout": 1.0},
    {"lora_dropout": -0.1},
])  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    field = next(iter(wrong))
    for cls in (lora.Linear, lora.MergedLinear):
        more = {"enable_lora": [True]} if cls is lora.MergedLinear else {}
        with pytest.raises(ConfigError, match=field):
            cls(4, 4, **{"r": 2, **wrong, **more})
    with pytest.raises(ConfigError, match=field):
        lora.attach(nn.Sequential(nn.Linear(4, 4)), ["0"], **{"r": 2, "lora_alpha": 4, **wrong})


def test_settings_that_contradict() -> None:
    with pytest.raises(ConfigError, match="shared out among the projections"):
        lora.MergedLinear(4, 7, r=2, enable_lora=[True, False])
    with pytest.raises(ConfigError, match="multiple of 3"):
        lora.Conv2d(3, 3, 1, r=2, groups=3)
    for kernel, cls in ((3, lora.Conv1d), (3, lora.Conv3d), ((3, 1), lora.Conv2d)):
        with pytest.raises(ConfigError, match="reshaped"):
            cls(4, 4, kernel, r=2, reshaped=True)
    for call in (lora.mark_only_lora_as_trainable, lora.lora_state_dict):
        with pytest.raises(ConfigError, match="'some'"):
            call(nn.Sequential(lora.Linear(2, 2, r=1)), bias="some")
        with pytest.raises(TargetError, match="no LoRA layer"):
            call(nn.Sequential(nn.Linear(2, 2)))


def test_alpha_and_scaling_are_one_fact() -> None:
    layer, x = every()[0]
    base = F.linear(x, layer.weight, layer.bias)
    term = layer(x) - base
    layer.lora_alpha = 8
    assert layer.scaling == 4 and torch.allclose(layer(x) - base, 2 * term, atol=1e-5)
    layer.scaling = 1.0
    assert layer.lora_alpha == 2 and torch.allclose(layer(x) - base, term / 2, atol=1e-5)
    with pytest.raises(AttributeError, match="scaling"):
        _ = lora.Linear(2, 2).scaling


def test_a_tied_weight_that_eval_would_merge_into() -> None:
    model = nn.ModuleDict({"wte": lora.Embedding(9, 4, r=2), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["wte"].weight
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(TieError, match="merge_weights=False"):
        lora.mark_only_lora_as_trainable(model)
    assert [p.requires_grad for p in model.parameters()] == before
    model["wte"].merge_weights = False
    lora.mark_only_lora_as_trainable(model)


def test_wrapped_models_and_layers_of_ones_own() -> None:
    class Own(nn.Linear, lora.LoRALayer):
        def __init__(self) -> None:
            nn.Linear.__init__(self, 4, 4)
            lora.LoRALayer.__init__(self, r=2, lora_alpha=4, lora_dropout=0.1, merge_weights=False)
            self.lora_gate = nn.Parameter(torch.zeros(4))

    model = nn.DataParallel(nn.Sequential(lora.Linear(4, 4, r=2), Own()))
    lora.mark_only_lora_as_trainable(model, bias="lora_only")
    names = {"0.lora_A", "0.lora_B", "0.bias", "1.lora_gate", "1.bias"}
    names = {f"module.{name}" for name in names}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    assert set(lora.lora_state_dict(model, bias="lora_only")) == names
    assert (model.module[1].merged, model.module[1].r) == (False, 2)


# attach and detach


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "embed": nn.Embedding(9, 8), "q": nn.Linear(8, 8), "qkv": nn.Linear(8, 24), "conv": nn.Conv2d(2, 4, 3),
        "norm": nn.LayerNorm(8),
    })  # fmt: skip


def test_attach_and_detach_are_a_pair() -> None:
    for training in (True, False):
        model = net().train(training)
        modules, keys = dict(model.named_modules()), list(model.state_dict())
        before = {key: bits(value) for key, value in model.state_dict().items()}
        flags = {key: p.requires_grad for key, p in model.named_parameters()}
        report = lora.attach(model, ["embed", "q", "conv"], r=2, lora_alpha=4, lora_dropout=0.1)
        assert report.paths == ("embed", "q", "conv")
        assert report.parameters == 2 * (9 + 8) + 2 * 16 + 2 * (2 * 9 + 4)
        lora.attach(model, "qkv", r=2, lora_alpha=4, enable_lora=[True, False, True])
        assert isinstance(model["qkv"], lora.MergedLinear) and model["qkv"].enable_lora == [True, False, True]
        assert all(model[name].merged is not training for name in ("embed", "q", "qkv", "conv"))
        for name in ("embed", "q", "qkv", "conv"):
            filled(model[name])
        model.eval(), model.train(training)
        done = lora.detach(model)
        assert set(done.paths) == {"embed", "q", "qkv", "conv"} and "taken off" in str(done)
        assert list(model.state_dict()) == keys
        assert all(torch.equal(bits(value), before[key]) for key, value in model.state_dict().items())
        assert all(module is modules[path] for path, module in model.named_modules())
        assert {key: p.requires_grad for key, p in model.named_parameters()} == flags


def test_a_merged_detach_leaves_a_plain_model_that_does_the_same() -> None:
    for layer, x in every():
        model = nn.Sequential(layer)
        expected, weight = model(x), layer.weight
        report = lora.detach(model, merged=True)
        plain = model[0]
        assert not isinstance(plain, lora.LoRALayer) and type(plain).__module__.startswith("torch.nn")
        assert torch.allclose(model(x), expected, atol=1e-5) and "in the weights" in str(report)
        assert "lora" not in "".join(model.state_dict()) and plain.training
        assert (plain.weight is weight) is not getattr(layer, "fan_in_fan_out", False)


def test_transformers_conv1d() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base, x = conv1d(24, 8), torch.randn(2, 8)
    model, expected = nn.Sequential(base), base(x)
    lora.attach(model, ["0"], r=2, lora_alpha=4, enable_lora=[True, False, True])
    assert model[0].fan_in_fan_out and model[0].weight is base.weight
    assert torch.allclose(model(x), expected, atol=1e-6)
    filled(model[0])
    changed = (model(x) - expected).abs().amax(0)
    assert changed[:8].min() > 1e-4 and changed[16:].min() > 1e-4 and changed[8:16].max() < 1e-6
    lora.detach(model)
    assert model[0] is base and torch.equal(model(x), expected)


class Strange(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Strange(4, 4), "Strange"),
        (hooked(), "hooks"),
        (nn.MultiheadAttention(4, 2), r"deltaw\.attach"),
        (nn.Linear(4, 4).requires_grad_(False).to(torch.float8_e4m3fn), "float8"),
        (nn.Bilinear(4, 4, 4), "Bilinear"),
        (nn.LayerNorm(4), "LayerNorm"),
    ],
    ids=["subclass", "hooks", "attention", "float8", "bilinear", "norm"],
)
def test_layers_that_cannot_be_taken_over(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    first = model[0]
    for call in (
        lambda: lora.attach(model, ["0", "1"], r=2, lora_alpha=4),
        lambda: lora.Linear.from_base(layer, r=2, lora_alpha=4),
    ):
        with pytest.raises(TargetError, match=words):
            call()
    assert model[0] is first and model[1] is layer and first.weight.requires_grad


def test_every_from_base_names_what_it_takes() -> None:
    bases = {"Linear": nn.Linear(2, 2), "Embedding": nn.Embedding(2, 2), "Conv1d": nn.Conv1d(2, 2, 1)}
    bases |= {"Conv2d": nn.Conv2d(2, 2, 1), "Conv3d": nn.Conv3d(2, 2, 1)}
    for name in bases:
        for other, base in bases.items():
            make = getattr(lora, name).from_base
            if name == other:
                assert make(base, r=1, lora_alpha=1).weight is base.weight
            else:
                with pytest.raises(TargetError, match=f"nn.{name}"):
                    make(base, r=1, lora_alpha=1)
    with pytest.raises(TargetError, match="no projections to enable"):
        lora.attach(nn.Sequential(nn.Embedding(2, 2)), ["0"], r=1, lora_alpha=1, enable_lora=[True])


def test_places_that_cannot_be_replaced() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    with pytest.raises(TargetError, match="bypassed"):
        lora.attach(encoder, ["linear1"], r=2, lora_alpha=4, merge_weights=False)
    x = torch.randn(1, 3, 8)
    before = encoder(x)
    lora.attach(encoder, ["linear1"], r=2, lora_alpha=4)
    filled(encoder.layers[0].linear1, 3.0)
    encoder.eval()
    with torch.no_grad():
        fused = encoder(x)
    assert not torch.allclose(fused, before, atol=1e-3), "the fused path reads the merged weight"
    assert torch.allclose(encoder.train().requires_grad_(True).eval()(x), fused, atol=1e-4)
    with pytest.raises(TargetError, match="model itself"):
        lora.detach(lora.Linear(2, 2, r=1))
    with pytest.raises(TargetError, match="q_prj"):
        lora.attach(net(), ["q_prj"], r=2, lora_alpha=4)
    tied = nn.ModuleDict({"wte": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    tied["head"].weight = tied["wte"].weight
    with pytest.raises(TieError):
        lora.attach(tied, ["wte"], r=2, lora_alpha=4)


# beside the core's own adapters


def test_the_cores_attach_refuses_these_layers_and_serves_the_others(tmp_path: Path) -> None:
    model = nn.Sequential(filled(lora.Linear(8, 8, r=2)), nn.Linear(8, 8), lora.Linear(8, 8))
    x = torch.randn(3, 8)
    for target in (["0"], "all-linear"):
        with pytest.raises(TargetError, match=r"deltaw\.loralib\.detach") as caught:
            dw.attach(model, dw.LoRAConfig(targets=target))
        assert "module '0'" in caught.value.where
    with pytest.raises(TargetError, match="stored as"):
        dw.attach(nn.Sequential(lora.Linear(8, 8, fan_in_fan_out=True)), dw.LoRAConfig(targets=["0"]))
    base, own = model[1].weight.detach().clone(), model[0].weight.detach().clone()
    report = dw.attach(model, dw.LoRAConfig(targets=["1", "2"], rank=2))
    assert len(report.sites) == 2 and any("'0'" in note and "frozen" in note for note in report.notes)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.normal_()
    expected = model(x)
    model.eval()
    dw.merge(model)
    assert torch.allclose(model(x), expected, atol=1e-4) and model[0].merged
    model.train()
    dw.unmerge(model)
    assert torch.equal(model(x), expected)
    assert torch.equal(bits(model[0].weight), bits(own)) and torch.equal(bits(model[1].weight), bits(base))
    assert dw.save(model, tmp_path).tensors == 4
    dw.detach(model)
    assert type(model[1]) is nn.Linear and type(model[2]) is lora.Linear and model[0].lora_A.requires_grad
