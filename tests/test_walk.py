"""Random walks over the verbs: whatever the order, outputs are the reference's and the base's bits are its own."""

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

X = torch.linspace(-1, 1, 18).reshape(3, 6)


class Walk:
    """A model, what it should wear, and the steps that change both."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.draw, self.directory = random.Random(seed), directory
        self.model: nn.Module = builders.mlp(seed=1).eval()
        self.base = builders.bits(self.model)
        self.plain = copy.deepcopy(self.model)
        self.worn: dict[str, dict[str, torch.Tensor]] = {}
        self.mix: dict[str, float] = {}
        self.merged = False
        self.count = 0

    def steps(self) -> list[Callable[[], None]]:
        if self.merged:
            return [self.unmerge, self.copied]
        return [
            self.attach,
            *([self.activate, self.merge, self.detach, self.stored, self.copied, self.off] if self.worn else []),
        ]

    def attach(self) -> None:
        self.count += 1
        name = f"a{self.count}"
        targets = self.draw.choice([["fc1"], ["fc2"], ["fc1", "fc2"], ["fc2[0:2]"]])
        alpha = self.draw.choice([2, 5])
        builders.attach(
            self.model, name, targets=targets, rank=2, alpha=alpha, rank_stabilized=self.draw.random() < 0.5
        )
        builders.randomize(self.model, self.count, adapter=name)
        scale = alpha / (2**0.5 if self.model._deltaw_record.adapters[name].config.rank_stabilized else 2)
        deltas = {}
        for path, pair in builders.factors(self.model, name):
            site = path.partition(".lora")[0]
            dense = torch.zeros_like(self.plain.get_submodule(site).weight)
            dense[: pair.lora_B.shape[0]] = scale * (pair.lora_B @ pair.lora_A).detach()
            deltas[site] = dense
        self.worn[name], self.mix = deltas, {name: 1.0}

    def activate(self) -> None:
        names = self.draw.sample(sorted(self.worn), self.draw.randint(0, len(self.worn)))
        self.mix = {name: self.draw.choice([1.0, -0.5, 0.25]) for name in names}
        dw.activate(self.model, self.mix or None)

    def merge(self) -> None:
        if self.mix:
            dw.merge(self.model)
            self.merged = True

    def unmerge(self) -> None:
        dw.unmerge(self.model)
        self.merged = False

    def detach(self) -> None:
        name = self.draw.choice([*sorted(self.worn), None])
        dw.detach(self.model, name)
        gone = list(self.worn) if name is None else [name]
        for each in gone:
            self.worn.pop(each)
            self.mix.pop(each, None)

    def stored(self) -> None:
        name = self.draw.choice(sorted(self.worn))
        self.count += 1
        dw.save(self.model, self.directory / f"s{self.count}", name)
        dw.load(self.model, self.directory / f"s{self.count}", f"a{self.count}", trainable=self.draw.random() < 0.5)
        self.worn[f"a{self.count}"], self.mix = self.worn[name], {f"a{self.count}": 1.0}

    def copied(self) -> None:
        self.model = copy.deepcopy(self.model)

    def off(self) -> None:
        with dw.disabled(self.model):
            assert torch.equal(self.model(X), self.plain(X))

    def verify(self) -> None:
        want: Any = copy.deepcopy(self.plain)
        with torch.no_grad():
            for name, weight in self.mix.items():
                for site, dense in self.worn[name].items():
                    want.get_submodule(site).weight.add_(weight * dense)
        torch.testing.assert_close(self.model(X), want(X), rtol=1e-3, atol=1e-3)
        assert dw.attached(self.model) == tuple(self.worn)
        if not self.merged:
            assert builders.base_bits(self.model) == self.base
        if not self.worn:
            assert [type(m) for m in self.model.modules()] == [type(m) for m in self.plain.modules()]
            assert all(p.requires_grad for p in self.model.parameters())


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_verbs(seed: int, tmp_path: Path) -> None:
    walk = Walk(seed, tmp_path)
    taken = []
    for _ in range(40):
        step = walk.draw.choice(walk.steps())
        taken.append(step.__name__)
        step()
        walk.verify()
    assert len(set(taken)) > 5
