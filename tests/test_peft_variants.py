"""PEFT judges the layer types and variants beyond plain LoRA on linear maps: files both ways, outputs, key sets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw as dw
from peft_features import gpt2, llama
from peft_judge import ALLOWED, compare_models, fill, inputs, output, peft_load, quiet, seeded, tensors


class Convolutions(nn.Module):
    """One of each kind, with strides and paddings; PEFT takes neither dilation nor padding mode over to A."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, stride=2, padding=1)
        self.two = nn.Conv2d(4, 6, (3, 2), padding=(1, 0))
        self.point = nn.Conv2d(6, 4, 1, bias=True)
        self.three = nn.Conv3d(2, 4, (1, 2, 2), stride=(1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.one(x.reshape(2, 4, 60))
        image = self.point(self.two(x.reshape(2, 4, 10, 6)))
        volume = self.three(x.reshape(2, 2, 5, 6, 4))
        return torch.cat([t.reshape(2, -1) for t in (flat, image, volume)], dim=1)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(2, 4, 10, 6))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(4, 10, 12)
        return self.head(self.attn(x, x, x, need_weights=False)[0])


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed((x.reshape(2, -1).abs() * 7).long() % 20))


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature, as both libraries say it; ``theirs`` is None where PEFT cannot make such a file itself."""

    name: str
    model: Callable[[], nn.Module]
    ours: dict[str, Any]
    theirs: dict[str, Any] | None
    method: str = "LoraConfig"
    tokens: bool = False
    allowed: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()


_CONV = {"target_modules": ["one", "two", "point", "three"]}
_ALL = {"targets": ["one", "two", "point", "three"]}
_A = {"rank": 4, "alpha": 7.0}
_R = {"r": 4, "lora_alpha": 7.0}
_LLAMA = {"target_modules": ["q_proj", "down_proj"]}
_FALSE_ALARM = {r"LoRA tensor\(s\) have invalid shape": "PEFT says so of every bias on B"}
_NO_BIAS = {r"has no bias. This means that merging": "PEFT's remark on bias=False layers; nothing is merged here"}
_ALIASES = (".vera_A.default", ".vera_B.default", "lm_head.token_adapter.trainable_tokens_delta.default")
"""Names under which PEFT sees one tensor again; the file holds it once."""
_GROUPS = {r"groups > 1. Merging is not supported": "PEFT cannot merge its own; ours can"}

FEATURES = [
    Feature(name="conv", model=Convolutions, ours={**_A, **_ALL}, theirs={**_R, **_CONV}),
    Feature(
        name="conv-dora", model=Convolutions, ours={**_A, **_ALL, "variant": "dora"},
        theirs={**_R, **_CONV, "use_dora": True},
    ),
    Feature(
        name="conv-bias", model=Convolutions, ours={**_A, **_ALL, "variant": "lora_bias"},
        theirs={**_R, **_CONV, "lora_bias": True}, allowed=_FALSE_ALARM,
    ),
    Feature(name="conv-groups", model=Grouped, ours={**_A, "targets": "conv"}, theirs=None, allowed=_GROUPS),
    Feature(
        name="attention", model=Attention, ours={**_A, "targets": "attn"}, theirs={**_R, "target_modules": ["attn"]},
    ),
    Feature(name="attention-half", model=Attention, ours={**_A, "targets": "attn[q,v]"}, theirs=None),
    Feature(
        name="attention-uneven", model=Attention, theirs=None,
        ours={**_A, "targets": "attn", "rank_pattern": {"out_proj": 2}, "alpha_pattern": {"out_proj": 5.0}},
    ),
    Feature(
        name="dora", model=llama, tokens=True, ours={**_A, "targets": ["q_proj", "down_proj"], "variant": "dora"},
        theirs={**_R, **_LLAMA, "use_dora": True},
    ),
    Feature(
        name="dora-rank-stabilized", model=llama, tokens=True,
        ours={**_A, "targets": ["q_proj", "down_proj"], "variant": "dora", "rank_stabilized": True},
        theirs={**_R, **_LLAMA, "use_dora": True, "use_rslora": True},
    ),
    Feature(
        name="dora-conv1d", model=gpt2, tokens=True, ours={**_A, "targets": ["c_attn"], "variant": "dora"},
        theirs={**_R, "target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True},
    ),
    Feature(
        name="dora-slices", model=gpt2, tokens=True, ours={**_A, "targets": ["c_attn[q,v]"], "variant": "dora"},
        theirs=None,
    ),
    Feature(
        name="dora-embedding", model=Table, ours={**_A, "targets": ["embed", "out"], "variant": "dora"},
        theirs={**_R, "target_modules": ["embed", "out"], "use_dora": True}, extra=(".base_layer.weight",),
    ),
    Feature(
        name="lora-bias", model=gpt2, tokens=True, ours={**_A, "targets": ["c_attn"], "variant": "lora_bias"},
        theirs={**_R, "target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True}, allowed=_FALSE_ALARM,
    ),
    Feature(
        name="lora-fa", model=llama, tokens=True, theirs=None,
        ours={**_A, "targets": ["q_proj", "down_proj"], "variant": "lora_fa"},
    ),
    Feature(
        name="pissa", model=llama, tokens=True, theirs=None,
        ours={**_A, "targets": ["q_proj", "down_proj"], "init": "pissa"},
    ),
    Feature(
        name="olora-rank-stabilized", model=gpt2, tokens=True, theirs=None,
        ours={**_A, "targets": ["c_attn[q]"], "init": "olora", "rank_stabilized": True},
    ),
    Feature(
        name="orthogonal", model=llama, tokens=True, ours={**_A, "targets": ["q_proj"], "init": "orthogonal"},
        theirs={**_R, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    ),
    Feature(
        name="vera", model=llama, tokens=True, method="VeraConfig",
        ours={"rank": 6, "targets": ["q_proj", "down_proj"], "variant": "vera", "seed": 3},
        theirs={"r": 6, "target_modules": ["q_proj", "down_proj"], "projection_prng_key": 3},
    ),
    Feature(
        name="vera-conv1d", model=gpt2, tokens=True, method="VeraConfig",
        ours={"rank": 6, "targets": ["c_attn", "c_fc"], "variant": "vera", "seed": 0, "bias": "lora_only"},
        theirs={"r": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "vera_only"},
    ),
    Feature(
        name="rows", model=llama, tokens=True,
        ours={**_A, "targets": ["q_proj"], "train_rows": {"embed_tokens": [7, 3]}},
        theirs={**_R, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7]}},
    ),
    Feature(
        name="rows-tied", model=lambda: llama(tied=True), tokens=True,
        ours={**_A, "targets": ["q_proj"], "train_rows": {"embed_tokens": [3, 7, 9]}, "ties": "share"},
        theirs={**_R, "target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 9]},
    ),
]  # fmt: skip
EXPRESSIBLE = [feature for feature in FEATURES if feature.theirs is not None]

features = pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
both = pytest.mark.parametrize("feature", EXPRESSIBLE, ids=lambda f: f.name)


def x_of(feature: Feature, model: nn.Module) -> Tensor:
    if feature.tokens:
        return inputs(model, True)
    return torch.randn(480, generator=torch.Generator().manual_seed(4))


def ours(feature: Feature, directory: Path) -> nn.Module:
    model = seeded(feature.model)
    dw.attach(model, dw.LoRAConfig(**feature.ours))
    fill(dw.trainable(model))
    dw.save(model, directory)
    return model.eval()


def theirs(feature: Feature, directory: Path) -> Any:
    import peft

    with quiet({**ALLOWED, **feature.allowed}):
        made = peft.get_peft_model(seeded(feature.model), getattr(peft, feature.method)(**(feature.theirs or {})))
        fill([(name, p) for name, p in made.eval().named_parameters() if p.requires_grad])
        made.save_pretrained(str(directory))
    return made


def judge(feature: Feature, mine: nn.Module, his: Any) -> None:
    x = x_of(feature, mine)
    compare_models(mine, his, x)
    with dw.disabled(mine):
        base = output(mine, x)
    assert (output(mine, x) - base).abs().max() > 1e-2 * base.abs().max(), "the adapter does too little to judge"


@features
def test_ours_loads_in_peft(feature: Feature, tmp_path: Path) -> None:
    mine = ours(feature, tmp_path)
    judge(
        feature,
        mine,
        peft_load(seeded(feature.model), tmp_path, allowed={**ALLOWED, **feature.allowed}, aliases=_ALIASES),
    )


@both
def test_peft_loads_in_ours_and_keys_are_equal(feature: Feature, tmp_path: Path) -> None:
    his = theirs(feature, tmp_path / "theirs")
    mine = seeded(feature.model)
    report = dw.load(mine, tmp_path / "theirs")
    assert report.applied == report.total
    judge(feature, mine.eval(), his)
    ours(feature, tmp_path / "ours")
    left, right = ({k: tuple(t.shape) for k, t in tensors(tmp_path / side).items()} for side in ("ours", "theirs"))
    assert left == {key: shape for key, shape in right.items() if not feature.extra or not key.endswith(feature.extra)}


@features
def test_a_mutation_is_noticed(feature: Feature, tmp_path: Path) -> None:
    """The bound is worth something: one per cent more of the update fails it."""
    mine = ours(feature, tmp_path)
    his = peft_load(seeded(feature.model), tmp_path, allowed={**ALLOWED, **feature.allowed}, aliases=_ALIASES)
    changed = copy.deepcopy(mine)
    with torch.no_grad():
        for _, p in dw.trainable(changed):
            p.mul_(1.01)
    with pytest.raises(AssertionError):
        compare_models(changed, his, x_of(feature, mine))


def test_peft_groups_that_mix_are_refused(tmp_path: Path) -> None:
    """PEFT lets every group see every input, which is no update of the base's own weight."""
    feature = Feature(name="mixed", model=Grouped, ours={}, theirs={**_R, "target_modules": ["conv"]}, allowed=_GROUPS)
    theirs(feature, tmp_path)
    with pytest.raises(dw.DeltawError, match="mixes the groups"):
        dw.load(seeded(Grouped), tmp_path)
