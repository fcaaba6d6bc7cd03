"""Switching, saving, loading, merging: `python benchmarks/verbs.py` prints a table and writes it to results/.

Switching on 224 linears of a 7B model without memory, which holds two adapters; the rest on the Llama-like model of 162
million parameters, all linear layers at rank 16. Importing and attaching are in attach.py, resizing in resize.py. Save
and load include the disk; every turn loads into a fresh model. One minute.

    python benchmarks/verbs.py --layers 2    # a part of the model
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attach import meta_7b
from dress import build, put_on, targets_of
from harness import Row, cpu_seconds, markdown, one_thread, parser, ratio, take_turns, write
from torch import nn

import deltaw as dw

ADAPTED = "all linear, r 16"
SWITCHES = 100
LIMIT = 1.0
CHECKED = "PEFT, safe_merge"
"""PEFT's merge with the check for values that are not finite, which deltaw's always has."""
MERGE, UNMERGE, BOTH = "merge", "unmerge", "merge and unmerge"
Measures = dict[str, Callable[[], float]]


def switches() -> Measures:
    """Seconds of one switch between two adapters on 224 linears."""
    import peft

    ours, config = meta_7b(), dw.LoRAConfig(targets="all-linear", rank=8, alpha=16)
    for name in ("a", "b"):
        dw.attach(ours, config, name=name)
    dw.activate(ours, "a")
    his = peft.LoraConfig(target_modules="all-linear", r=8, lora_alpha=16)
    theirs: Any = peft.get_peft_model(meta_7b(), his, "a")
    theirs.add_adapter("b", his)

    def mine(number: int) -> None:
        dw.activate(ours, "ab"[number % 2])

    def other(number: int) -> None:
        theirs.set_adapter("ab"[number % 2])

    def timed(act: Callable[[int], None], count: int) -> float:
        start = time.perf_counter()
        for number in range(count):
            act(number)
        return (time.perf_counter() - start) / count

    return {"deltaw": lambda: timed(mine, SWITCHES), "PEFT": lambda: timed(other, 2)}


def files(base: nn.Module, ours: nn.Module, theirs: Any, place: Path) -> dict[str, Measures]:
    """Writing an adapter, and reading it into a fresh model."""
    import peft

    def load_ours() -> float:
        fresh = copy.deepcopy(base)
        return cpu_seconds(lambda: dw.load(fresh, place / "deltaw"))

    def load_theirs() -> float:
        fresh: Any = copy.deepcopy(base)
        return cpu_seconds(lambda: peft.PeftModel.from_pretrained(fresh, place / "peft"))

    return {
        "save": {
            "deltaw": lambda: cpu_seconds(lambda: dw.save(ours, place / "deltaw")),
            "PEFT": lambda: cpu_seconds(lambda: theirs.save_pretrained(place / "peft")),
        },
        "load": {"deltaw": load_ours, "PEFT": load_theirs},
    }


def merges(ours: nn.Module, theirs: Any) -> dict[str, Measures]:
    """Merging, and back; each measure leaves the model as the other wants it."""
    careful = copy.deepcopy(theirs)
    return {
        MERGE: {
            "deltaw": lambda: cpu_seconds(lambda: dw.merge(ours)),
            "PEFT": lambda: cpu_seconds(theirs.merge_adapter),
            CHECKED: lambda: cpu_seconds(lambda: careful.merge_adapter(safe_merge=True)),
        },
        UNMERGE: {
            "deltaw": lambda: cpu_seconds(lambda: dw.unmerge(ours)),
            "PEFT": lambda: cpu_seconds(theirs.unmerge_adapter),
            CHECKED: lambda: cpu_seconds(careful.unmerge_adapter),
        },
    }


def finals(ours: nn.Module, theirs: Any) -> Measures:
    """Merging for good: nothing is kept, and there is no way back."""

    def mine() -> float:
        fresh = copy.deepcopy(ours)
        return cpu_seconds(lambda: dw.merge(fresh, keep=False))

    def other() -> float:
        fresh: Any = copy.deepcopy(theirs)
        return cpu_seconds(fresh.merge_and_unload)

    return {"deltaw": mine, "PEFT": other}


def pairs(measured: dict[str, Measures], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Merge and unmerge in one round, one after the other."""
    joint = {f"{verb}/{who}": measure for verb in measured for who, measure in measured[verb].items()}
    names, taken = list(joint), {name: [] for name in joint}  # type: ignore[var-annotated]
    for turn in range(rounds + 2):
        for name in names:
            value = joint[name]()
            if turn >= 2:
                taken[name].append(value)
    return {verb: {who: taken[f"{verb}/{who}"] for who in measured[verb]} for verb in measured}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--layers", type=int, default=8)
    options = made.parse_args()
    one_thread()
    targets, rank = targets_of("llama", ADAPTED)
    base = build("llama", layers=options.layers)
    ours = put_on("deltaw", copy.deepcopy(base), targets, rank, 0.0)
    theirs: Any = put_on("PEFT", copy.deepcopy(base), targets, rank, 0.0)
    taken = {"switch": take_turns(switches(), options.rounds)}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        for verb, measured in files(base, ours, theirs, Path(name)).items():
            taken[verb] = take_turns(measured, options.rounds)
        taken["merge for good (keep=False; merge_and_unload)"] = take_turns(finals(ours, theirs), options.rounds)
        taken |= pairs(merges(ours, theirs), options.rounds)
    taken[BOTH] = {
        who: [sum(both) for both in zip(taken[MERGE][who], taken[UNMERGE][who], strict=True)] for who in taken[MERGE]
    }
    lines, rows = [], []
    for verb, found in taken.items():
        unit, factor = ("us", 1e6) if verb == "switch" else ("CPU ms", 1e3)
        medians = {who: f"{statistics.median(values) * factor:.1f} {unit}" for who, values in found.items()}
        for who in [other for other in medians if other != "deltaw"]:
            spread = ratio(found["deltaw"], found[who])
            lines.append([verb, who, medians["deltaw"], medians[who], str(spread)])
            rows.append(Row(work=f"verbs: {verb}", against=who, ours=medians["deltaw"], theirs=medians[who],
                            ratio=spread, limit=LIMIT))  # fmt: skip
    text = [
        f"Medians of {options.rounds} rounds after two, taking turns, one thread. By `python benchmarks/verbs.py`.",
        f"switch: wall time between two adapters on 224 linears, deltaw's the mean of {SWITCHES} switches. Others:",
        f"CPU time, {options.layers} layers of the Llama-like model, {ADAPTED}, fp32. deltaw's save is atomic, load",
        "checks the base's fingerprint; its merge rounds once and keeps the base's exact bits, which unmerge restores,",
        "where PEFT subtracts.",
        "",
        *markdown(["verb", "against", "deltaw", "other", "deltaw / other"], lines, words=2),
    ]
    write("verbs", options, "Switching, saving, loading, merging", text, rows)


if __name__ == "__main__":
    main()
