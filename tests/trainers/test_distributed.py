"""Two processes: gradients are those of the joint batch, and check finds what is not synchronized."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import builders
import deltaw as dw
import loops
from deltaw.errors import StateError

WORLD = 2


def kinds(report: dw.CheckReport) -> set[str]:
    return {problem.kind for problem in report.problems}


def equal_to_one_process(rank: int) -> None:
    net = loops.model()
    wrapped = DistributedDataParallel(net)
    optimizer = loops.optimizer(net)
    for batch in loops.batches(loops.rows(8), size=4):
        mine = {key: value[rank::WORLD] for key, value in batch.items()}
        wrapped(**mine).loss.backward()
        optimizer.step()
        report = dw.check(wrapped, optimizer=optimizer, across_ranks=True)
        assert report.ok and report.judged, report
        optimizer.zero_grad()
    alone = loops.model()
    loops.plain_loop(alone, loops.batches(loops.rows(8), size=4))
    loops.assert_same(loops.adapter(net), loops.adapter(alone), rtol=0, atol=1e-5)
    with dw.disabled(wrapped):
        assert torch.equal(
            builders.logits(net.eval(), builders.ids()), builders.logits(builders.llama(), builders.ids())
        )
    assert dw.merge(wrapped).sites == 4


def attached_too_late(rank: int) -> None:
    inner = builders.mlp()
    wrapped = DistributedDataParallel(inner)
    with pytest.raises(StateError, match="attached before the model is wrapped"):
        builders.attach(wrapped, rank=2, targets=["fc1", "fc2"])
    builders.attach(inner, rank=2, targets=["fc1", "fc2"])  # past the wrapper's back
    found = dw.check(wrapped).problems
    assert {p.kind for p in found} == {"unsynchronized"} and len(found) == 4
    assert all("does not hold it" in p.what and "wrap" in p.hint for p in found)


def frozen_when_wrapped(rank: int) -> None:
    net = builders.mlp()
    builders.attach(net, "a", rank=2, targets=["fc1"])
    builders.attach(net, "b", rank=2, targets=["fc2"])
    builders.randomize(net)
    dw.freeze(net, "a")
    wrapped = DistributedDataParallel(net)
    assert dw.check(wrapped).ok
    dw.unfreeze(net, "a")
    (problem,) = dw.check(wrapped).problems
    assert problem.kind == "unsynchronized" and "2 gradients of 4" in problem.what


def drifted(rank: int) -> None:
    net = builders.mlp(dropout=0.0)
    builders.attach(net, rank=2, targets=["fc1", "fc2"], seed=1)
    assert dw.check(net, across_ranks=True).ok
    net(torch.randn(3, 6, generator=torch.Generator().manual_seed(rank))).sum().backward()
    found = dw.check(net, across_ranks=True).problems
    assert found and all("its gradient differs" in problem.what for problem in found)
    net.zero_grad()
    if rank == 1:
        builders.randomize(net)
    found = dw.check(net, across_ranks=True).problems
    assert len(found) == 4 and all("it differs between processes" in problem.what for problem in found)
    assert dw.check(net).ok


def sharded(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    right = builders.mlp(dropout=0.0)
    builders.attach(right, rank=2, targets=["fc1", "fc2"])
    fully_shard(right, mesh=mesh)
    right(torch.randn(3, 6)).sum().backward()
    assert dw.check(right, across_ranks=True).ok
    wrong = builders.mlp()
    builders.attach(wrong, rank=2, targets=["fc1", "fc2"])
    for _, entry in list(wrong.named_modules()):
        if type(entry) is nn.LayerNorm:
            fully_shard(entry, mesh=mesh)  # the norm alone: the adapters are in no sharded part
    assert kinds(dw.check(wrong)) == {"unsynchronized"}


def sharded_saves(rank: int) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, batch = init_device_mesh("cpu", (WORLD,)), loops.batches(loops.rows())[0]
    net, alone = loops.model(dropout=0.2), loops.model(dropout=0.2)
    for layer in net.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    for model in (net, alone):
        model(**batch).loss.backward()
        with torch.no_grad():
            for _, parameter in dw.trainable(model):
                parameter.add_(parameter.grad, alpha=-1.0)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(net, options=options)
    with pytest.raises(StateError, match="a sharded model"):
        net.save_pretrained("nowhere")
    if rank == 0:
        factors = {key: value for key, value in state.items() if ".lora_" in key}
        loops.assert_same(factors, loops.adapter(alone), rtol=0, atol=1e-5)
        assert {int(value) for key, value in state.items() if key.endswith(".draws")} == {1}
        with tempfile.TemporaryDirectory() as place:
            net.save_pretrained(place, state_dict=state)
            other = builders.llama()
            dw.load(other, place)
        loops.assert_same(loops.adapter(other), loops.adapter(alone), rtol=0, atol=1e-5)
    again = loops.model(dropout=0.2)
    set_model_state_dict(again, get_model_state_dict(alone))
    assert dw.draws(again) == dw.draws(alone)


def spawned(net: Any, batch: dict[str, torch.Tensor], expected: tuple[float, list[float]]) -> None:
    loss = net(**batch).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected[0], rel=1e-6)
    assert [p.grad.abs().sum().item() for _, p in dw.trainable(net)] == pytest.approx(expected[1], rel=1e-5)
    assert dw.check(net).ok


JOBS = (equal_to_one_process, attached_too_late, frozen_when_wrapped, drifted, sharded, sharded_saves)


def work(rank: int, place: str, given: tuple[Any, ...]) -> None:
    """One process: every job, each in a group of its own; what goes wrong is written down under the job's name."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for job in (*JOBS, spawned):
        try:
            if job is spawned:
                spawned(*given)
                continue
            store = Path(place) / f"{job.__name__}.store"
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
            job(rank)
        except BaseException:
            (Path(place) / f"{job.__name__}.{rank}.txt").write_text(traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All jobs in one pair of processes, since starting one costs more than its work."""
    place = tmp_path_factory.mktemp("ranks")
    net, batch = loops.model(), loops.batches(loops.rows())[0]
    loss = net(**batch).loss
    loss.backward()
    expected = float(loss.detach()), [p.grad.abs().sum().item() for _, p in dw.trainable(net)]
    net.zero_grad()
    mp.spawn(work, args=(str(place), (net, batch, expected)), nprocs=WORLD)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("job", [*JOBS, spawned], ids=lambda job: job.__name__)
def test_two_processes(job: Callable[..., None], outcome: Path) -> None:
    wrong = sorted(outcome.glob(f"{job.__name__}.*.txt"))
    assert not wrong, wrong[0].read_text()
