"""Which validation is the best: by the loss or by a metric, in its direction, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_train import labelled, write_jsonl

from deltaw.errors import ConfigError
from deltaw.paper.metrics import GLUE_METRICS
from deltaw.train import from_values, run
from deltaw.train.best import DECIDERS, beats, lower_is_better, measured, task_metric
from deltaw.train.config import TASK_NAMES
from deltaw.train.evaluate import label_metrics
from deltaw.train.metrics import read_metrics

# what validations at steps 0 to 6 tell: the best loss, accuracy and Matthews are of steps 2, 4 and 5
LOSSES = (2.0, 1.5, 1.0, 1.2, 1.3, 1.4, 1.6)
ACCURACIES = (0.5, 0.5, 0.6, 0.7, 0.9, 0.9, 0.8)
MATTHEWS = (0.0, 0.1, 0.1, 0.2, 0.3, 0.6, 0.5)


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Any:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled())

    def make(output: str = "out", **more: Any) -> Any:
        return from_values(
            {
                "model": {"path": str(base), "task": "classification"},
                "data": {"path": str(data), "valid_fraction": more.pop("valid_fraction", 0.25)},
                "adapter": {"rank": 2},
                "optim": {"steps": 6, "batch_size": 4, "lr": 0.01},
                "run": {"output": str(tmp_path / output), "eval_every": 1, "save_every": 1, "keep": 9, "plot": False}
                | more,
            }
        )

    return make


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Validations that tell the numbers above; the ones at the end tell the truth."""

    def start() -> None:
        from deltaw.train import driver, loop

        told = [
            {"loss": loss, "accuracy": accuracy, "f1": 0.0, "matthews": matthews}
            for loss, accuracy, matthews in zip(LOSSES, ACCURACIES, MATTHEWS, strict=True)
        ]
        left = iter(told)
        for module in (driver, loop):
            monkeypatch.setattr(module, "evaluate", lambda job, examples, batches: next(left))

    return start


def saved(place: Path) -> dict[str, torch.Tensor]:
    return load_file(str(place / "adapter_model.safetensors"))


@pytest.mark.parametrize(("by", "step"), [("loss", 2), ("accuracy", 4), ("matthews", 5)])
def test_the_metric_decides_what_is_saved(settings: Any, scripted: Any, by: str, step: int) -> None:
    scripted()
    report = run(settings(best_by=by))
    assert (report.best_step, report.best_by) == (step, by)
    kept, then = saved(report.output), saved(report.output / f"checkpoint-{step}")
    assert set(kept) == set(then) and all(torch.equal(kept[name], then[name]) for name in kept)
    said = str(report)
    assert (f"(step {step}, the best by {by})" if by != "loss" else f"(step {step}, the best)") in said


def test_the_metric_decides_when_to_stop(settings: Any, scripted: Any) -> None:
    scripted()
    assert run(settings(patience=2)).steps == 4
    scripted()
    late = run(settings("late", patience=2, best_by="accuracy"))
    assert late.steps == 6 and late.early
    scripted()
    last = run(settings("last", patience=2, best_by="accuracy", best=False))
    assert last.best_step == 4 and torch.equal(
        *(next(iter(saved(place).values())) for place in (last.output, last.output / "checkpoint-6"))
    )


def test_a_resumed_run_remembers_the_best_value(settings: Any, scripted: Any) -> None:
    scripted()
    first = run(settings(best_by="accuracy"))
    again = run(from_values({"run": {"resume": str(first.output / "checkpoint-6")}}))
    assert (again.best_step, again.best_by) == (4, "accuracy") and again.after == first.after


@pytest.mark.parametrize(
    ("more", "said", "hint"),
    [
        ({"best_by": "pearson"}, "no validation of this run measures pearson", "closest"),
        ({"best_by": "accuracy", "valid_fraction": 0.0}, "no validation of this run measures accuracy", "--valid FILE"),
        ({"best_by": "accuracy", "best": False}, "means nothing with --no-best and no --patience", "--patience"),
        ({"best_by": "bleu"}, "`run.best_by` has a wrong value", "--best-by"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused(
    settings: Any, tmp_path: Path, more: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        run(settings(**more))
    assert hint in error.value.hint and not (tmp_path / "out").exists()


def test_what_is_said_to_be_measured_is_measured(settings: Any, base: Path, tmp_path: Path) -> None:
    report = run(settings())
    assert tuple(report.after) == measured("classification", 2)
    three = label_metrics(torch.eye(3), torch.tensor([0, 1, 2]), "classification")
    assert ("loss", *three) == measured("classification", 3)
    values = label_metrics(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), "regression")
    assert ("loss", *values) == measured("regression", 0)
    assert set(DECIDERS) == {name for task in ("causal", "classification", "regression") for name in measured(task, 2)}
    kinds = {record["kind"] for record in read_metrics(report.output / "metrics.jsonl")}
    assert kinds == {"step", "valid"}


def test_directions() -> None:
    assert [name for name in (*DECIDERS, "e2e.ter", "bleu") if lower_is_better(name)] == [
        "loss",
        "perplexity",
        "e2e.ter",
    ]
    assert beats(0.1, None, "loss") and not beats(1.0, 1.0, "loss")


def test_tasks_are_judged_as_in_the_papers_table() -> None:
    """Both MNLI sets together are the valid split, whose accuracy is the paper's overall one."""
    for folder, metric in GLUE_METRICS.items():
        assert task_metric(folder.lower().replace("-", "")) == {"mnli": "accuracy"}.get(metric, metric)
    judged = {name for name in TASK_NAMES if task_metric(name)}
    assert judged == set(TASK_NAMES) - {"e2e", "webnlg", "dart", "wikisql", "samsum"}
