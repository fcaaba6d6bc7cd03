"""Bad recipes, runs and decodings of ``deltaw paper``, and settings of training that follow the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltaw.cli import _run
from deltaw.paper.answers import Store
from deltaw.paper.decode import Beam, Prompt, fit_prompts

Case = Callable[[Path], Any]


def line(*words: str) -> Case:
    """A command line; ``{tmp}`` in a word is the directory."""
    return lambda tmp: _run([word.replace("{tmp}", str(tmp)) for word in words])


def train(*words: str) -> Case:
    return line("train", "--model", "base", "--data", "rows.jsonl", *words)


def decode(*words: str) -> Case:
    return line("paper", "decode", "--model", "base", "--output", "{tmp}/out", "--layout", "wikisql", *words)


def without_a_table(tmp: Path) -> None:
    query = {"sel": 0, "agg": 0, "conds": []}
    lines = [json.dumps({"table_id": name, "question": "Who?", "sql": query}) + "\n" for name in ("1-1", "1-9")]
    (tmp / "test.jsonl").write_text("".join(lines))
    (tmp / "test.tables.jsonl").write_text(json.dumps({"id": "1-1", "header": ["Player"], "types": ["text"]}) + "\n")
    decode("--task", "wikisql", "--data", "{tmp}")(tmp)


def two_runs(tmp: Path) -> None:
    for number in range(2):
        place = tmp / f"run{number}"
        place.mkdir()
        records = [{"kind": "step", "step": 1, "epoch": 1.0}, {"kind": "valid", "step": 1, "loss": 0.5}]
        (place / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (place / "run.toml").write_text(f"[run]\nseed = {number}\n[optim]\nlr = {number + 1}e-3\n")
    line("paper", "runs", "{tmp}/run0", "{tmp}/run1")(tmp)


def answered_otherwise(tmp: Path) -> None:
    Store(tmp / "out", {"beams": 10, "adapter": "1f"})
    Store(tmp / "out", {"beams": 4, "adapter": "1f"})


def long_prompt(tmp: Path) -> None:
    prompts = [Prompt(id=0, context="name : Alimentum | area : city centre", ids=tuple(range(12)))]
    fit_prompts(prompts, context=64, beam=Beam(max_tokens=60), cut=False)


CASES: dict[str, Case] = {
    "paper_decode_no_inputs": line("paper", "decode", "--model", "base", "--output", "out"),
    "paper_decode_wikisql_task": decode("--task", "e2e", "--data", "{tmp}"),
    "paper_decode_wikisql_prompts": decode("--prompts", "x"),
    "paper_decode_wikisql_table": without_a_table,
    "paper_decode_beams": line("paper", "decode", "--prompts", "x", "--output", "out", "--beams", "0"),
    "paper_decode_other_settings": answered_otherwise,
    "paper_decode_prompt_long": long_prompt,
    "paper_recipe_row_unknown": line("paper", "recipe", "table11", "--row", "gpt2", "--task", "e2e"),
    "paper_recipe_no_script": line("paper", "recipe", "table12", "--row", "lora", "--task", "samsum", "--as", "script"),
    "paper_runs_differ": two_runs,
    "paper_runs_absent": line("paper", "runs", "{tmp}/absent"),
    "train_new_head_alone": train("--new-head"),
    "train_warmup_twice": train("--warmup", "0.1", "--warmup-tokens", "1000"),
    "train_correct_bias_unread": train("--no-correct-bias"),
}
