"""The original's seventeen known faults: what loralib 0.1.2 does, shown to be wrong, and what deltaw does instead.

Each test runs both. Two are of the past and cannot be seen in 0.1.2 as a wrong value: BUG9 is one of cost, shown by
counting operations, and BUG17 was mended before 0.1.2, so that only the property is shown. BUG5 took another form in
the release than in the repository's later state (``conv.weight`` instead of ``weight``, not both); all forms are read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from face_values import filled
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import deltaw as dw
import deltaw.loralib as ours
from deltaw.errors import CheckpointError, TargetError

theirs = pytest.importorskip("loralib")


def linear(lib: Any, seed: int = 5, **kwargs: Any) -> Any:
    torch.manual_seed(1)
    return filled(lib.Linear(8, 6, r=2, **{"lora_alpha": 4, **kwargs}), seed)


def delta(layer: Any) -> Tensor:
    return (layer.lora_B @ layer.lora_A).detach() * layer.scaling


def test_bug1_another_task_loaded_in_eval() -> None:
    x = torch.randn(3, 8)
    for lib, right in ((theirs, False), (ours, True)):
        model = nn.Sequential(linear(lib))
        base = model[0].weight.detach().clone()
        first = delta(model[0])
        other = nn.Sequential(linear(lib, seed=6))
        second = delta(other[0])
        model.eval()
        model.load_state_dict(lib.lora_state_dict(other), strict=False)
        wanted = F.linear(x, base + second, model[0].bias)
        assert torch.allclose(model(x), wanted, atol=1e-5) is right
        model.train()
        assert torch.equal(model[0].weight, base) is right
        if not right:
            # the old update stays, the new one is subtracted: the base is gone
            assert torch.allclose(model[0].weight, base + first - second, atol=1e-5)


def test_bug1_factors_written_in_place_while_merged() -> None:
    """The same fault without a load: an optimizer's step, or values copied in, between two evaluations."""
    x = torch.randn(3, 8)
    for write in (lambda p: p.mul_(2), lambda p: setattr(p, "data", p.data * 2)):
        layer = linear(ours)
        base, update = layer.weight.detach().clone(), delta(layer)
        layer.eval()
        layer(x)
        with torch.no_grad():
            write(layer.lora_B)
        assert torch.allclose(layer(x), F.linear(x, base + 2 * update, layer.bias), atol=1e-5)
        layer.lora_A.data.mul_(0.5)  # unseen by torch's counters: the next eval() compares the values
        layer.eval()
        assert torch.allclose(layer(x), F.linear(x, base + update, layer.bias), atol=1e-5)
        layer.scaling = 4.0
        assert torch.allclose(layer(x), F.linear(x, base + 2 * update, layer.bias), atol=1e-5)
        assert torch.equal(layer.train().weight, base)


def test_bug2_a_state_dict_of_a_merged_model() -> None:
    x = torch.randn(3, 8)
    for lib, right in ((theirs, False), (ours, True)):
        model = nn.Sequential(linear(lib))
        base, update = model[0].weight.detach().clone(), delta(model[0])
        model.eval()
        expected, state = model(x), model.state_dict()
        fresh = nn.Sequential(linear(lib, seed=9))
        fresh.load_state_dict(state)
        fresh.eval()
        assert torch.equal(fresh(x), expected) is right
        assert torch.equal(state["0.weight"], base) is right
        if not right:
            assert torch.allclose(fresh[0].weight, base + 2 * update, atol=1e-5), "merged twice"


def test_bug3_convolutions_of_one_and_three_axes_and_tuple_kernels() -> None:
    for dims in (1, 3):
        x = torch.randn(2, 4, *[5] * dims)
        with pytest.raises(RuntimeError, match="shape"):
            getattr(theirs, f"Conv{dims}d")(4, 8, 3, r=2)(x)
        layer = filled(getattr(ours, f"Conv{dims}d")(4, 8, 3, r=2, lora_alpha=4))
        _convolves(layer, x)
    with pytest.raises(AssertionError):
        theirs.Conv2d(4, 8, (3, 2), r=2)
    _convolves(filled(ours.Conv2d(4, 8, (3, 2), r=2, lora_alpha=4)), torch.randn(2, 4, 6, 6))


def _convolves(layer: Any, x: Tensor) -> None:
    """The output is that of a convolution with W + delta, in float64; merged and apart."""
    A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    update = torch.einsum("or,ri->oi", B.flatten(1), A.flatten(1)).view(layer.weight.shape) * 2
    wide = layer._conv_forward(x.double(), layer.weight.double() + update, layer.bias.double())
    assert torch.allclose(layer(x).double(), wide, atol=1e-4)
    base = layer.weight.detach().clone()
    assert torch.allclose(layer.eval()(x).double(), wide, atol=1e-4) and layer.merged
    assert torch.equal(layer.train().weight, base)


