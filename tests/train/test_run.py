"""Whole runs on a tiny model: the numbers, the files, the promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deltaw as dw
from deltaw.errors import ConfigError, DataError, ModelError, ResumeError, StateError
from deltaw.train import Callback, StepRecord, TrainConfig, ValidRecord, from_values, run
from deltaw.train.metrics import read_metrics

Make = Callable[..., TrainConfig]


@pytest.fixture
def make(base: Path, files: Path, tmp_path: Path) -> Make:
    """Settings of a short run; keyword arguments are sections with more values."""

    def settings(data: str = "pairs.jsonl", data_more: Any = None, **sections: dict[str, Any]) -> TrainConfig:
        values: dict[str, dict[str, Any]] = {
            "model": {"path": str(base)},
            "data": {"path": str(files / data), "valid_fraction": 0.25, **(data_more or {})},
            "adapter": {},
            "optim": {"steps": 6, "batch_size": 4, "lr": 0.01},
            "run": {
                "output": str(tmp_path / "out"),
                "sample_tokens": 4,
                "plot": False,
                "save_every": 2,
                "eval_every": 3,
            },
        }
        for section, table in sections.items():
            values[section] |= table
        return from_values({name: {k: v for k, v in table.items() if v is not None} for name, table in values.items()})

    return settings


class Recorder(Callback):
    """Keeps what it hears; wants to stop after ``stop`` asks."""

    def __init__(self, stop: int | None = None) -> None:
        self.sections: dict[str, str] = {}
        self.steps: list[StepRecord] = []
        self.valid: list[ValidRecord] = []
        self.saved: list[str] = []
        self.asked, self.stop = 0, stop
        self.ended: Any = None

    def on_section(self, title: str, body: object) -> None:
        self.sections[title] = str(body)

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_valid(self, record: ValidRecord) -> None:
        self.valid.append(record)

    def on_save(self, path: Path) -> None:
        self.saved.append(path.name)

    def on_end(self, report: Any) -> None:
        self.ended = report

    def wants_stop(self) -> bool:
        self.asked += 1
        return self.stop is not None and self.asked > self.stop


def out(config: TrainConfig) -> Path:
    return Path(config.run.output)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path / "adapter_model.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_from_rows_to_adapter(make: Make) -> None:
    config, heard = make(run={"plot": True}), Recorder()
    report = run(config, (heard,))
    assert set(heard.sections) >= {"data", "model", "settings", "plan"}
    assert "[[" in heard.sections["example (trained tokens between [[ and ]])"]
    assert [record.step for record in heard.steps] == [1, 2, 3, 4, 5, 6]
    assert [record.step for record in heard.valid] == [0, 3, 6]
    assert heard.saved == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert heard.ended is report
    assert report.after["loss"] < report.before["loss"]
    assert report.applied == "applied to 14/14 modules"
    present = {entry.name for entry in out(config).iterdir()}
    assert present == {*report.files, "run.toml", "checkpoint-4", "checkpoint-6"}
    assert {"adapter_model.safetensors", "metrics.jsonl", "loss.png", "README.md", "report.json"} <= present
    assert json.loads((out(config) / "report.json").read_text())["after"] == report.after


def test_label_smoothing_changes_the_training_and_not_what_validation_measures(make: Make, tmp_path: Path) -> None:
    plain, heard = Recorder(), Recorder()
    first = run(make(), (plain,))
    second = run(make(optim={"label_smoothing": 0.3}, run={"output": str(tmp_path / "smooth")}), (heard,))
    assert "label smoothing 0.3 in training; validation tells the plain loss" in heard.sections["plan"]
    assert "label smoothing" not in plain.sections["plan"] and "label_smoothing = 0.3" in heard.sections["settings"]
    assert second.before == first.before and second.after != first.after
    assert heard.steps[0].loss != pytest.approx(plain.steps[0].loss, rel=1e-3)


def test_the_saved_adapter_is_the_trained_one(make: Make, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = make()
    report = run(config)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    loaded = dw.load(model, out(config))
    assert loaded.applied == loaded.total == 14
    # The loss that the run reports is that of the files it wrote.
    again = run(make(adapter={"start": str(out(config))}, run={"output": str(out(config)) + "2"}))
    assert again.before["loss"] == pytest.approx(report.after["loss"], rel=1e-6)


def test_equal_settings_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    first, second = make(), make(run={"output": str(tmp_path / "again")})
    run(first)
    run(second)
    for name in ("metrics.jsonl", "adapter_model.safetensors", "adapter_config.json"):
        assert (out(first) / name).read_bytes() == (out(second) / name).read_bytes()


def test_the_probe_has_no_effect_on_results(make: Make, tmp_path: Path) -> None:
    first = make(adapter={"dropout": 0.2})
    second = make(adapter={"dropout": 0.2}, run={"output": str(tmp_path / "b"), "probe": False, "sample_tokens": 0})
    run(first)
    run(second)
    assert (out(first) / "metrics.jsonl").read_bytes() == (out(second) / "metrics.jsonl").read_bytes()
    assert same(weights(out(first)), weights(out(second)))


def test_a_dry_run_writes_nothing(make: Make) -> None:
    config, heard = make(), Recorder()
    report = run(config, (heard,), dry_run=True)
    assert not out(config).exists()
    assert report.steps == 0 and report.total == 6
    assert "forward and backward" in heard.sections["plan"]


def test_rank_0_is_a_control_that_trains_nothing(make: Make) -> None:
    report = run(make(adapter={"rank": 0}))
    assert report.steps == 0 and report.before == report.after
    assert "nothing was trained" in report.applied


def test_full_fine_tuning_saves_a_model(make: Make, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = make(adapter={"method": "full"})
    report = run(config)
    assert report.after["loss"] < report.before["loss"]
    trained, plain = AutoModelForCausalLM.from_pretrained(out(config)), AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(trained.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_shuffled_pairs_keep_all_texts_but_not_the_pairing(make: Make) -> None:
    from deltaw.train.material import open_rows, tokenize
    from deltaw.train.model import load_tokenizer

    plain, control = make(), make(data_more={"shuffle_pairs": True})
    tokenizer = load_tokenizer(plain.model.path)[0]
    true = tokenize(plain, open_rows(plain), tokenizer, 64)
    false = tokenize(control, open_rows(control), tokenizer, 64)

    def parts(examples: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        cut = [next(i for i, w in enumerate(e.weights) if w) for e in (examples[k] for k in range(len(examples)))]
        return [(tuple(examples[k].ids[:c]), tuple(examples[k].ids[c:])) for k, c in enumerate(cut)]

    a, b = parts(true.train), parts(false.train)
    assert [prompt for prompt, _ in a] == [prompt for prompt, _ in b]
    assert sorted(answer for _, answer in a) == sorted(answer for _, answer in b)
    assert sum(x != y for x, y in zip(a, b, strict=True)) > len(a) / 2
    assert list(false.train.lengths) == [len(false.train[k].ids) for k in range(len(false.train))]
    # Validation keeps the true pairs: it is what both are judged on.
    assert true.valid is not None and false.valid is not None
    assert parts(true.valid) == parts(false.valid)
    heard = Recorder()
    run(control, (heard,), dry_run=True)
    assert "permuted among the training prompts" in heard.sections["model"]


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the validations during the steps say what a test needs them to say."""
    import deltaw.train.loop as loop

    left = iter(losses)
    monkeypatch.setattr(loop, "evaluate", lambda job, examples, batches: {"loss": next(left)})


