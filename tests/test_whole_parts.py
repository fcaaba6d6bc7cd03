"""Containers trained in full: ``nn.Sequential`` and lists hand on to their parts, so the copies sit on the parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from peft_judge import fill, peft_load, peft_model, quiet, seeded, tensors


class Net(nn.Module):
    """A head of several modules, a list of blocks, a table of towers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.towers = nn.ModuleDict({"left": nn.Linear(6, 6)})
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(x))
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.towers["left"](x))


X = torch.linspace(-1, 1, 24).reshape(4, 6)
PARTS = {
    "head": ["head.0", "head.2", "head.3"], "blocks": ["blocks.0", "blocks.1"], "towers": ["towers.left"],
}  # fmt: skip


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    for _, p in dw.trainable(model):
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    return model


@pytest.mark.parametrize("what", PARTS)
def test_a_container_is_trained_by_its_parts(what: str, tmp_path: Path) -> None:
    model, plain = seeded(Net), seeded(Net).requires_grad_(False)
    report = builders.attach(model, targets="body", rank=2, train_also=[what])
    assert [path for path, _ in report.plan.copies] == PARTS[what]
    assert len(model.get_submodule(what)) == len(plain.get_submodule(what))  # type: ignore[arg-type]
    assert torch.equal(model(X), plain(X))
    moved(model)
    on = model(X)
    assert not torch.allclose(on, plain(X))
    with dw.disabled(model):
        assert torch.equal(model(X), plain(X))
    dw.save(model, tmp_path)
    other = seeded(Net)
    dw.load(other, tmp_path)
    assert torch.equal(other(X), on)
    theirs = peft_load(seeded(Net), tmp_path)
    torch.testing.assert_close(theirs(X), on)
    dw.merge(model)
    torch.testing.assert_close(model(X), on)
    dw.unmerge(model)
    dw.detach(model)
    assert torch.equal(model(X), plain(X)) and type(model.head) is nn.Sequential


@pytest.mark.parametrize("lacking", [None, "head.3.bias", "head.2.running_mean", "head.0."])
def test_a_container_that_peft_saved(lacking: str | None, tmp_path: Path) -> None:
    with quiet():
        fields = {"r": 2, "lora_alpha": 7, "target_modules": ["body"], "modules_to_save": ["head"]}
        theirs = peft_model(seeded(Net), fields)
        fill([(name, p) for name, p in theirs.named_parameters() if p.requires_grad])
        theirs.save_pretrained(str(tmp_path))
    if lacking is None:
        ours = seeded(Net)
        dw.load(ours, tmp_path)
        torch.testing.assert_close(ours(X), theirs(X))
        return
    from safetensors.torch import save_file

    held = {key: t for key, t in tensors(tmp_path).items() if lacking not in key}
    save_file(held, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(dw.DeltawError, match=lacking.split(".")[1]):
        dw.load(seeded(Net), tmp_path)
