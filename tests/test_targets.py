"""Which weights are adapted, and how: ranks, slices, ties, biases, full copies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import builders
import deltaw as dw
from deltaw.errors import ConfigError, TargetError, TieError
from deltaw.layers import KINDS
from deltaw.tree import base_modules
from named_net import Net, sites

# ranks and alphas


def test_rank_and_alpha_patterns() -> None:
    found = sites(
        Net(), targets="all-linear", rank=4, alpha=8,
        rank_pattern={"layers.0.*": 2, "q_proj": 3, "score": 0}, alpha_pattern={"k_proj": 5, r"re:layers\.3\..*": 6},
    )  # fmt: skip
    assert found["layers.0.q_proj"].rank == 2, "the first matching pattern wins"
    assert found["layers.1.q_proj"].rank == 3 and found["layers.1.my_q_proj"].rank == 4
    assert "score" not in found, "rank 0 is the plain layer"
    assert found["layers.3.k_proj"].alpha == 5 and found["layers.3.v_proj"].alpha == 6
    assert found["layers.1.k_proj"].scaling == 5 / 4


def test_patterns_of_slices() -> None:
    found = sites(
        builders.gpt2(), targets=["c_attn[q]", "c_attn[v]"], rank=4, alpha=8,
        rank_pattern={"c_attn[q]": 2, "h.1.attn.c_attn[v]": 0},
        alpha_pattern={"h.0.attn.c_attn[v]": 3},
    )  # fmt: skip
    parts = {path: {part.name: part for part in site.parts} for path, site in found.items()}
    first, second = parts["transformer.h.0.attn.c_attn"], parts["transformer.h.1.attn.c_attn"]
    assert (first["q"].rank, first["v"].rank, first["v"].alpha, first["q"].alpha) == (2, 4, 3, 8)
    assert set(second) == {"q"}
    assert first["v"].rows == ((32, 48),) and first["v"].out_features == 16
    assert found["transformer.h.0.attn.c_attn"].parameters == 2 * (16 + 16) + 4 * (16 + 16)


@pytest.mark.parametrize(
    "patterns",
    [{"rank_pattern": {"nothing": 2}}, {"alpha_pattern": {"k_proj": 2.0}}, {"rank_pattern": {"q_proj[q]": 2}}],
)
def test_pattern_keys_must_match_a_chosen_module(patterns: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match="rank_pattern or alpha_pattern key"):
        sites(Net(), targets="q_proj", **patterns)


def test_rank_zero_is_the_plain_layer() -> None:
    model = builders.mlp()
    report = builders.attach(model, targets="all-linear", rank=0)
    assert report.sites == () and report.parameters == 0 and dw.trainable(model) == []
    assert type(model.fc1) is nn.Linear and dw.attached(model) == ("default",)
    assert "no low-rank site" in str(report)
    dw.detach(model)
    assert dw.attached(model) == () and all(p.requires_grad for p in model.parameters())


def test_stabilized_scaling() -> None:
    site = sites(Net(), targets="score", rank=4, alpha=6, rank_stabilized=True)["score"]
    assert site.scaling == 3.0


# all-linear


def test_all_linear_leaves_the_head_out() -> None:
    for model in (builders.llama(), builders.llama(tied=True), builders.gpt2()):
        found = sites(model, targets="all-linear")
        assert found and "lm_head" not in found
    assert {path.rpartition(".")[2] for path in sites(builders.gpt2(), targets="all-linear")} == {
        "c_attn",
        "c_proj",
        "c_fc",
    }
    assert "head" not in sites(
        nn.ModuleDict({"body": nn.Linear(6, 6), "net": builders.lookup(tied=True)}), targets="all-linear"
    )


# slices


def test_slices_that_are_not_known_are_refused() -> None:
    with pytest.raises(TargetError, match="which rows a slice means"):
        sites(builders.gpt2(), targets="c_attn[w]")
    with pytest.raises(TargetError, match="which rows a slice means"):
        sites(Net(), targets="q_proj[q]")
    with pytest.raises(TargetError, match="which rows a slice means"):
        sites(Net(), targets="q_proj[3:9]")
    with pytest.raises(TargetError, match="overlap"):
        sites(Net(), targets=["score[0:1]", "score[0:2]"])
    with pytest.raises(TargetError, match="no slices"):
        sites(Net(), targets="embed[0:2]")
    with pytest.raises(ConfigError, match="whole and in slices"):
        sites(builders.gpt2(), targets=["c_attn", "c_attn[q]"])


def test_layouts_of_real_models() -> None:
    phi = sites(builders.phi3(), targets=["qkv_proj[q,k,v]", "gate_up_proj[gate]"])
    assert [p.rows for p in phi["model.layers.0.self_attn.qkv_proj"].parts] == [((0, 16),), ((16, 24),), ((24, 32),)]
    assert [p.rows for p in phi["model.layers.0.mlp.gate_up_proj"].parts] == [((0, 24),)]
    bloom = sites(builders.bloom(), targets="query_key_value[k]")
    assert bloom["transformer.h.0.self_attention.query_key_value"].parts[0].rows == (
        (4, 8),
        (16, 20),
        (28, 32),
        (40, 44),
    )


def test_a_part_of_a_larger_model_keeps_its_own_layout() -> None:
    outer = nn.ModuleDict({"text": builders.phi3()})
    found = sites(outer, targets="qkv_proj[k]")
    assert found["text.model.layers.0.self_attn.qkv_proj"].parts[0].rows == ((16, 24),)


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize(("make", "target"), [("gpt2", "c_attn"), ("phi3", "qkv_proj"), ("bloom", "query_key_value")])
def test_a_slice_moves_what_its_name_says(make: str, target: str, part: str) -> None:
    """Judged by the keys and values that the model itself caches, not by our idea of its layout."""
    model = getattr(builders, make)()

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model(builders.ids(), use_cache=True)
        first = out.past_key_values.layers[0]
        return out.logits, first.keys, first.values

    plain = run()
    builders.attach(model, targets=[f"{target}[{part}]"], rank=2)
    builders.randomize(model)
    adapted = run()
    moved = [not torch.equal(a, b) for a, b in zip(plain, adapted, strict=True)]
    assert moved == [True, part == "k", part == "v"]
    if part != "q":
        a, b = plain["qkv".index(part)], adapted["qkv".index(part)]
        assert (a != b).flatten(0, 2).any(0).all() and (a != b).float().mean() > 0.9, "only a part of the slice moved"


# ties and aliases


def test_ties_are_refused_until_a_policy_says_what_to_do() -> None:
    for model, target in (
        (builders.lookup(tied=True), "embed"),
        (builders.SharedWeight(), "left"),
        (builders.llama(tied=True), "embed_tokens"),
    ):
        before = builders.bits(model)
        with pytest.raises(TieError, match="shared with another module") as caught:
            builders.attach(model, targets=target)
        assert "ties=" in caught.value.hint and builders.bits(model) == before and dw.attached(model) == ()


def test_a_shared_update_reaches_all_users() -> None:
    model = builders.lookup(tied=True)
    ids = builders.ids(10)
    builders.attach(model, targets="embed", rank=2, ties="share")
    builders.randomize(model)
    entry: Any = model.get_submodule("embed.lora.default")
    weight = model.embed.weight + 8 * (entry.lora_B @ entry.lora_A).t()
    want = torch.nn.functional.embedding(ids, weight) @ weight.t()
    torch.testing.assert_close(model(ids), want, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in dw.trainable(model)] == ["embed.lora.default.lora_A", "embed.lora.default.lora_B"]


def test_a_separate_update_reaches_one() -> None:
    model = builders.lookup(tied=True)
    ids = builders.ids(10)
    builders.attach(model, targets="embed", rank=2, ties="separate")
    builders.randomize(model)
    entry: Any = model.get_submodule("embed.lora.default")
    table = model.embed.weight + 8 * (entry.lora_B @ entry.lora_A).t()
    want = torch.nn.functional.embedding(ids, table) @ model.embed.weight.t()
    torch.testing.assert_close(model(ids), want, rtol=1e-4, atol=1e-4)


def test_targeting_both_users_gives_one_shared_update() -> None:
    report = builders.attach(builders.lookup(tied=True), targets=["embed", "head"], ties="share", rank=2)
    assert [site.path for site in report.sites] == ["embed"] and "shares its update with 'head'" in "\n".join(
        report.notes
    )


def test_different_ranks_for_one_shared_update_are_refused() -> None:
    with pytest.raises(TieError, match="one update"):
        sites(builders.lookup(tied=True), targets=["embed", "head"], ties="share", rank_pattern={"head": 2})


def test_a_full_copy_of_a_tied_module_needs_a_policy() -> None:
    model = builders.lookup(tied=True)
    for ties in ("refuse", "share"):
        with pytest.raises(TieError, match="trained in full"):
            builders.attach(model, targets=(), train_also="embed", ties=ties)
    builders.attach(model, targets=(), train_also="embed", ties="separate")
    both = builders.lookup(tied=True)
    builders.attach(nn.ModuleDict({"net": both}), targets=(), train_also="net")


def test_one_module_under_two_names_is_adapted_once() -> None:
    for target in ("first", "again", "all-linear"):
        model = builders.TwoNames()
        report = builders.attach(model, targets=target, rank=2)
        assert [site.path for site in report.sites] == ["first"] and report.sites[0].aliases == ("again",)
        assert "2 names" in report.notes[0]
        assert len(dw.trainable(model)) == 2
    assert len(sites(builders.TwoNames(), targets="first", rank_pattern={"again": 2})) == 1


# biases, by module


def test_bias_modes_go_by_module_and_not_by_name() -> None:
    class LookAlike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.bias_proj, self.k_bias = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.lora_bias_table = nn.Embedding(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.k_bias(self.bias_proj(self.q(x))))

    def trained(**config: Any) -> set[str]:
        model = LookAlike()
        builders.attach(model, rank=1, **config)
        return {name for name, _ in dw.trainable(model) if not name.endswith(("lora_A", "lora_B"))}

    assert trained(targets=["q", "k_bias"], bias="none") == set()
    assert trained(targets=["q", "k_bias"], bias="lora_only") == {"k_bias.lora.default.bias"}
    assert trained(targets=["q"], bias="all") == {
        f"{name}.lora.default.bias" for name in ("bias_proj", "k_bias", "norm")
    }
    with pytest.raises(TargetError, match="no bias to train"):
        trained(targets=["q"], bias="lora_only")


def test_a_bias_that_is_not_added_to_the_output_is_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Bilinear(2, 2, 2)})
    with pytest.raises(TargetError, match="beside the base's"):
        sites(model, targets="a", bias="all")
    assert sites(model, targets="a", bias="lora_only")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_biases_leave_the_base_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 6), nn.LayerNorm(6)
    ).to(dtype)
    x = torch.randn(5, 2, 4).to(dtype)
    plain = model.eval()(x)
    before = builders.bits(model)
    builders.attach(model, targets="3", rank=1, bias="all")
    assert torch.equal(model(x), plain)
    shifts = {}
    with torch.no_grad():
        for name, p in dw.trainable(model):
            if name.endswith("bias"):
                assert p.dtype == torch.float32
                shifts[name] = p.add_(torch.randn(p.shape))
    assert len(shifts) == 4 and not torch.equal(model(x), plain)
    with dw.disabled(model):
        assert torch.equal(model(x), plain)
    on = model(x)
    dw.merge(model)
    torch.testing.assert_close(
        model(x), on, rtol=0.05, atol=0.05
    ) if dtype == torch.bfloat16 else torch.testing.assert_close(model(x), on)
    dw.unmerge(model)
    dw.detach(model)
    assert builders.bits(model) == before and torch.equal(model(x), plain)


# full copies


def test_train_also_trains_a_copy() -> None:
    model = builders.bert()
    tokens = builders.ids()
    plain, before = builders.logits(model, tokens), builders.bits(model)
    builders.attach(model, targets="query", rank=2, train_also="classifier")
    assert torch.equal(builders.logits(model, tokens), plain)
    names = {name for name, _ in dw.trainable(model) if "classifier" in name}
    assert names == {"classifier.lora.default.module.weight", "classifier.lora.default.module.bias"}
    with torch.no_grad():
        model.get_submodule("classifier.lora.default.module").weight.add_(1)
    assert not torch.equal(builders.logits(model, tokens), plain)
    with dw.disabled(model):
        assert torch.equal(builders.logits(model, tokens), plain)
    dw.detach(model)
    assert builders.bits(model) == before


def test_train_also_takes_its_modules_out_of_the_targets() -> None:
    report = builders.attach(builders.bert(), targets="all-linear", rank=2, train_also="bert.encoder.layer.1")
    assert not [site for site in report.sites if site.path.startswith("bert.encoder.layer.1.")]
    assert "trained in full" in report.notes[0]
    nested = dw.plan(builders.bert(), dw.LoRAConfig(targets="query", layers=[0], train_also=["pooler", "pooler.dense"]))
    assert [path for path, _ in nested.copies] == ["bert.pooler"]


def test_a_quantized_module_cannot_be_trained_in_full() -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": builders.Int8Linear(nn.Linear(6, 6))})
    with pytest.raises(TargetError, match="trained in full"):
        builders.attach(model, targets="a", train_also="b")
    assert dw.attached(model) == () and type(model["a"]) is nn.Linear


# the configuration


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": -1}, {"rank": 1.5}, {"rank": True}, {"alpha": 0}, {"alpha": float("nan")}, {"alpha": "16"},
        {"dropout": 1.0},
        {"dropout": -0.1}, {"bias": "some"}, {"ties": "no"}, {"init": "zeros"}, {"rank_pattern": {"q": -2}},
        {"alpha_pattern": {"q": 0}}, {"targets": ()},
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_when_it_is_made(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        dw.LoRAConfig(**bad)
    assert next(iter(bad)) in caught.value.where


def test_a_configuration_is_frozen_and_keyword_only() -> None:
    config = dw.LoRAConfig(targets="q")
    with pytest.raises(AttributeError):
        config.rank = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        dw.LoRAConfig(["q"])  # type: ignore[misc]
    with pytest.raises(ConfigError, match="unknown field"):
        config.replace(rnak=3)
    assert config.replace(rank=3).rank == 3 and config.targets == ("q",)


def test_plan_touches_nothing_and_works_on_the_meta_device() -> None:
    model = builders.llama()
    before, flags = builders.bits(model), [p.requires_grad for p in model.parameters()]
    plan = dw.plan(model, dw.LoRAConfig(rank=2))
    assert builders.bits(model) == before and flags == [p.requires_grad for p in model.parameters()]
    with torch.device("meta"):
        other = Net()
    assert dw.plan(other, dw.LoRAConfig(rank=2)).parameters == dw.plan(Net(), dw.LoRAConfig(rank=2)).parameters
    report = dw.attach(model, dw.LoRAConfig(rank=2))
    assert report.parameters == plan.parameters == sum(p.numel() for _, p in dw.trainable(model))
    assert "q_proj" in str(plan) and str(report).startswith("attached 'default' to 14 modules")


def test_the_walk_meets_the_bases_modules_in_order_under_all_names() -> None:
    model = builders.llama()
    model.again = model.model.layers[0].self_attn.q_proj
    plain = dict(model.named_modules())
    dw.attach(model, dw.LoRAConfig(rank=2, targets="q_proj"))
    seen: dict[int, list[str]] = {}
    assert list(base_modules(model, seen=seen)) == list(plain.items())
    assert seen[id(model.again)] == ["model.layers.0.self_attn.q_proj", "again"]
    inner = list(base_modules(model.model.layers[0], "x"))
    assert [path for path, _ in inner][:3] == ["x", "x.self_attn", "x.self_attn.q_proj"]


def test_a_plan_asks_once_what_a_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []

    def matches(module: nn.Module) -> bool:
        asked.append(module)
        return isinstance(module, nn.Linear)

    monkeypatch.setitem(KINDS, "Linear", dataclasses.replace(KINDS["Linear"], matches=matches))
    model = builders.llama()
    assert len(dw.plan(model, dw.LoRAConfig(rank=2, targets=["all-linear", "q_proj"], ties="share")).sites) == 14
    assert asked == list(model.modules())
