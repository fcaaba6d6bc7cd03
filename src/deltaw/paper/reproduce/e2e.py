"""Rows on E2E: the paper's own files, every method of Table 3 and some of Tables 5 and 18, on a small decoder.

All rows see the same examples in the same order and number, with the same schedule and label smoothing, and answer the
test set's 630 distinct inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltaw.paper.reproduce.row import TIMES, Commands, Outputs, Row

__all__ = ["MODEL", "PREFIXES", "ROWS", "prefix_row"]

MODEL = "models/stories3M"
STEPS, BATCH, TRAINING_ROWS = 250, 16, 4096
TEXTS = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
LORA_RATE, FULL_RATE, PREFIX_RATE = 4e-3, 1e-3, 2e-2
PREFIXES = {"prefix-embedding": ((32, 8), (64, 8), (128, 8)), "prefix-layer": ((2, 2), (8, 8), (32, 4), (64, 0))}
"""Method -> the trained positions before the input and behind it, as Table 15 has them, shortest first."""

USUAL = {"prefix-embedding": (32, 8), "prefix-layer": (8, 8)}
"""The lengths that stand in Table 3."""


def _commands(method: tuple[str, ...], whole: bool, quick: bool, times: int) -> Commands:
    """Train, answer, score; ``whole`` where the output is a model and no adapter."""
    steps, answers, beams = (6, 8, 2) if quick else (times * STEPS, 0, 4)
    data = ("--task", "e2e", "--data", "{data}/e2e")
    train = (
        "train", "--model", f"{{data}}/{MODEL}", *data, *method, "--steps", str(steps), "--batch-size", str(BATCH),
        "--limit", str(times * TRAINING_ROWS) if not quick else "256", "--label-smoothing", "0.1", "--warmup", "0.1",
        "--eval-every", "0", "--eval-limit", "500" if not quick else "32", "--save-every", "0", "--threads", "1",
        "--seed", "{seed}", "--output", "{out}/trained", "--overwrite", "--json",
    )  # fmt: skip
    base = ("--model", "{out}/trained") if whole else ("--model", f"{{data}}/{MODEL}", "--adapter", "{out}/trained")
    decode = (
        "paper", "decode", *base, *data, "--beams", str(beams), "--length-penalty", "0.9", "--no-repeat", "4",
        "--max-tokens", "48", "--batch-size", "32", "--layout", "e2e", "--output", "{out}/answers", "--overwrite",
        *(("--limit", str(answers)) if answers else ()), "--json",
    )  # fmt: skip
    score = (
        "paper", "score", "--metric", "e2e", "--hypotheses", "{out}/answers/predictions.txt",
        "--references", "{out}/answers/references.txt", "--layout", "e2e", "--empty-hypotheses", "counted", "--json",
    )  # fmt: skip
    return {"train": train, "decode": decode, "score": score}


def _values(printed: Outputs, output: Path) -> Mapping[str, float]:
    train = printed["train"]
    found = {TEXTS[score["metric"]]: score["value"] for score in printed["score"]["scores"]}
    return {
        **found,
        "validation loss": train["after"]["loss"],
        "validation loss before": train["before"]["loss"],
        "parameters": train["parameters"],
    }


def _row(
    name: str, title: str, method: str, lr: float, *more: str, table: str = "table3", times: int = 1,
    matched: bool = False,
) -> Row:  # fmt: skip
    """A row; ``matched`` makes the twin of one whose own rate is not LoRA's."""
    if matched:
        name, title, lr = f"{name}-matched-rate", f"{title} at LoRA's rate", LORA_RATE
    words = ("--method", method, "--lr", f"{lr:g}", *more)
    return Row(
        name=f"e2e/{name}{'-long' if times > 1 else ''}",
        title=title,
        table=table,
        on="stories3M, a Llama-shaped decoder of 3.15M parameters pretrained on children's stories",
        inputs=("e2e/train.txt.gz", "e2e/valid.txt.gz", "e2e/test.txt.gz", MODEL),
        commands=lambda quick: _commands(words, method == "full", quick, times),
        values=_values,
        settings={
            "method": " ".join(words),
            "steps": times * STEPS,
            "batch": BATCH,
            "label smoothing": 0.1,
            "beams": 4,
            "length penalty": 0.9,
            "training rows": times * TRAINING_ROWS,
        },
    )


def _targets(letters: str) -> list[str]:
    return [word for letter in letters for word in ("--target", ATTENTION[letter])]


def _lora(letters: str, rank: int, table: str, times: int = 1) -> Row:
    more = ("--rank", str(rank), "--alpha", "32", *_targets(letters))
    title = f"LoRA {','.join(letters)} r={rank}"
    return _row(f"lora-{letters}-r{rank}", title, "lora", LORA_RATE, *more, table=table, times=times)


def prefix_row(method: str, before: int, behind: int) -> str:
    """Name the row of a prefix.

    Args:
        method: ``prefix-embedding`` or ``prefix-layer``.
        before: trained positions before the input.
        behind: trained positions behind it.

    Returns:
        The method alone for the lengths that stand in Table 3, the lengths with it for the others.
    """
    return f"e2e/{method}" if USUAL[method] == (before, behind) else f"e2e/{method}-{before}-{behind}"


def _lengths(before: int, behind: int) -> tuple[str, ...]:
    return ("--prefix-length", str(before), "--infix-length", str(behind))


def _prefix(method: str, before: int, behind: int, *, matched: bool = False) -> Row:
    name = prefix_row(method, before, behind).removeprefix("e2e/")
    title = "PreEmbed" if method == "prefix-embedding" else "PreLayer"
    table = "table3" if name == method else "table15"
    return _row(name, title, method, PREFIX_RATE, *_lengths(before, behind), table=table, matched=matched)


def _with_prefix(method: str, title: str) -> Row:
    more = ("--rank", "8", "--alpha", "32", *_targets("qv"), *_lengths(8, 4))
    return _row(f"lora-{method}", title, f"lora+{method}", LORA_RATE, *more, table="table15")


ROWS = (
    _lora("qv", 4, "table3"),
    *(_row("full", "FT", "full", FULL_RATE, matched=matched) for matched in (False, True)),
    *(_row("top2", "FT-Top2", "top-blocks", FULL_RATE, "--blocks", "2", matched=matched) for matched in (False, True)),
    _row("adapter-h", "Adapter H", "adapter-h", LORA_RATE, "--bottleneck", "8"),
    _row("adapter-l", "Adapter L", "adapter-l", LORA_RATE, "--bottleneck", "16"),
    *(_prefix(method, *lengths) for method, grid in PREFIXES.items() for lengths in grid),
    *(_prefix(method, *lengths, matched=True) for method, lengths in USUAL.items()),
    _with_prefix("prefix-embedding", "LoRA+PE"),
    _with_prefix("prefix-layer", "LoRA+PL"),
    *(_lora("qv", rank, "table18") for rank in (1, 2, 8, 64)),
    _lora("qv", 4, "table3", TIMES),
    _row("full", "FT", "full", FULL_RATE, times=TIMES),
    # equal numbers of values: grouped heads make k and v narrower than q and o
    _lora("q", 6, "table5"),
    _lora("k", 10, "table5"),
    _lora("v", 10, "table5"),
    _lora("o", 6, "table5"),
    _lora("qk", 4, "table5"),
    _lora("qkvo", 2, "table5"),
    *(_lora("q", rank, "table6") for rank in (1, 8, 64)),
    *(_lora("qkvo", rank, "table6") for rank in (1, 8, 64)),
)
