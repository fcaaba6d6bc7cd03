"""accelerate, Lightning Fabric and TRL train, save and resume as the plain loop does."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning_fabric
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import builders
import deltaw as dw
import loops

BATCHES = loops.batches(loops.rows())


def expected(**config: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    net = loops.model(**config)
    return loops.plain_loop(net, BATCHES), loops.adapter(net)


def accelerated(net: nn.Module) -> tuple[Accelerator, Any, Any]:
    accelerator = Accelerator(cpu=True)
    return accelerator, *accelerator.prepare(net, loops.optimizer(net))


def steps(accelerator: Accelerator, net: Any, optimizer: Any, data: list[dict[str, torch.Tensor]]) -> list[float]:
    losses = []
    for batch in data:
        loss = net(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_accelerate(tmp_path: Path) -> None:
    losses, tensors = expected(dropout=0.2)
    accelerator, net, optimizer = accelerated(loops.model(dropout=0.2))
    assert steps(accelerator, net, optimizer, BATCHES[:3]) == losses[:3]
    accelerator.save_state(str(tmp_path / "state"))
    assert steps(accelerator, net, optimizer, BATCHES[3:]) == losses[3:]
    loops.assert_same(loops.adapter(net), tensors)
    accelerator, net, optimizer = accelerated(loops.model(dropout=0.2))
    accelerator.load_state(str(tmp_path / "state"))
    assert steps(accelerator, net, optimizer, BATCHES[3:]) == losses[3:]
    loops.assert_same(loops.adapter(net), tensors)
    unwrapped = accelerator.unwrap_model(net)
    unwrapped.save_pretrained(tmp_path / "out", state_dict=accelerator.get_state_dict(net))
    assert dw.load(builders.llama(), tmp_path / "out").applied == 4 and dw.check(unwrapped).ok


def test_accelerates_mixed_precision() -> None:
    net = loops.model()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    net, optimizer = accelerator.prepare(net, loops.optimizer(net))
    losses = steps(accelerator, net, optimizer, BATCHES)
    assert losses == pytest.approx(expected()[0], rel=0.02)
    assert all(p.dtype == p.grad.dtype == torch.float32 for _, p in dw.trainable(net) if p.grad is not None)
    bare = accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    assert dw.detach(bare).restored == 4


def fabric_steps(fabric: Any, net: Any, optimizer: Any, data: list[dict[str, torch.Tensor]]) -> list[float]:
    losses = []
    for batch in data:
        loss = net(**batch).loss
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def fabric() -> Any:
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lightning_fabric.Fabric(accelerator="cpu", devices=1)


def test_fabric(fabric: Any, tmp_path: Path) -> None:
    losses, tensors = expected(dropout=0.2)
    inner = loops.model(dropout=0.2)
    net, optimizer = fabric.setup(inner, loops.optimizer(inner))
    assert fabric_steps(fabric, net, optimizer, BATCHES[:3]) == losses[:3]
    state = {"model": net, "optimizer": optimizer}
    only = {"model": lambda key, value: ".lora." in key}
    fabric.save(tmp_path / "whole.ckpt", state)
    fabric.save(tmp_path / "adapter.ckpt", state, filter=only)
    assert fabric_steps(fabric, net, optimizer, BATCHES[3:]) == losses[3:]
    loops.assert_same(loops.adapter(inner), tensors)
    assert (tmp_path / "adapter.ckpt").stat().st_size < (tmp_path / "whole.ckpt").stat().st_size
    for name in ("whole.ckpt", "adapter.ckpt"):
        inner = loops.model(dropout=0.2)
        net, optimizer = fabric.setup(inner, loops.optimizer(inner))
        assert fabric.load(tmp_path / name, {"model": net, "optimizer": optimizer}) == {}
        assert fabric_steps(fabric, net, optimizer, BATCHES[3:]) == losses[3:]
        loops.assert_same(loops.adapter(inner), tensors)
    assert dw.save(net, tmp_path / "out").tensors == 8
    assert dw.check(net).ok
    report = dw.merge(net)
    assert report.sites == 4
