"""merge and unmerge: exact bits after any number of cycles, nothing written when refused, nothing merged twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import DeltawError, StateError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@torch.no_grad()
def harden(model: nn.Module, dtype: torch.dtype) -> None:
    """Plant the values that arithmetic on weights loses: subnormals, signed zeros, the largest and smallest numbers."""
    info = torch.finfo(dtype)
    special = [
        -0.0,
        0.0,
        info.tiny,
        -info.tiny,
        info.smallest_normal / 4,
        -info.smallest_normal / 2,
        info.max / 2,
        -info.max / 4,
    ]
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and weight.shape[-1] >= len(special):
            weight[-1, : len(special)] = torch.tensor(special, dtype=torch.float64).to(dtype)


def wide() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))


def shared() -> nn.Module:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    return model


def one_module_twice() -> nn.Module:
    torch.manual_seed(7)
    layer = nn.Linear(16, 16)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    torch.manual_seed(7)
    model = nn.Module()
    model.embed, model.head = nn.Embedding(12, 16), nn.Linear(16, 12)
    model.head.weight = model.embed.weight
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (wide, {"targets": "all-linear"}),
    "shared weight": (shared, {"targets": ["0", "1"], "ties": "share"}),
    "one module twice": (one_module_twice, {"targets": ["0"]}),
    "tied head": (tied, {"targets": ["embed"], "ties": "share"}),
    "gpt2": (builders.gpt2, {"targets": ["c_attn[q,v]", "c_fc"]}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_hundred_cycles_give_every_bit_back(
    name: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    make, config = MODELS[name]
    model = make().to(dtype)
    harden(model, dtype)
    for seed, adapter in enumerate("abc"):
        builders.attach(model, adapter, rank=2, alpha=3, **config)
        builders.randomize(model, seed, size=0.05, adapter=adapter)
    before = builders.bits(model)
    draw = random.Random(0)
    kept = full = 0
    for cycle in range(100):
        names = draw.sample("abc", draw.choice([1, 2, 3]))
        mix = names[0] if len(names) == 1 else {each: draw.uniform(-1, 1) for each in names}
        report = dw.merge(model, mix)
        kept, full = kept + report.kept_bytes, full + report.full_bytes
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert builders.bits(model) != {key: before[key] for key in builders.bits(model)}, cycle
        dw.unmerge(model)
        assert builders.bits(model) == before, (cycle, mix)
    with capsys.disabled():
        print(f"\n  {name}, {dtype}: kept {kept / 100:,.0f} bytes per merge; a copy would take {full / 100:,.0f}")
    assert kept <= full


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_kept_is_smaller_than_a_copy(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False)).to(dtype)
    builders.attach(model, targets="0", rank=8, alpha=16)
    builders.randomize(model, size=0.01)
    report = dw.merge(model)
    with capsys.disabled():
        print(f"\n  256 x 256, {dtype}: kept {report.kept_bytes:,} of {report.full_bytes:,} bytes")
    assert report.full_bytes == 2 * 256 * 256
    assert report.kept_bytes < (0.75 if dtype == torch.bfloat16 else 1.0) * report.full_bytes
    assert str(report).startswith("merged default x 1 into 1 weights; ")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_computed_wide_and_rounded_once(dtype: torch.dtype) -> None:
    model = wide().to(dtype)
    builders.attach(model, targets="0", rank=2, alpha=3)
    builders.randomize(model)
    entry: Any = model.get_submodule("0.lora.default")
    W, A, B = (tensor.detach().clone() for tensor in (model[0].weight, entry.lora_A, entry.lora_B))
    want = W.double() + 1.5 * (B.double() @ A.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dw.merge(model)
    # half a unit in the last place for the one rounding, and what products in at least fp32 can be off by
    products = 1.5 * (B.double().abs() @ A.double().abs())
    bound = want.abs() * torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps * products
    assert ((model[0].weight.double() - want).abs() <= bound + 1e-12).all(), "not rounded once"


def untouched(model: nn.Module, run: Callable[[], Any], match: str) -> DeltawError:
    """Run something that must refuse, and see that no byte, class or name moved."""
    before, modules = builders.bits(model), [(name, type(m)) for name, m in model.named_modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(DeltawError, match=match) as caught:
        run()
    assert builders.bits(model) == before
    assert [(name, type(m)) for name, m in model.named_modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    assert str(caught.value).splitlines()[-1].startswith("hint: ")
    return caught.value


def test_nan_is_refused() -> None:
    model = wide()
    builders.attach(model, targets="all-linear")
    model.get_submodule("1.lora.default").lora_B.data[0, 0] = float("nan")
    untouched(model, lambda: dw.merge(model), "not finite")


def test_overflow_of_a_later_weight_is_refused_and_the_first_is_put_back() -> None:
    model = wide().half()
    builders.attach(model, targets="all-linear", rank=2)
    builders.randomize(model)
    model.get_submodule("1.lora.default").lora_B.data.mul_(1e6)
    untouched(model, lambda: dw.merge(model), "overflows")


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_tied_neighbor_without_the_update_is_refused(bias: str) -> None:
    model = builders.lookup(tied=True, bias=True)
    builders.attach(model, targets="embed", ties="separate", bias=bias)
    builders.randomize(model)
    untouched(model, lambda: dw.merge(model), "would also change")


def test_two_updates_of_one_weight_are_refused() -> None:
    model = builders.SharedWeight()
    builders.attach(model, targets="all-linear", ties="separate")
    builders.randomize(model)
    untouched(model, lambda: dw.merge(model), "one shared weight")


def test_a_mix_that_a_twin_wears_only_in_part_is_refused() -> None:
    model = builders.lookup(tied=True)
    builders.attach(model, "both", targets="embed", ties="share")
    builders.attach(model, "one", targets="embed", ties="separate")
    builders.randomize(model)
    untouched(model, lambda: dw.merge(model, {"both": 1.0, "one": 1.0}), "would also change")
    dw.merge(model, "both")
    dw.unmerge(model)


def test_a_tie_that_was_broken_since_is_refused() -> None:
    model = builders.lookup(tied=True)
    builders.attach(model, targets="embed", ties="share")
    builders.randomize(model)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone(), requires_grad=False)
    untouched(model, lambda: dw.merge(model), "no longer share")


def test_quantized_weights_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), builders.Int8Linear(nn.Linear(6, 6)))
    builders.attach(model, targets="all-linear")
    builders.randomize(model)
    untouched(model, lambda: dw.merge(model), "cannot be merged into")


def test_a_scaled_eight_bit_float_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    builders.attach(model, targets="all-linear")
    builders.randomize(model)
    model[0].weight.data = model[0].weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(StateError, match="cannot be merged into"):
        dw.merge(model)
    assert model[0].weight.dtype == torch.float8_e4m3fn


def test_a_linear_without_a_weight_of_its_own_is_refused() -> None:
    class Packed(builders.Int8Linear):
        def __init__(self, source: nn.Linear) -> None:
            super().__init__(source)
            packed = self.weight.detach()
            del self._parameters["weight"]
            self.register_buffer("qweight", packed)

        def dense(self) -> torch.Tensor:
            return self.qweight * self.scale

    torch.manual_seed(0)
    model = nn.Sequential(Packed(nn.Linear(6, 6)), nn.Linear(6, 6))
    builders.attach(model, targets="all-linear")
    builders.randomize(model)
    assert model(torch.ones(1, 6)).isfinite().all()
    untouched(model, lambda: dw.merge(model), "cannot be merged into")


@pytest.mark.parametrize("how", ["parametrization", "weight_norm"])
def test_a_computed_weight_is_refused(how: str) -> None:
    model = builders.Holder("proj", nn.Linear(6, 6))
    if how == "parametrization":
        nn.utils.parametrizations.spectral_norm(model.site)
    else:
        nn.utils.parametrizations.weight_norm(model.site)
    model.eval()
    x = torch.ones(1, 6)
    plain = model(x)
    builders.attach(model, targets="proj")
    assert torch.equal(model(x), plain)
    builders.randomize(model)
    assert not torch.equal(model(x), plain)
    untouched(model, lambda: dw.merge(model), "cannot be merged into")


def test_a_meta_weight_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 6))
    builders.attach(model, targets="0")
    with pytest.raises(StateError):
        dw.merge(model)


def test_nothing_active_is_refused() -> None:
    model = wide()
    builders.attach(model, targets="0")
    dw.activate(model, None)
    untouched(model, lambda: dw.merge(model), "nothing to merge")
    untouched(model, lambda: dw.unmerge(model), "cannot unmerge")


def test_verbs_are_refused_while_merged(tmp_path: Path) -> None:
    model = wide()
    builders.attach(model, targets="0")
    builders.randomize(model)
    dw.save(model, tmp_path)
    dw.merge(model)

    def enter(manager: Any) -> None:
        with manager:
            pass

    verbs = [
        lambda: dw.merge(model), lambda: dw.detach(model), lambda: dw.activate(model, "default"),
        lambda: dw.check(model),
        lambda: dw.trainable(model), lambda: dw.save(model, tmp_path), lambda: dw.load(model, tmp_path, "b"),
        lambda: builders.attach(model, "b", targets="0"), lambda: dw.freeze(model, "default"),
        lambda: enter(dw.active(model, "default")), lambda: enter(dw.disabled(model)), lambda: dw.draws(model),
    ]  # fmt: skip
    for verb in verbs:
        assert "unmerge" in untouched(model, verb, "while adapters are merged").hint


def test_an_edit_while_merged_is_noticed_and_undone() -> None:
    model = wide()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before = builders.bits(model)
    dw.merge(model)
    merged = model[0].weight.detach().clone()
    model[0].weight.data[3, 5] += 1e-3
    untouched(model, lambda: dw.unmerge(model), "was changed")
    model[0].weight.data.copy_(merged)
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_a_cast_while_merged_is_noticed_and_undone() -> None:
    model = wide().bfloat16()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before = builders.bits(model)
    dw.merge(model)
    model.float()
    untouched(model, lambda: dw.unmerge(model), "was changed")
    model.bfloat16()
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_a_replaced_parameter_while_merged_is_noticed() -> None:
    model = wide()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before = builders.bits(model)
    dw.merge(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other = {key: value + 1 for key, value in state.items()}
    model.load_state_dict(other, assign=True)
    untouched(model, lambda: dw.unmerge(model), "was changed")
    model.load_state_dict(state, assign=True)
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_a_replaced_module_while_merged_is_noticed() -> None:
    model = wide()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before, old = builders.bits(model), model[0]
    dw.merge(model)
    model[0] = nn.Linear(16, 24)
    untouched(model, lambda: dw.unmerge(model), "was changed|was replaced")
    model[0] = old
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_train_mode_and_device_are_followed() -> None:
    model = wide().train()
    builders.attach(model, targets="0", dropout=0.5)
    dw.merge(model)
    model.eval()
    dw.unmerge(model)
    assert not any(m.training for m in model.modules())


def test_a_merged_state_is_plain_and_never_merged_twice(tmp_path: Path) -> None:
    model = builders.llama()
    names = set(model.state_dict())
    builders.attach(model, targets="all-linear", rank=2)
    builders.randomize(model)
    dw.save(model, tmp_path / "adapter")
    dw.merge(model)
    assert set(model.state_dict()) == names
    tokens = builders.ids()
    merged = builders.logits(model, tokens)
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(builders.logits(again, tokens), merged)
    assert dw.attached(again) == ()
    with pytest.raises(StateError, match="cannot merge"):
        dw.merge(again)
    with pytest.raises(DeltawError, match="does not fit"):
        dw.load(again, tmp_path / "adapter")


def test_biases_and_full_copies_are_merged_and_given_back() -> None:
    model = builders.bert()
    builders.attach(model, targets=["query"], rank=2, bias="all", train_also=["classifier"])
    builders.randomize(model)
    with torch.no_grad():
        for _, p in dw.trainable(model):
            p.add_(torch.randn(p.shape) * 0.1)
    tokens = builders.ids()
    on, before = builders.logits(model, tokens), builders.bits(model)
    report = dw.merge(model)
    assert report.sites > 2
    torch.testing.assert_close(builders.logits(model, tokens), on, rtol=1e-4, atol=1e-5)
    dw.unmerge(model)
    assert builders.bits(model) == before and torch.equal(builders.logits(model, tokens), on)


def test_a_merged_copy_is_independent() -> None:
    model = wide()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before = builders.bits(model)
    dw.merge(model)
    other = copy.deepcopy(model)
    dw.unmerge(other)
    assert builders.bits(other) == before
    assert builders.bits(model) != before and "0.lora.default.lora_A" not in model.state_dict()
    dw.unmerge(model)
    assert builders.bits(model) == before


def test_unchanged_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model, size=1e-6)
    report = dw.merge(model)
    assert report.unchanged == ("0.weight",) and "no bit changed in 0.weight" in str(report)


def test_non_contiguous_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    model[0].weight = nn.Parameter(torch.randn(6, 4).t())
    builders.attach(model, targets="0", rank=2)
    builders.randomize(model)
    before, out = builders.bits(model), model(torch.ones(1, 6))
    dw.merge(model)
    torch.testing.assert_close(model(torch.ones(1, 6)), out)
    dw.unmerge(model)
    assert builders.bits(model) == before and not model[0].weight.is_contiguous()


def test_a_merge_that_keeps_nothing_has_the_same_bits_and_no_way_back() -> None:

    kept = builders.Holder("proj", nn.Linear(6, 5))
    builders.attach(kept, targets="proj", rank=2)
    builders.randomize(kept)
    dropped = copy.deepcopy(kept)
    whole, none = dw.merge(kept), dw.merge(dropped, keep=False)
    assert torch.equal(kept.site.weight, dropped.site.weight)
    assert whole.kept_bytes > 0 == none.kept_bytes and whole.sites == none.sites == 1
    assert "cannot be restored" in str(none) and "cannot be restored" not in str(whole)
    with pytest.raises(StateError, match="not kept"):
        dw.unmerge(dropped)
    dw.unmerge(kept)


def test_an_overflow_stops_a_merge_that_keeps_nothing_before_it_writes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    builders.attach(model, targets=["0", "1"], rank=1)
    builders.randomize(model, size=0.1)
    with torch.no_grad():
        model[1].lora.default.lora_B.fill_(3e4)
        model[1].lora.default.lora_A.fill_(3e4)
    before = [layer.weight.clone() for layer in model]
    with pytest.raises(StateError, match="overflows"):
        dw.merge(model, keep=False)
    assert all(torch.equal(a, layer.weight) for a, layer in zip(before, model, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (40, 50), (33, 127)])
def test_every_edit_of_a_merged_weight_is_noticed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from deltaw.keep import _bits, _checksum

    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    flat, first = values.view(-1), _checksum(_bits(values))
    for place in {0, 1, len(flat) // 2, len(flat) - 1}:
        changed = values.clone()
        changed.view(-1)[place] = -changed.view(-1)[place]
        assert _checksum(_bits(changed)) != first, "a sign"
    swapped = values.clone().view(-1)
    swapped[[0, -1]] = swapped[[-1, 0]]
    assert _checksum(_bits(swapped)) != first