def test_bug4_dropout_of_convolutions() -> None:
    x = torch.randn(2, 4, 6, 6)
    layer = filled(theirs.Conv2d(4, 8, 3, r=2, lora_dropout=0.5))
    assert torch.equal(layer(x), layer(x)), "the original drops nothing"
    for reshaped in (False, True):
        layer = ours.Conv2d(4, 8, 3, r=2, lora_dropout=0.5, reshaped=reshaped)
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias)), "the base's path is never dropped"
        filled(layer)
        assert not torch.allclose(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("release", ["0.1.2", "both names", "first"])
def test_bug5_names_of_a_convolutions_base(release: str) -> None:
    plain = nn.Conv2d(4, 8, 3)
    judge = theirs.Conv2d(4, 8, 3, r=2)
    with pytest.raises(RuntimeError, match="Missing key"):
        theirs.Conv2d(4, 8, 3).load_state_dict(plain.state_dict(), strict=True)
    mine = ours.Conv2d(4, 8, 3, r=2)
    assert set(mine.state_dict()) == {*plain.state_dict(), "lora_A", "lora_B"}
    ours.Conv2d(4, 8, 3).load_state_dict(plain.state_dict(), strict=True)
    old = {key: torch.randn_like(value) for key, value in judge.state_dict().items()}
    outer = {key.removeprefix("conv."): value for key, value in old.items()}
    state = {"0.1.2": old, "both names": {**old, **outer}, "first": outer}[release]
    model = nn.Sequential(ours.Conv2d(4, 8, 3, r=2, reshaped=True))
    model.load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=True)
    assert torch.equal(model[0].weight, old["conv.weight"]) and torch.equal(model[0].lora_A, old["lora_A"])


def test_bug6_rank_and_count_of_a_convolution() -> None:
    counts, ranks = [], []
    for lib in (theirs, ours):
        layer = filled(lib.Conv2d(4, 8, 3, r=2))
        counts.append(layer.lora_A.numel() + layer.lora_B.numel())
        weight = layer.conv.weight if lib is theirs else layer.weight
        before = weight.detach().clone()
        layer.eval()
        update = (weight.detach() - before).double().flatten(1)
        ranks.append(int((torch.linalg.svdvals(update) > 1e-3).sum()))
    assert counts == [216, 2 * (4 * 9 + 8)] == [216, 88]
    assert ranks[0] > 2 == ranks[1]


def test_bug6_the_originals_layout_is_there_where_it_is_asked_for() -> None:
    judge = filled(theirs.Conv2d(4, 8, 3, r=2, lora_alpha=4, groups=2, padding=1))
    mine = ours.Conv2d(4, 8, 3, r=2, lora_alpha=4, groups=2, padding=1, reshaped=True)
    mine.load_state_dict(judge.state_dict(), strict=True)
    x = torch.randn(2, 4, 6, 6)
    assert torch.allclose(mine(x), judge(x), atol=1e-5)
    assert torch.allclose(mine.eval()(x), judge(x), atol=1e-5)
    with pytest.raises(CheckpointError, match="reshaped=True"):
        ours.Conv2d(4, 8, 3, r=2, lora_alpha=4, groups=2).load_state_dict(judge.state_dict())


def test_bug7_a_fused_projection_with_nothing_enabled() -> None:
    x = torch.randn(3, 8)
    with pytest.raises(AttributeError):
        theirs.MergedLinear(8, 12, r=2, enable_lora=[False] * 3)(x)
    layer = ours.MergedLinear(8, 12, r=2, enable_lora=[False] * 3)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x), F.linear(x, layer.weight, layer.bias))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_bug8_the_mask_moves_with_the_layer() -> None:
    flags = [True, False, True]
    judge = theirs.MergedLinear(8, 12, r=2, enable_lora=flags).to("meta")
    assert judge.weight.device.type == "meta" and judge.lora_ind.device.type == "cpu"
    layer = ours.MergedLinear(8, 12, r=2, enable_lora=flags)
    assert torch.equal(layer.lora_ind, theirs.MergedLinear(8, 12, r=2, enable_lora=flags).lora_ind)
    assert layer.to("meta").lora_ind.device.type == "meta"
    assert layer(torch.randn(2, 8, device="meta")).device.type == "meta"


