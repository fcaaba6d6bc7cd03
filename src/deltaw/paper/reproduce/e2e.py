"""Rows on E2E: the paper's own files, every method of Table 3 and some of Tables 5 and 18, on a small decoder.

All rows see the same examples in the same order and number, with the same schedule and label smoothing, and answer the
test set's 630 distinct inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltaw.paper.reproduce.row import TIMES, Commands, Outputs, Row

__all__ = ["MODEL", "ROWS"]

MODEL = "models/stories3M"
STEPS, BATCH, TRAINING_ROWS = 250, 16, 4096
TEXTS = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


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


def _row(name: str, title: str, method: str, lr: float, *more: str, table: str = "table3", times: int = 1) -> Row:
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


def _lora(letters: str, rank: int, table: str, times: int = 1) -> Row:
    targets = [word for letter in letters for word in ("--target", ATTENTION[letter])]
    more = ("--rank", str(rank), "--alpha", "32", *targets)
    title = f"LoRA {','.join(letters)} r={rank}"
    return _row(f"lora-{letters}-r{rank}", title, "lora", 4e-3, *more, table=table, times=times)


ROWS = (
    _lora("qv", 4, "table3"),
    _row("full", "FT", "full", 1e-3),
    _row("full-matched-rate", "FT at LoRA's rate", "full", 4e-3),
    _row("top2", "FT-Top2", "top-blocks", 1e-3, "--blocks", "2"),
    _row("adapter-h", "Adapter H", "adapter-h", 4e-3, "--bottleneck", "8"),
    _row("adapter-l", "Adapter L", "adapter-l", 4e-3, "--bottleneck", "16"),
    _row("prefix-layer", "PreLayer", "prefix-layer", 2e-2, "--prefix-length", "8", "--infix-length", "8"),
    _row("prefix-embedding", "PreEmbed", "prefix-embedding", 2e-2, "--prefix-length", "32", "--infix-length", "8"),
    *(_lora("qv", rank, "table18") for rank in (1, 2, 8, 64)),
    _lora("qv", 4, "table3", TIMES),
    _row("full", "FT", "full", 1e-3, times=TIMES),
    _lora("q", 8, "table5"),
    _lora("v", 8, "table5"),
    _lora("qkvo", 2, "table5"),
)
