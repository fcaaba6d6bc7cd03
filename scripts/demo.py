"""The main job on what the repository holds: train an adapter on demo/base and demo/data, then check what it did.

Usage (from the repository, or by ``make demo``):
    python scripts/demo.py              train, measure, merge
    python scripts/demo.py --controls   the same command twice more: nothing trained, and pairings shuffled

Every claim is checked; the exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE, DATA, OUT = "demo/base", "demo/data", "out"
TRAIN = (
    f"deltaw train --model {BASE} --data {DATA}/train.jsonl --valid {DATA}/valid.jsonl "
    "--rank 8 --lr 3e-3 --epochs 1 --threads 1"
)
MERGE = f"deltaw merge --model {BASE} --adapter {OUT}/demo --output {OUT}/demo-merged"
SHOWN, CHECKED = 5, 40
DROP, CARRIED = 0.40, 0.50


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model said to the checked rows.

    Args:
        texts: one greedy answer per row.
        whole: share of answers that carry every field of their record word for word.
        fields: share of all fields carried.
    """

    texts: list[str]
    whole: float
    fields: float


def run(command: str) -> int:
    """Show a command and run it as a user would, with the ``deltaw`` that belongs to this interpreter.

    Args:
        command: the command line.

    Returns:
        Its exit code.
    """
    print(f"\n$ {command}\n", flush=True)
    words = shlex.split(command)
    found = shutil.which(words[0], path=str(Path(sys.executable).parent)) or shutil.which(words[0])
    if found is None:
        sys.exit(f"{words[0]} is not installed for {sys.executable}: run `make demo`, or pip install -e '.[train]'")
    return subprocess.run([found, *words[1:]], cwd=ROOT, check=False).returncode


def train(name: str, command: str = TRAIN) -> dict[str, Any]:
    """Train by the command line and read the run's report.

    Args:
        name: directory under ``out``.
        command: the command, but for where it writes.

    Returns:
        The run's report.json.
    """
    code = run(f"{command} --output {OUT}/{name} --overwrite")
    if code:
        sys.exit(code)
    return dict(json.loads((ROOT / OUT / name / "report.json").read_text(encoding="utf-8")))


def fields_of(prompt: str) -> list[str]:
    """Read the values of a record.

    Args:
        prompt: the record's line.

    Returns:
        The values, in order.
    """
    return [field.split(": ", 1)[1] for field in prompt.split(" | ")]


def carried(prompt: str, text: str) -> list[bool]:
    """Tell for each value of a record whether a text holds it as whole words.

    Args:
        prompt: the record's line.
        text: what a model said.

    Returns:
        One truth value per field.
    """
    return [re.search(rf"(?<![\w.]){re.escape(value)}(?!\w)", text) is not None for value in fields_of(prompt)]