class Largest(TorchDispatchMode):
    """Number of values in the largest tensor that any operation makes; views do not count."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.size = max(self.size, out.numel())
        return out


def test_bug9_a_fused_projection_costs_its_low_rank_path() -> None:
    """Counted, not timed: the original forms a dense update and multiplies with it in every step."""
    rows, width, out, rank = 16, 64, 192, 4
    x = torch.randn(rows, width, requires_grad=True)
    flops: dict[Any, int] = {}
    largest: dict[Any, int] = {}

    def in_place(out: torch.Size, left: torch.Size, right: torch.Size, **_: Any) -> int:
        return 2 * left[0] * left[1] * right[1]  # torch's counter knows addmm, not addmm_

    for lib in (theirs, ours):
        layer = filled(lib.MergedLinear(width, out, r=rank, enable_lora=[True, False, True]))
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
            layer(x)
        flops[lib] = counter.get_total_flops()
        with Largest() as made:
            layer(x).sum().backward()
        largest[lib] = made.size
    assert largest[theirs] >= width * out, "a tensor of the weight's size in every step"
    assert largest[ours] == rows * out
    base = 2 * rows * width * out
    assert flops[ours] == base + 2 * rows * (2 * rank) * (width + out)
    assert flops[theirs] >= 2 * base


def test_bug10_modes_return_the_layer() -> None:
    assert linear(theirs).train() is None and linear(theirs).eval() is None
    for layer in (linear(ours), ours.Embedding(3, 2, r=1), ours.Conv1d(2, 2, 1, r=1), ours.Linear(2, 2)):
        assert layer.train() is layer and layer.eval() is layer and layer.train(False) is layer


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("merged", [False, True])
def test_bug11_whole_models_are_pickled(dropout: float, merged: bool) -> None:
    if not dropout:
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(nn.Sequential(linear(theirs)))
    model = nn.Sequential(linear(ours, lora_dropout=dropout), ours.Conv2d(1, 1, 1, r=1)).train(not merged)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    x = torch.randn(3, 8)
    assert again[0].merged is merged and torch.equal(again[0](x), model[0](x))
    model.train(), again.train()
    assert torch.equal(again[0].weight, model[0].weight)
    assert torch.equal(again[0](x), model[0](x)), "its masks go on where they stood"


def test_bug12_what_is_trained_is_told_by_module() -> None:
    def build(lib: Any) -> nn.Module:
        return nn.ModuleDict({"q": lib.Linear(4, 4, r=2), "my_lora_head": nn.Linear(4, 2), "debias": nn.Linear(4, 4)})

    right = {"q.lora_A", "q.lora_B", "q.bias", "my_lora_head.bias", "debias.bias"}
    wrong = right | {"my_lora_head.weight", "debias.weight"}
    for lib, expected in ((theirs, wrong), (ours, right)):
        model = build(lib)
        lib.mark_only_lora_as_trainable(model, bias="all")
        assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
        assert set(lib.lora_state_dict(model, bias="all")) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bug13_a_hundred_cycles_give_the_bits_back(dtype: torch.dtype) -> None:
    for lib, right in ((theirs, False), (ours, True)):
        torch.manual_seed(0)
        layer = lib.Linear(32, 32, r=4, lora_alpha=8, bias=False, dtype=dtype)
        with torch.no_grad():
            layer.weight.normal_(std=0.06)
            layer.lora_B.normal_(std=0.06)
        before = layer.weight.detach().clone()
        for _ in range(100):
            layer.eval()
            layer.train()
        assert torch.equal(layer.weight.view(torch.uint8), before.view(torch.uint8)) is right
        if not right:
            assert (layer.weight - before).abs().max() > 0


def test_bug14_layers_that_exist_keep_their_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(9, 4), nn.Conv2d(2, 4, (3, 1), groups=2))
    assert not any(hasattr(getattr(theirs, name), "from_base") for name in ("Linear", "Embedding", "Conv2d"))
    assert not torch.equal(theirs.Linear(8, 8, r=2).weight, model[0].weight), "a replaced layer starts from noise"
    inputs = (torch.randn(2, 8), torch.tensor([[1, 2]]), torch.randn(1, 2, 5, 5))
    kept = [layer.weight for layer in model]
    expected = [layer(x) for layer, x in zip(model, inputs, strict=True)]
    ours.attach(model, ["0", "1", "2"], r=2, lora_alpha=4)
    for layer, x, weight, out in zip(model, inputs, kept, expected, strict=True):
        assert isinstance(layer, ours.LoRALayer) and layer.weight is weight and torch.equal(layer(x), out)


def test_bug15_another_alpha_is_noticed() -> None:
    x = torch.randn(3, 8)
    for lib in (theirs, ours):
        source, target = nn.Sequential(linear(lib, lora_alpha=16)), nn.Sequential(linear(lib, seed=7, lora_alpha=8))
        target[0].load_state_dict({k: v for k, v in source[0].state_dict().items() if "lora_" not in k}, strict=False)
        buffer = io.BytesIO()
        torch.save(lib.lora_state_dict(source), buffer)
        buffer.seek(0)
        stored = torch.load(buffer, weights_only=True)
        assert set(stored) == {"0.lora_A", "0.lora_B"}
        if lib is theirs:
            target.load_state_dict(stored, strict=False)
            base = F.linear(x, source[0].weight, source[0].bias)
            assert torch.allclose(target(x) - base, (source(x) - base) / 2, atol=1e-5), "half the update, in silence"
        else:
            before = target[0].lora_A.detach().clone()
            with pytest.raises(CheckpointError, match=r"lora_alpha=8\.0(.|\n)*lora_alpha=16\.0"):
                target.load_state_dict(stored, strict=False)
            assert torch.equal(target[0].lora_A, before)
            nn.Sequential(linear(lib, lora_alpha=16)).load_state_dict(stored, strict=False)


def test_bug16_multihead_attention() -> None:
    x = torch.randn(2, 3, 8)

    def attended(layer: nn.Module) -> Tensor:
        out: Tensor = layer(x, x, x, need_weights=False)[0]
        return out

    judge = nn.MultiheadAttention(8, 2, batch_first=True)
    before = attended(judge)
    judge.out_proj = filled(theirs.Linear(8, 8, r=2), 4)
    judge.out_proj.load_state_dict(nn.MultiheadAttention(8, 2).out_proj.state_dict(), strict=False)
    base = attended(judge)
    judge.out_proj.lora_B.data.mul_(100)
    assert torch.equal(attended(judge), base), "attention reads the weight itself: the update has no effect"
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True), "fc": ours.Linear(8, 8, r=2)})
    for refused in (
        lambda: ours.attach(model, ["attn"], r=2, lora_alpha=4),
        lambda: ours.attach(model, ["attn.out_proj"], r=2, lora_alpha=4),
        lambda: ours.Linear.from_base(model["attn"].out_proj, r=2, lora_alpha=4),
        lambda: ours.Linear.from_base(model["attn"], r=2, lora_alpha=4),
    ):
        with pytest.raises(TargetError, match=r"deltaw\.attach"):
            refused()
    # the core serves it, beside layers of this face
    before = attended(model["attn"])
    report = dw.attach(model, dw.LoRAConfig(targets=["attn"], rank=2))
    assert any("mark_only_lora_as_trainable" in note for note in report.notes)
    ours.mark_only_lora_as_trainable(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "attn.lora.default.lora_A", "attn.lora.default.lora_B", "attn.out_proj.lora.default.lora_A",
        "attn.out_proj.lora.default.lora_B", "fc.lora_A", "fc.lora_B",
    }  # fmt: skip
    assert set(ours.lora_state_dict(model)) == trained
    assert torch.allclose(attended(model["attn"]), before, atol=1e-6)
    with torch.no_grad():
        model["attn"].lora.default.lora_B.normal_()
    assert not torch.allclose(attended(model["attn"]), before, atol=1e-3)


LAYOUTS: dict[str, Callable[[], Any]] = {
    "Linear": lambda: ours.Linear(8, 12, r=2, lora_alpha=6),
    "Linear, (in, out)": lambda: ours.Linear(8, 12, r=2, lora_alpha=6, fan_in_fan_out=True),
    "MergedLinear": lambda: ours.MergedLinear(8, 12, r=2, lora_alpha=6, enable_lora=[True, False, True]),
    "MergedLinear, (in, out)": lambda: ours.MergedLinear(
        8, 12, r=2, lora_alpha=6, enable_lora=[True, False, True], fan_in_fan_out=True
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_bug17_eval_merges_in_both_layouts(name: str) -> None:
    """Mended before 0.1.2 in the original; here the property: eval() is W + delta in float64, for either layout."""
    layer = filled(LAYOUTS[name]())
    A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    if hasattr(layer, "enable_lora"):
        update = torch.cat([B[:4] @ A[:2], torch.zeros(4, 8).double(), B[4:] @ A[2:]]) * 3
    else:
        update = (B @ A) * 3
    base = layer.weight.detach().double()
    base = base.t() if layer.fan_in_fan_out else base
    weight, size = base + update, base.abs() + 3 * layer._factors()[1].abs().double() @ A.abs()
    layer.eval()
    merged = layer.weight.detach().double()
    merged = merged.t() if layer.fan_in_fan_out else merged
    assert ((merged - weight).abs() <= 4 * 2.0**-24 * size).all()
    x = torch.randn(3, 8)
    assert torch.allclose(layer(x).double(), F.linear(x.double(), weight, layer.bias.double()), atol=1e-5)