def test_the_best_validation_is_saved(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"eval_every": 1, "save_every": 1, "keep": 9}
    scripted(monkeypatch, [2.0, 1.0, 1.5, 3.0, 1.2, 1.1])
    report = run(make(run=every))
    assert report.best_step == 2 and report.steps == 6
    assert same(weights(report.output), weights(report.output / "checkpoint-2"))
    assert report.last and report.last != report.after
    scripted(monkeypatch, [2.0, 1.0, 1.5, 3.0, 1.2, 1.1])
    last = run(make(run={**every, "best": False, "output": str(tmp_path / "last")}))
    assert same(weights(last.output), weights(report.output / "checkpoint-6"))


def test_early_stopping(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [2.0, 1.0, 1.5, 3.0, 1.2, 1.1])
    report = run(make(run={"eval_every": 1, "patience": 3}))
    assert report.early and report.steps == 5 and report.best_step == 2


def test_accumulation_is_one_larger_batch(make: Make, tmp_path: Path) -> None:
    """Two batches of 2 per step against one of 4: same rows, same tokens, same losses."""
    few = {"limit": 4, "valid_fraction": 0.0}
    one, two = Recorder(), Recorder()
    run(make(data_more=few, optim={"steps": 4}), (one,))
    cut = make(data_more=few, optim={"batch_size": 2, "accumulate": 2, "steps": 4}, run={"output": str(tmp_path / "b")})
    run(cut, (two,))
    assert [r.trained for r in one.steps] == [r.trained for r in two.steps]
    for a, b in zip(one.steps, two.steps, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_labels_are_learned_with_a_fresh_head(make: Make, task: str) -> None:
    heard = Recorder()
    report = run(
        make("labels.jsonl" if task == "classification" else "scores.jsonl", optim={"steps": 50}, model={"task": task}),
        (heard,),
    )
    assert "newly initialized and trained in full: score" in heard.sections["model"]
    assert report.after["loss"] < report.before["loss"]
    key = "accuracy" if task == "classification" else "pearson"
    assert report.after[key] > 0.6
    assert any("score" in key for key in weights(report.output))


def test_gradient_checkpointing_changes_no_number(make: Make, tmp_path: Path) -> None:
    first = make()
    second = make(model={"gradient_checkpointing": True}, run={"output": str(tmp_path / "b")})
    assert run(first).after["loss"] == pytest.approx(run(second).after["loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltaw.train.loss import BatchLoss, Losses

    plain, count = Losses.__call__, [0]

    def diverging(self: Losses, batch: Any) -> BatchLoss:
        loss = plain(self, batch)
        count[0] += self.model.training
        return BatchLoss(loss.total * float("inf")) if count[0] == 4 else loss

    monkeypatch.setattr(Losses, "__call__", diverging)
    config = make(run={"save_every": 1, "keep": 9, "probe": False})
    with pytest.raises(StateError, match="the loss is not finite") as error:
        run(config)
    assert error.value.where.startswith("step 4, training examples ")
    states = sorted(out(config).glob("checkpoint-*"))
    assert [path.name for path in states] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert all(torch.isfinite(tensor).all() for path in states for tensor in weights(path).values())


def test_an_output_with_something_in_it_is_refused(make: Make) -> None:
    config = make()
    out(config).mkdir()
    (out(config) / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        run(config)
    with pytest.raises(ConfigError, match="no run wrote"):
        run(make(run={"overwrite": True}))
    assert (out(config) / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_overwriting_replaces_the_earlier_run(make: Make) -> None:
    run(make())
    report = run(make(run={"overwrite": True, "save_every": 0}))
    assert not list(report.output.glob("checkpoint-*"))


def test_a_bad_setting_leaves_the_earlier_run_alone(make: Make) -> None:
    config = make()
    run(config)
    before = {path.name: path.read_bytes() for path in out(config).iterdir() if path.is_file()}
    with pytest.raises(ModelError):
        run(make(run={"overwrite": True}, adapter={"targets": ["no_such_layer"]}))
    assert {path.name: path.read_bytes() for path in out(config).iterdir() if path.is_file()} == before


def test_task_and_rows_must_fit(make: Make) -> None:
    with pytest.raises(DataError):
        run(make("labels.jsonl", model={"task": "causal"}))


def test_metrics_hold_nothing_that_differs_between_equal_runs(make: Make) -> None:
    config = make()
    run(config)
    records = read_metrics(out(config) / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    assert set(steps[0]) == {"kind", "step", "epoch", "loss", "lr", "grad_norm", "trained"}
    assert [record["step"] for record in records if record["kind"] == "valid"] == [0, 3, 6]


def test_tensorboard_events(make: Make) -> None:
    config = make(run={"tensorboard": True})
    run(config)
    assert list((out(config) / "tensorboard").glob("events.*"))


def test_an_interrupted_run_says_how_to_go_on(make: Make) -> None:
    heard = Recorder(stop=3)
    report = run(make(optim={"accumulate": 2}), (heard,))
    assert report.interrupted and report.steps == 1
    assert report.state is not None and report.state.name == "checkpoint-1"
    assert report.next_commands == (f"deltaw train --resume {report.state}",)


def test_resume_needs_a_state(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="nothing to resume"):
        run(make(run={"resume": str(tmp_path / "absent")}))
