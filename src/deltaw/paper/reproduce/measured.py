"""Rows that train little or nothing: subspaces, amplification, latency, throughput, memory, switching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltaw.paper.reproduce import e2e
from deltaw.paper.reproduce.row import Commands, Outputs, Row

__all__ = ["ROWS"]

RELEASED = "adapters/loralib/roberta_base_lora_mnli.bin"
SMALL = "a GPT-2-shaped decoder of 124M parameters, random weights"


def _lora(rank: int, seed: str, out: str, quick: bool) -> tuple[str, ...]:
    steps, limit = ("4", "256") if quick else ("150", "4096")
    return (
        "train", "--model", f"{{data}}/{e2e.MODEL}", "--task", "e2e", "--data", "{data}/e2e", "--rank", str(rank),
        "--alpha", "32", "--target", "q_proj", "--target", "v_proj", "--lr", "4e-3", "--steps", steps,
        "--batch-size", "16", "--limit", limit, "--eval-every", "0", "--eval-limit", "32", "--save-every", "0",
        "--threads", "1", "--seed", seed, "--output", f"{{out}}/{out}", "--overwrite", "--json",
    )  # fmt: skip


def _analysis(*words: str, name: str) -> tuple[str, ...]:
    return ("paper", *words, "--output", f"{{out}}/{name}", "--json")


def _released(quick: bool) -> Commands:
    return {"subspace": _analysis("subspace", f"{{data}}/{RELEASED}", "--alpha", "16", name="figures")}


def _ranks(quick: bool) -> Commands:
    return {
        "small": _lora(8, "{seed}", "r8", quick),
        "large": _lora(64, "{seed}", "r64", quick),
        "subspace": _analysis("subspace", "{out}/r8", "{out}/r64", "--control", name="figures"),
    }


def _seeds(quick: bool) -> Commands:
    return {
        "one": _lora(64, "{seed}", "one", quick),
        "other": _lora(64, "1{seed}", "other", quick),
        "subspace": _analysis("subspace", "{out}/one", "{out}/other", "--control", name="figures"),
    }


def _base(quick: bool) -> Commands:
    return {
        "train": _lora(4, "{seed}", "r4", quick),
        "base": _analysis("subspace-base", "{out}/r4", "--model", f"{{data}}/{e2e.MODEL}", name="figures"),
    }


def _latency(quick: bool) -> Commands:
    # the last line of Table 1, where Adapter H has 11M values
    grid = ("--batch", "1", "--length", "128", "--size", "112", "--rounds", "2" if quick else "31")
    return {"latency": _analysis("latency", "gpt2-medium", *grid, name="figures")}


def _grid(quick: bool) -> Commands:
    grid = ("--batch", "1,4", "--length", "32,128", "--size", "10,100", "--rounds", "3" if quick else "101")
    return {"latency": _analysis("latency", f"{{data}}/{e2e.MODEL}", *grid, name="figures")}


def _throughput(quick: bool) -> Commands:
    rounds = ("--rounds", "2" if quick else "5")
    return {"throughput": _analysis("throughput", "gpt2", *rounds, "--batch", "2", name="figures")}


def _switch(quick: bool) -> Commands:
    rounds = ("--rounds", "3" if quick else "20")
    return {"switch": _analysis("switch", f"{{data}}/{e2e.MODEL}", *rounds, name="figures")}


def _sheet(step: str) -> Callable[[Outputs], Mapping[str, Any]]:
    """The table of an analysis as it was printed."""
    return lambda printed: {name: printed[step][name] for name in ("title", "rows", "notes")}


def _means(step: str, by: str) -> Callable[[Outputs, Path], Mapping[str, float]]:
    """The mean of every column of numbers, for each value of one column where ``by`` names it."""

    def values(printed: Outputs, output: Path) -> Mapping[str, float]:
        found: dict[str, list[float]] = {}
        for row in printed[step]["rows"]:
            for name, value in row.items():
                if isinstance(value, float):
                    found.setdefault(f"{row[by]}: {name}" if by else name, []).append(value)
        return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}

    return values


def _row(
    name: str, title: str, table: str, on: str, inputs: tuple[str, ...], commands: Callable[[bool], Commands],
    step: str, by: str = "",
) -> Row:  # fmt: skip
    return Row(
        name=name, title=title, table=table, on=on, inputs=inputs, commands=commands, values=_means(step, by),
        sheet=_sheet(step),
    )  # fmt: skip


_E2E = ("e2e/train.txt.gz", "e2e/valid.txt.gz", e2e.MODEL)
_STORIES = "stories3M, LoRA on q and v, 150 steps on E2E"

ROWS = (
    _row("subspace/released", "the authors' RoBERTa-base adapter against itself", "figure3",
         "the released MNLI adapter of RoBERTa-base, 24 matrices of rank 8", (RELEASED,), _released, "subspace"),
    _row("subspace/ranks", "r=8 against r=64", "figure3", _STORIES, _E2E, _ranks, "subspace"),
    _row("subspace/seeds", "two seeds at r=64, and a control", "figure4", _STORIES, _E2E, _seeds, "subspace"),
    _row("subspace/base", "an update against its weight", "table7", _STORIES, _E2E, _base, "base"),
    _row("latency/gpt2-medium", "one row of 128 tokens", "table1", "GPT-2 medium's shape, random weights, CPU", (),
         _latency, "latency"),
    _row("latency/grid", "batch, length and size", "figure5", "stories3M, CPU", (e2e.MODEL,), _grid, "latency"),
    _row("throughput/gpt2", "training speed and memory", "claims", SMALL, (), _throughput, "throughput"),
    _row("switch/stories3M", "switching between eight adapters", "claims", "stories3M, CPU", (e2e.MODEL,), _switch,
         "switch"),
)  # fmt: skip
