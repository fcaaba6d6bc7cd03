"""Resume: a run that was stopped, aborted or killed goes on to the same bytes as one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltaw.errors import CheckpointError, ResumeError
from deltaw.initialize import INITIALIZATIONS
from deltaw.train import Callback, StepRecord, from_values, run, to_toml
from deltaw.train.state import list_states

Values = dict[str, dict[str, Any]]
sys.path.insert(0, str(Path(__file__).parent))
from resume_driver import drive  # noqa: E402

DRIVER = Path(__file__).with_name("resume_driver.py")
STEPS = 10


@pytest.fixture(scope="session")
def values(base: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """A run in which everything that can be forgotten matters: dropout, accumulation, several epochs, best, decay."""
    place = tmp_path_factory.mktemp("resume")
    return {
        "model": {"path": str(base)},
        "data": {
            "path": str(files / "pairs.jsonl"), "valid_fraction": 0.25, "limit": 24, "cache_dir": str(place / "cache"),
        },
        "adapter": {"rank": 4, "dropout": 0.3},
        "optim": {"steps": STEPS, "batch_size": 4, "accumulate": 2, "lr": 0.02, "warmup": 0.2},
        "run": {
            "output": str(place / "whole"), "save_every": 3, "eval_every": 4, "keep": 2, "sample_tokens": 4,
            "plot": False, "probe": False, "threads": 1,
        },
    }  # fmt: skip


class StopAfter(Callback):
    """Wants to stop at the n-th question, which comes before each batch."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def wants_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


