"""Packed runs as a whole: the same numbers as padded ones, what is said of them, and when rows are not packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_train import make_tokenizer

from deltaw.errors import ConfigError
from deltaw.train import Callback, from_values, run
from deltaw.train.defaults import Choices, choose_batches
from deltaw.train.isolation import Isolation
from deltaw.train.metrics import read_metrics
from deltaw.train.packable import Packing


class Listener(Callback):
    """Keeps what is said before step 1."""

    def __init__(self) -> None:
        self.sections: dict[str, str] = {}

    def on_section(self, title: str, body: object) -> None:
        self.sections[title] = str(body)


def settings(base: Path, files: Path, output: Path, **optim: Any) -> dict[str, dict[str, Any]]:
    return {
        "model": {"path": str(base)},
        "data": {"path": str(files / "pairs.jsonl"), "valid_fraction": 0.25},
        "adapter": {"rank": 4},
        "optim": {"steps": 4, "lr": 0.01, **optim},
        "run": {"output": str(output), "sample_tokens": 0, "plot": False, "save_every": 0, "eval_every": 2},
    }  # fmt: skip


def test_whole_data_in_one_row_trains_as_whole_data_in_one_batch(base: Path, files: Path, tmp_path: Path) -> None:
    """Every step sees all examples, so that the loss, the gradient and the validation of each must agree."""
    padded = run(from_values(settings(base, files, tmp_path / "padded", batch_size=36)))
    packed = run(from_values(settings(base, files, tmp_path / "packed", packing=True, batch_tokens=36 * 17)))
    records = [read_metrics(report.output / "metrics.jsonl") for report in (padded, packed)]
    assert len(records[0]) == len(records[1]) >= 6
    for one, other in zip(*records, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


def test_the_plan_says_how_full_rows_are(base: Path, files: Path, tmp_path: Path) -> None:
    heard = Listener()
    report = run(from_values(settings(base, files, tmp_path / "a", packing=True, batch_tokens=40)), (heard,))
    assert (
        "packed: 36 examples in 18 rows of 40 tokens, 85.0% full; examples are kept apart by masks"
        in (heard.sections["plan"])
    )
    assert "longest batch (1 x 34 tokens)" in heard.sections["plan"]
    assert "longest batch tried: 1 x 34 tokens" in heard.sections["plan"]
    assert "optim.packing = True  (given; examples are kept apart by masks)" in heard.sections["settings"]
    assert "optim.batch_tokens = 40  (given)" in heard.sections["settings"]
    assert report.choices["optim.packing"] is True and "not packed" not in str(report)


def test_examples_over_the_budget_are_said_to_be_alone(base: Path, files: Path, tmp_path: Path) -> None:
    heard = Listener()
    values = settings(base, files, tmp_path / "a", packing=True, batch_tokens=5)
    run(from_values(values), (heard,), dry_run=True)
    assert "36 examples longer than a row, alone and uncut" in heard.sections["plan"]


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that carries a state along the row."""
    from transformers import MambaConfig, MambaForCausalLM

    path, tokenizer = tmp_path_factory.mktemp("mamba"), make_tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1, bos_token_id=0, eos_token_id=1
    )
    MambaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_model_that_cannot_keep_examples_apart_is_trained_on_padded_batches(
    recurrent: Path, files: Path, tmp_path: Path
) -> None:
    heard = Listener()
    values = settings(recurrent, files, tmp_path / "asked", packing=True, batch_tokens=40)
    values["adapter"]["targets"] = ["in_proj"]
    report = run(from_values(values), (heard,))
    reason = "with positions that restart, examples see each other"
    assert f"optim.packing = False  (asked for and not done: {reason}" in heard.sections["settings"]
    assert f"rows are not packed, although --packing asks for it: {reason}" in heard.sections["model"]
    assert "packed:" not in heard.sections["plan"] and "rows are not packed" in str(report)
    plain = settings(recurrent, files, tmp_path / "plain", batch_tokens=40)
    plain["adapter"]["targets"] = ["in_proj"]
    same = run(from_values(plain))
    assert (report.output / "metrics.jsonl").read_bytes() == (same.output / "metrics.jsonl").read_bytes()
    assert not same.notes


@pytest.mark.parametrize("data", ["labels.jsonl", "scores.jsonl"])
def test_heads_that_read_one_position_of_a_row_are_refused(base: Path, files: Path, data: str, tmp_path: Path) -> None:
    values = settings(base, files, tmp_path / "out", packing=True)
    values["data"]["path"] = str(files / data)
    with pytest.raises(ConfigError, match="--packing needs a prediction for each token") as error:
        run(from_values(values))
    assert "drop --packing" in str(error.value)
    values["optim"]["packing"] = False
    assert "optim.packing" not in run(from_values(values)).choices


def test_an_initialization_looks_at_the_same_gradient(base: Path, files: Path, tmp_path: Path) -> None:
    """LoRA-GA starts from the first batches; all examples in one row or in one batch are the same start."""
    losses = []
    for name, optim in (("packed", {"packing": True, "batch_tokens": 36 * 17}), ("padded", {"batch_size": 36})):
        values = settings(base, files, tmp_path / name, **optim)
        values["adapter"] |= {"init": "lora_ga", "init_batches": 1}
        losses.append([record["loss"] for record in read_metrics(run(from_values(values)).output / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def choose(tried: Packing | None, lengths: list[int], **optim: Any) -> dict[str, str]:
    config = from_values({"model": {"path": "m"}, "data": {"path": "d"}, "optim": optim})
    choices = Choices()
    plan, _ = choose_batches(choices, config, lengths, tried)
    assert plan.packing == bool(tried and tried.isolation)
    return {choice.name: f"{choice.value} ({choice.reason})" for choice in choices.made}


def test_what_is_chosen() -> None:
    off = choose(Packing(), [1, 3] * 101)
    assert off["optim.packing"].startswith("False (batches of similar length are padded by 0.5%;")
    assert choose(Packing(asked=False), [10] * 100, packing=False)["optim.packing"] == "False (given)"
    assert "optim.packing" not in choose(None, [10] * 100)
    on = Packing(asked=True, isolation=Isolation(), reason="it works")
    made = choose(on, [10, 20] * 500, packing=True)
    assert made["optim.packing"] == "True (given; it works)" and "optim.batch_size" not in made
    assert made["optim.batch_tokens"] == "240 (a row of about 16 examples of 15 tokens)"
    assert choose(on, [10, 20] * 500, packing=True, batch_tokens=33)["optim.batch_tokens"] == "33 (given)"
    assert choose(on, [1] * 39 + [500], packing=True)["optim.batch_tokens"] == "500 (the longest example)"