def answers(model: Any, tokenizer: Any, prompts: list[str]) -> Outputs:
    """Let a model answer greedily.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer.
        prompts: records, one line each.

    Returns:
        Answers and how much of the records they carry.
    """
    import torch

    # Matrices this small gain nothing from a second thread, and lose much where the cores are shared.
    torch.set_num_threads(1)
    tokenizer.padding_side = "left"
    batch = tokenizer([prompt + "\n" for prompt in prompts], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=96, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    hits = [carried(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    flat = [hit for row in hits for hit in row]
    return Outputs(texts=texts, whole=sum(map(all, hits)) / len(hits), fields=sum(flat) / len(flat))


def before_and_after(prompts: list[str]) -> tuple[Outputs, Outputs]:
    """Answer the prompts with the base and with the adapter, by deltaw's Python face.

    Args:
        prompts: records, one line each.

    Returns:
        The base's outputs and the adapted model's.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import deltaw as dw

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / BASE)
    model = AutoModelForCausalLM.from_pretrained(ROOT / BASE).eval()
    print(f"\n{dw.load(model, ROOT / OUT / 'demo')}")
    results = []
    for scope in (lambda: dw.disabled(model), nullcontext):
        with scope():
            results.append(answers(model, tokenizer, prompts))
    return results[0], results[1]


def show(prompts: list[str], before: Outputs, after: Outputs) -> None:
    """Print some held-out answers of base and adapter below each other.

    Args:
        prompts: records, one line each.
        before: the base's outputs.
        after: the adapted model's outputs.
    """
    print(f"\n{SHOWN} of {len(prompts)} held-out records, greedy:")
    for index in range(SHOWN):
        said = " / ".join(before.texts[index].strip().splitlines())
        print(f"\n  {prompts[index]}\n    base:    {said[:150]}\n    adapted: {after.texts[index].strip()}")
    print(f"\nfields carried, word for word: base {before.fields:.0%}, adapted {after.fields:.0%}")
    print(f"records carried whole:         base {before.whole:.0%}, adapted {after.whole:.0%}")


def judge(claims: dict[str, bool]) -> int:
    """Print each claim with its verdict.

    Args:
        claims: claim -> whether it held.

    Returns:
        The exit code: 0 if all held.
    """
    print("\nclaims:")
    for claim, held in claims.items():
        print(f"  {'ok    ' if held else 'FAILED'}  {claim}")
    return 0 if all(claims.values()) else 1


def demo() -> int:
    """Train, compare, merge.

    Returns:
        The exit code.
    """
    start = time.monotonic()
    report = train("demo")
    lines = (ROOT / DATA / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[:CHECKED]]
    before, after = before_and_after(prompts)
    show(prompts, before, after)
    shutil.rmtree(ROOT / OUT / "demo-merged", ignore_errors=True)
    merged = run(MERGE)
    small = (ROOT / OUT / "demo" / "adapter_model.safetensors").stat().st_size
    large = (ROOT / BASE / "model.safetensors").stat().st_size
    losses = report["before"]["loss"], report["after"]["loss"]
    drop = 1 - losses[1] / losses[0]
    code = judge(
        {
            f"held-out loss {losses[0]:.3f} -> {losses[1]:.3f}, {drop:.0%} lower (asked: {DROP:.0%})": drop >= DROP,
            f"records carried whole: {after.whole:.0%} of {CHECKED} (asked: {CARRIED:.0%})": after.whole >= CARRIED,
            f"outputs changed: whole records {before.whole:.0%} -> {after.whole:.0%}": after.whole > before.whole,
            f"adapter {small / 1e3:.0f} kB beside a base of {large / 1e3:.0f} kB: {small / large:.1%}": small
            < large / 10,
            f"merge verified (exit code {merged})": merged == 0,
        }
    )
    print(f"\n{time.monotonic() - start:.0f} s in all. Next:")
    activate = Path(sys.executable).parent / "activate"
    if shutil.which("deltaw") is None and activate.is_file():
        print(f"  source {shlex.quote(os.path.relpath(activate))}")
    print(f"  deltaw generate --model {BASE} --adapter {OUT}/demo --base -p {shlex.quote(prompts[0])}")
    print(f"  deltaw inspect {OUT}/demo")
    print("  python scripts/demo.py --controls")
    print("  deltaw train --model YOUR_MODEL --data YOUR_ROWS.jsonl --output out/mine")
    return code


def controls() -> int:
    """Run the demo's command with nothing to learn, and with nothing to train.

    Returns:
        The exit code.
    """
    adapted = ROOT / OUT / "demo" / "report.json"
    runs = {
        "adapted": json.loads(adapted.read_text(encoding="utf-8")) if adapted.is_file() else train("demo"),
        "rank 0": train("demo-rank0", TRAIN.replace("--rank 8", "--rank 0")),
        "shuffled pairings": train("demo-shuffled", f"{TRAIN} --shuffle-pairs"),
    }
    loss = {name: report["after"]["loss"] for name, report in runs.items()}
    print("\nheld-out loss after the same command:")
    for name, value in loss.items():
        print(f"  {name:<18} {value:.4f}")
    margins = {
        f"adapted at most 60% of {name}: {loss['adapted'] / loss[name]:.0%}": loss["adapted"] <= 0.6 * loss[name]
        for name in ("rank 0", "shuffled pairings")
    }
    return judge(margins)


def main() -> None:
    """Run the demo or its controls and leave with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controls", action="store_true", help="run the two controls")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(controls() if parser.parse_args().controls else demo())


if __name__ == "__main__":
    main()