class Abort(Callback):
    """Fails inside a step, as a bug or a lost machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: StepRecord) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


def into(values: Values, output: Path, **more: Any) -> Values:
    """The same run with another output."""
    return {**values, "run": {**values["run"], "output": str(output), **more}}


def compare(whole: Path, other: Path) -> None:
    """Bit for bit: adapter, metrics of every step, and the last state with optimizer and random streams."""
    for name in ("metrics.jsonl", "adapter_model.safetensors", "adapter_config.json"):
        assert (whole / name).read_bytes() == (other / name).read_bytes(), name
    assert [step for step, _ in list_states(whole)] == [step for step, _ in list_states(other)]
    for (_, a), (_, b) in zip(list_states(whole), list_states(other), strict=True):
        tensors, others = load_file(str(a / "state.safetensors")), load_file(str(b / "state.safetensors"))
        assert set(tensors) == set(others)
        assert {"exp_avg", "exp_avg_sq", "step", "param", "rng"} <= {name.split(".")[0] for name in tensors}
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), name
        one, two = (json.loads((path / "state.json").read_text()) for path in (a, b))
        for key in ("memory", "rng", "draws", "metrics_bytes", "identity"):
            assert one[key] == two[key], key
    first, second = (json.loads((path / "report.json").read_text()) for path in (whole, other))
    for key in ("before", "after", "last", "best_step", "sample_before", "sample_after", "steps"):
        assert first[key] == second[key], key
    rubbish = [entry.name for entry in other.iterdir() if entry.name.startswith(".")]
    assert not rubbish


@pytest.fixture(scope="session")
def whole(values: Values) -> Path:
    """The run that nothing disturbs."""
    return run(from_values(values)).output


@pytest.mark.parametrize("questions", [1, 2, 7, 12])
def test_a_stopped_run_goes_on_to_the_same_bytes(values: Values, whole: Path, questions: int, tmp_path: Path) -> None:
    """Some stop between the two batches of a step: the half step leaves no trace."""
    cut = into(values, tmp_path / "cut")
    report = run(from_values(cut), (StopAfter(questions),))
    assert report.interrupted
    again = run(from_values({"run": {"resume": str(report.output)}}))
    assert not again.interrupted
    compare(whole, again.output)


def test_an_aborted_run_goes_on_from_its_newest_state(values: Values, whole: Path, tmp_path: Path) -> None:
    cut = into(values, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run(from_values(cut), (Abort(8),))
    output = Path(cut["run"]["output"])
    assert [step for step, _ in list_states(output)] == [3, 6]
    compare(whole, run(from_values({**cut, "run": {**cut["run"], "resume": "auto"}})).output)


def test_an_older_state_can_be_chosen(values: Values, whole: Path, tmp_path: Path) -> None:
    """What was saved after it is dropped, because it is written anew."""
    cut = into(values, tmp_path / "cut")
    run(from_values(cut))
    output = Path(cut["run"]["output"])
    older = list_states(output)[0][1]
    compare(whole, run(from_values({"run": {"resume": str(older)}})).output)


def test_a_finished_run_resumes_to_itself(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    report = run(from_values({"run": {"resume": str(copy)}}))
    assert report.steps == STEPS
    compare(whole, copy)


def test_many_stops_in_one_run(values: Values, whole: Path, tmp_path: Path) -> None:
    cut = into(values, tmp_path / "cut")
    report = run(from_values(cut), (StopAfter(3),))
    for questions in (0, 5, 1, 2, 4):
        report = run(from_values({"run": {"resume": str(report.output)}}), (StopAfter(questions),))
        assert report.interrupted
    compare(whole, run(from_values({"run": {"resume": "auto", "output": str(report.output)}})).output)


def test_auto_starts_fresh_where_there_is_nothing(values: Values, whole: Path, tmp_path: Path) -> None:
    fresh = into(values, tmp_path / "fresh", resume="auto")
    compare(whole, run(from_values(fresh)).output)


def test_a_resumed_run_keeps_its_settings(values: Values, tmp_path: Path) -> None:
    report = run(from_values(into(values, tmp_path / "cut")), (StopAfter(7),))
    with pytest.raises(ResumeError, match="keeps its settings") as error:
        run(from_values({"run": {"resume": str(report.output)}, "optim": {"lr": 0.5, "clip": 3.0}}))
    assert error.value.got == "--clip = 3.0, --lr = 0.5" and error.value.expected == "1.0, 0.02 as saved"
    with pytest.raises(ResumeError, match="keeps its settings") as error:
        run(from_values({"run": {"resume": str(report.output)}, "optim": {"label_smoothing": 0.1}}))
    assert error.value.got == "--label-smoothing = 0.1" and error.value.expected == "0.0 as saved"
    # Saying the same again, or changing what changes no number, is fine.
    again = {"run": {"resume": str(report.output), "save_every": 1, "keep": 1}, "optim": {"lr": 0.02}}
    assert len(list_states(run(from_values(again)).output)) == 1


def test_other_data_is_another_run(values: Values, tmp_path: Path) -> None:
    report = run(from_values(into(values, tmp_path / "cut")), (StopAfter(7),))
    source = Path(values["data"]["path"])
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text().replace("red", "tan"), encoding="utf-8")
    with pytest.raises(ResumeError, match="something it is made of has changed") as error:
        run(from_values({"run": {"resume": str(report.output)}, "data": {"path": str(other)}}))
    assert "training examples" in error.value.got
    # The same rows elsewhere are the same run.
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(source.read_bytes())
    run(from_values({"run": {"resume": str(report.output)}, "data": {"path": str(moved)}}), (StopAfter(0),))


def test_another_thread_count_is_reported(values: Values, tmp_path: Path) -> None:
    report = run(from_values(into(values, tmp_path / "cut")), (StopAfter(7),))
    again = run(from_values({"run": {"resume": str(report.output), "threads": 2}}))
    assert again.notes == ("not bit-identical: threads is 2, the state was saved with 1",)


def test_full_fine_tuning_resumes_too(values: Values, tmp_path: Path) -> None:
    full = {**values, "adapter": {"method": "full"}, "optim": {**values["optim"], "lr": 1e-3}}
    full = into(full, tmp_path / "first")
    first = run(from_values(full)).output
    report = run(from_values(into(full, tmp_path / "cut")), (StopAfter(9),))
    second = run(from_values({"run": {"resume": str(report.output)}})).output
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


def test_a_classifier_with_dropout_and_a_trained_head_resumes(values: Values, files: Path, tmp_path: Path) -> None:
    labels = {**values, "data": {**values["data"], "path": str(files / "labels.jsonl"), "limit": 40}}
    labels = into(labels, tmp_path / "first")
    first = run(from_values(labels)).output
    report = run(from_values(into(labels, tmp_path / "cut")), (StopAfter(9),))
    compare(first, run(from_values({"run": {"resume": str(report.output)}})).output)


KINDS: dict[str, Values] = {
    "dora": {"adapter": {"variant": "dora"}},
    "lora_fa": {"adapter": {"variant": "lora_fa"}},
    "vera": {"adapter": {"variant": "vera"}},
    "together": {"adapter": {"variant": "dora,lora_fa,lora_bias", "init": "pissa"}},
    "gaussian": {"adapter": {"init": "gaussian"}},
    "orthogonal": {"adapter": {"init": "orthogonal"}},
    "pissa_fast": {"adapter": {"init": "pissa_fast"}},
    "olora": {"adapter": {"init": "olora"}},
    "eva": {"adapter": {"init": "eva", "init_batches": 2}},
    "lora_ga": {"adapter": {"init": "lora_ga", "init_batches": 2}},
    "lora_plus": {"optim": {"lora_plus": 8.0, "lr": 0.004}},
    "label_smoothing": {"optim": {"label_smoothing": 0.2}},
    "rdrop": {"optim": {"rdrop": 1.0}},
    "cutoff": {"optim": {"cutoff": 0.3, "cutoff_kind": "span"}},
    "rdrop_cutoff": {"optim": {"rdrop": 2.0, "rdrop_form": "mean", "cutoff": 0.3, "cutoff_kind": "feature"}},
    "best_by": {"run": {"best_by": "perplexity"}},
    "rows": {"adapter": {"train_rows": {"embed_tokens": [5, 7, 8]}}},
    "new_tokens": {"adapter": {"new_tokens": ["<tool>"]}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_resumes_to_the_same_bytes(values: Values, kind: str, tmp_path: Path) -> None:
    """What an adapter started from is in the state: nothing depends on computing it twice."""
    settings = {section: {**table, **KINDS[kind].get(section, {})} for section, table in values.items()}
    settings["optim"]["steps"] = 9
    first = run(from_values(into(settings, tmp_path / "first"))).output
    cut = run(from_values(into(settings, tmp_path / "cut")), (StopAfter(7),)).output
    with pytest.MonkeyPatch.context() as patch:
        for name, way in INITIALIZATIONS.items():
            if way.needs:
                spoiled = dataclasses.replace(way, draw=lambda request, draw=way.draw: shifted(draw(request)))
                patch.setitem(INITIALIZATIONS, name, spoiled)
        again = run(from_values({"run": {"resume": str(cut)}}))
    assert not again.interrupted
    compare(first, again.output)


def shifted(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A start that another machine might have computed."""
    return pair[0] * 1.001, pair[1]


