"""What a terminal shows while a run is on."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from deltaw.train import RunReport, StepRecord, ValidRecord
from deltaw.train.console import ConsoleReporter
from deltaw.train.sample import Sample


def step(number: int) -> StepRecord:
    return StepRecord(
        step=number, total=4, epoch=number / 4, loss=2.0, lr=1e-3, grad_norm=1.0, trained=10, tokens=100, seconds=0.5
    )


def tell(terminal: bool) -> str:
    stream = io.StringIO()
    reporter = ConsoleReporter(Console(file=stream, force_terminal=terminal, width=140, highlight=False))
    reporter.on_section("data", "[bold]markup is text[/bold]")
    reporter.on_start(4, 0)
    for number in range(1, 5):
        reporter.on_step(step(number))
    reporter.on_valid(ValidRecord(step=4, metrics={"loss": 1.5}, best=True, seconds=0.1))
    sample = Sample(prompt="a [b]", expected="c", answer="d")
    reporter.on_end(
        RunReport(
            output=Path("out"), method="lora", steps=4, total=4, before={"loss": 2.0}, after={"loss": 1.5},
            sample_before=sample, sample_after=sample, files=("README.md",), next_commands=("deltaw chat",),
        )
    )  # fmt: skip
    reporter.close()
    return stream.getvalue()


def test_a_terminal_has_a_bar() -> None:
    text = tell(terminal=True)
    assert "4/4" in text and "200 tokens/s" in text and "loss 2.0000" in text and "left" in text


def test_a_pipe_has_lines() -> None:
    lines = tell(terminal=False).splitlines()
    assert "  [bold]markup is text[/bold]" in lines
    assert [line.split("  ")[0] for line in lines if line.startswith("step ") and "/" in line] == [
        f"step {number}/4" for number in range(1, 5)
    ]
    assert "step 4: validation loss 1.5000  best so far" in lines
    assert "validation after:  loss 1.5000, 25.0% lower" in lines
    assert "prompt:   'a [b]'" in lines and "  deltaw chat" in lines


def test_a_loss_that_rose_is_said_loudly() -> None:
    report = RunReport(output=Path("o"), method="lora", steps=1, total=1, before={"loss": 1.0}, after={"loss": 1.5})
    assert "50.0% HIGHER" in str(report)
