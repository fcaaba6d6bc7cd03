"""States on disk: whole or absent, checked when read, the last K kept."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from deltaw.disk import TEMPORARY
from deltaw.errors import CheckpointError, ResumeError
from deltaw.train.files import TRASH, remove_leftovers, replace_directory, write_text
from deltaw.train.metrics import MetricsLog, read_metrics
from deltaw.train.rng import capture, restore, seed_everything
from deltaw.train.state import TENSORS, State, drop_later, find_state, list_states, read_state, write_state


def state(value: float = 1.0, size: int = 4) -> State:
    return State(tensors={"param.a": torch.full((size,), value)}, values={"memory": {"step": 1}})


def nothing(place: Path) -> None:
    """No further files."""


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write_state(tmp_path, 3, state(), nothing, keep=2)
    again = read_state(path)
    assert torch.equal(again.group("param")["a"], torch.ones(4))
    assert again.values["step"] == 3 and again.values["memory"] == {"step": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint-3"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        write_state(tmp_path, step, state(), nothing, keep=2)
    assert [step for step, _ in list_states(tmp_path)] == [10, 12]
    assert drop_later(tmp_path, 10) == ["checkpoint-12"]


@pytest.mark.parametrize("change", ["cut", "flip", "absent", "json", "version"])
def test_a_broken_state_is_refused(tmp_path: Path, change: str) -> None:
    path = write_state(tmp_path, 3, state(), nothing, keep=2)
    file = path / TENSORS
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif change == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif change == "absent":
        file.unlink()
    elif change == "json":
        (path / "state.json").write_text("{", encoding="utf-8")
    else:
        (path / "state.json").write_text('{"version": 99}', encoding="utf-8")
    with pytest.raises(ResumeError, match="the training state is broken"):
        read_state(path)


def test_finding_a_state(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert find_state("auto", output) is None
    output.mkdir()
    assert find_state("auto", output) is None
    with pytest.raises(ResumeError, match="nothing to resume"):
        find_state(str(output), output)
    path = write_state(output, 5, state(), nothing, keep=2)
    assert find_state("auto", output) == find_state(str(output), tmp_path) == find_state(str(path), tmp_path) == path
    # A half-written one does not count.
    (output / "checkpoint-9").mkdir()
    assert find_state("auto", output) == path


def test_a_failing_save_leaves_the_old_state_and_no_rubbish(tmp_path: Path) -> None:
    write_state(tmp_path, 1, state(), nothing, keep=1)

    def full(place: Path) -> None:
        (place / "part").write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left") as error:
        write_state(tmp_path, 2, state(), full, keep=1)
    assert "checkpoint-1" in error.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]
    assert read_state(tmp_path / "checkpoint-1").values["step"] == 1


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    """The system itself refuses to write more, as on a full disk; in a child, because the limit cannot be raised."""
    write_state(tmp_path, 1, state(), nothing, keep=2)
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            write_state(tmp_path, 2, state(size=100_000), nothing, keep=2)
        except CheckpointError as error:
            os._exit(0 if "checkpoint-1" in str(error) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]
    read_state(tmp_path / "checkpoint-1")


def test_leftovers_are_cleared(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}checkpoint-4-x").mkdir()
    (tmp_path / f"{TRASH}checkpoint-2-x").mkdir()
    (tmp_path / f"{TEMPORARY}run.toml-x").write_text("", encoding="utf-8")
    (tmp_path / "mine").write_text("", encoding="utf-8")
    assert len(remove_leftovers(tmp_path)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_replacing_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "d"
    replace_directory(target, lambda place: write_text(place / "a", "1"))
    replace_directory(target, lambda place: write_text(place / "b", "2"))
    assert [entry.name for entry in target.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_metrics_are_cut_at_the_states_position(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.write({"step": 1, "loss": 0.1})
    kept = log.sync()
    log.write({"step": 2, "loss": 0.2})
    log.close()
    log = MetricsLog(file, kept)
    log.write({"step": 2, "loss": 0.3})
    log.close()
    assert read_metrics(file) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.3}]
    with pytest.raises(ResumeError, match="shorter"):
        MetricsLog(file, 10_000)


def test_random_streams_come_back() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    seed_everything(11)
    first = draw()
    seed_everything(11)
    assert draw() == first
    here = capture()
    ahead = draw()
    restore(here)
    assert draw() == ahead