def packed(values: Values, output: Path, **run: Any) -> Values:
    """The same run with several examples in a row."""
    optim = {key: value for key, value in values["optim"].items() if key != "batch_size"}
    return {**into(values, output, **run), "optim": {**optim, "packing": True, "batch_tokens": 60}}


@pytest.fixture(scope="session")
def packed_whole(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed run that nothing disturbs; it is another run than the padded one, over several epochs."""
    heard = Listener()
    output = run(from_values(packed(values, tmp_path_factory.mktemp("packed") / "whole")), (heard,)).output
    assert "in 6 rows of 60 tokens" in heard.sections["plan"] and "3 per epoch" in heard.sections["plan"]
    return output


@pytest.mark.parametrize("questions", [1, 4, 7, 12])
def test_a_packed_run_goes_on_to_the_same_bytes(
    values: Values, packed_whole: Path, questions: int, tmp_path: Path
) -> None:
    cut = run(from_values(packed(values, tmp_path / "cut")), (StopAfter(questions),))
    assert cut.interrupted
    again = run(from_values({"run": {"resume": str(cut.output)}}))
    assert again.choices["optim.packing"] is True
    compare(packed_whole, again.output)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "count"), [("step", 5), ("batch", 1), ("replace", 4)])
def test_kill_9_of_a_packed_run(values: Values, packed_whole: Path, place: str, count: int, tmp_path: Path) -> None:
    cut = packed(values, tmp_path / "cut", resume="auto")
    assert forked(cut, place, count) == -signal.SIGKILL
    assert forked(cut) == 0
    compare(packed_whole, Path(cut["run"]["output"]))


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"adapter": {"variant": "dora"}}, "--variant = ['dora']"),
        ({"adapter": {"init": "pissa"}}, "--init = 'pissa'"),
        ({"adapter": {"train_rows": {"embed_tokens": [3]}}}, "--train-rows = {'embed_tokens': [3]}"),
        ({"adapter": {"new_tokens": ["<a>"]}}, "--new-tokens = ['<a>']"),
        ({"optim": {"lora_plus": 4.0}}, "--lora-plus = 4.0"),
        ({"optim": {"packing": True}}, "--packing = True"),
        ({"optim": {"rdrop": 1.0}}, "--rdrop = 1.0"),
        ({"optim": {"cutoff": 0.1}}, "--cutoff = 0.1"),
        ({"run": {"best_by": "perplexity"}}, "--best-by = 'perplexity'"),
    ],
)
def test_another_kind_is_another_run(values: Values, whole: Path, changes: Values, got: str) -> None:
    with pytest.raises(ResumeError, match="keeps its settings") as error:
        run(from_values({"run": {"resume": str(whole)}}, changes))
    assert got in error.value.got


class Listener(Callback):
    """Keeps what is said before step 1."""

    def __init__(self) -> None:
        self.sections: dict[str, str] = {}

    def on_section(self, title: str, body: object) -> None:
        self.sections[title] = str(body)


def test_a_finished_run_tells_only_its_end(whole: Path, tmp_path: Path) -> None:
    heard = Listener()
    report = run(from_values({"run": {"resume": str(shutil.copytree(whole, tmp_path / "copy"))}}), (heard,))
    assert list(heard.sections) == ["resume"] and "finished already after step 10 of 10" in heard.sections["resume"]
    assert "tokens/s" not in str(report) and "finished after 10 of 10 steps" in str(report)


def test_what_a_run_chose_is_still_its_choice_when_it_is_resumed(values: Values, tmp_path: Path) -> None:
    first, second = Listener(), Listener()
    cut = run(from_values(into(values, tmp_path / "cut")), (StopAfter(7), first)).output
    run(from_values({"run": {"resume": str(cut)}}), (second,))
    assert first.sections["settings"] == second.sections["settings"]
    assert "adapter.rank = 4  (given)" in second.sections["settings"]
    assert "adapter.init = kaiming  (A uniform" in second.sections["settings"]


PLACES = ("fsync", "rename", "replace", "step", "batch", "mkdir", "rmtree", "tensors")


def spawn(values: Values, *words: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own, driven by a file of settings."""
    file = Path(values["run"]["output"]).with_suffix(".toml")
    file.write_text(to_toml(from_values(values)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(file), *words], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def forked(values: Values, place: str = "", count: int = 0) -> int:
    """The same in a fork of this process, which has imported everything already; its exit code."""
    file = Path(values["run"]["output"]).with_suffix(".toml")
    file.write_text(to_toml(from_values(values)), encoding="utf-8")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = drive(str(file), place, count)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait; the exit code."""
    _, errors = process.communicate(timeout=900)
    assert process.returncode in (0, -signal.SIGKILL, 5), errors.decode()
    return process.returncode


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_ten_random_moments(values: Values, tmp_path: Path) -> None:
    """The driver kills itself at a random call of those that a run makes: inside a save, a step, a file write."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    long = {**values, "optim": {**values["optim"], "steps": 80}}
    cut = into(long, tmp_path / "cut", resume="auto")
    output, places = Path(cut["run"]["output"]), list(PLACES)
    chance.shuffle(places)
    for place in [*places, *chance.choices([place for place in PLACES if place != "rmtree"], k=10 - len(places))]:
        assert forked(cut, place, chance.randrange(1, 4)) == -signal.SIGKILL, place
        for _, path in list_states(output):
            assert (path / "state.json").is_file() and (path / "state.safetensors").is_file()
    assert forked(cut) == 0
    compare(run(from_values(into(long, tmp_path / "whole"))).output, output)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_by_the_clock(values: Values, whole: Path, tmp_path: Path) -> None:
    cut = into(values, tmp_path / "cut", resume="auto")
    process = spawn(cut, "slow", "0")
    output = Path(cut["run"]["output"])
    while process.poll() is None and not list_states(output):
        time.sleep(0.02)
    time.sleep(random.random() * 0.2)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert finish(spawn(cut)) == 0
    compare(whole, output)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_disk_leaves_the_state_before(values: Values, whole: Path, tmp_path: Path) -> None:
    """A limit on file sizes that the second state exceeds: the error names the first, and resuming from it is exact."""
    cut = into(values, tmp_path / "cut")
    process = spawn(cut, "disk", "1")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 5, errors.decode()
    text, output = errors.decode(), Path(cut["run"]["output"])
    assert "the training state cannot be saved" in text and f"--resume {output / 'checkpoint-3'}" in text
    assert [step for step, _ in list_states(output)] == [3]
    assert finish(spawn({**cut, "run": {**cut["run"], "resume": str(output)}})) == 0
    compare(whole, output)


def test_a_failing_save_stops_the_run_with_a_clear_error(values: Values, whole: Path, tmp_path: Path) -> None:
    import deltaw.train.state as state_module

    cut, plain, count = into(values, tmp_path / "cut"), state_module.save_file, [0]

    def save(*args: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "save_file", save)
        with pytest.raises(CheckpointError, match="No space left"):
            run(from_values(cut))
    compare(whole, run(from_values({"run": {"resume": cut["run"]["output"]}})).output)
