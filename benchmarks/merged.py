"""Inference with an adapter: `python benchmarks/merged.py`, about three minutes.

Prefill of 128 tokens, and one token with a cache of 128, on the Llama-like model of 162 million parameters, all linear
layers adapted at rank 16: the base, deltaw merged and unmerged, PEFT merged inside its wrapper, unloaded, and unmerged.
All adapted models must give the same logits first; runs take turns.

    python benchmarks/merged.py --layers 2   # a part of the model
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from dress import batch, build, put_on, targets_of
from harness import Row, Times, cpu_seconds, markdown, one_thread, parser, ratio, take_turns, write
from torch import nn

import deltaw as dw

ADAPTED = "all linear, r 16"
TOKENS = 128
CALLS = {"prefill of 128": 1, "one token, cached": 10}
"""Calls that make one measurement."""


def models(layers: int) -> dict[str, nn.Module]:
    targets, rank = targets_of("llama", ADAPTED)
    base = build("llama", layers=layers).eval()

    def made(dress: str) -> Any:
        return put_on(dress, copy.deepcopy(base), targets, rank, 0.0).eval()

    found = {"base": base, "deltaw, merged": made("deltaw"), "deltaw": made("deltaw")}
    dw.merge(found["deltaw, merged"])
    found |= {"PEFT, merged": made("PEFT"), "PEFT, unloaded": made("PEFT").merge_and_unload(), "PEFT": made("PEFT")}
    found["PEFT, merged"].merge_adapter()  # type: ignore[operator]
    return found


def verify(found: dict[str, nn.Module]) -> None:
    """All adapted models say the same, and not what the base says."""
    ids = batch("llama", 1, TOKENS)["input_ids"]
    with torch.inference_mode():
        logits = {name: model(input_ids=ids).logits for name, model in found.items()}
    size = logits["base"].abs().max()
    for name, values in logits.items():
        error = float((values - logits["deltaw"]).abs().max() / size)
        assert (error > 1e-2) if name == "base" else (error < 1e-4), (name, error)


def measures(found: dict[str, nn.Module], work: str) -> dict[str, Callable[[], float]]:
    ids = batch("llama", 1, TOKENS + 1)["input_ids"]

    def one(model: nn.Module) -> float:
        with torch.inference_mode():
            if work.startswith("prefill"):
                return cpu_seconds(lambda: model(input_ids=ids[:, :TOKENS], use_cache=True, logits_to_keep=1))
            cache = model(input_ids=ids[:, :TOKENS], use_cache=True, logits_to_keep=1).past_key_values
            spent = []
            for _ in range(CALLS[work]):
                spent.append(cpu_seconds(lambda: model(ids[:, TOKENS:], past_key_values=cache, use_cache=True)))
                cache.crop(-1)
            return statistics.median(spent)

    return {name: functools.partial(one, model) for name, model in found.items()}


def rows_of(work: str, taken: Times) -> list[Row]:
    found = []
    for mine, others in (("deltaw, merged", ("base", "PEFT, merged", "PEFT, unloaded")), ("deltaw", ("base", "PEFT"))):
        for other in others:
            limit = 1.0 if mine != "deltaw" or other == "PEFT" else None
            found.append(Row(
                work=f"inference, {work}: {mine}{'' if 'merged' in mine else ', unmerged'}",
                against=f"{other}, unmerged" if other == "PEFT" else other,
                ours=f"{statistics.median(taken[mine]) * 1e3:.1f} CPU ms",
                theirs=f"{statistics.median(taken[other]) * 1e3:.1f} CPU ms",
                ratio=ratio(taken[mine], taken[other]), limit=limit,
            ))  # fmt: skip
    return found


def main() -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--layers", type=int, default=8)
    options = made.parse_args()
    one_thread()
    found = models(options.layers)
    verify(found)
    lines, rows = [], []
    for work in CALLS:
        taken = take_turns(measures(found, work), options.rounds)
        lines += [
            [work, name, f"{statistics.median(values) * 1e3:.1f}", str(ratio(values, taken["base"]))]
            for name, values in taken.items()
        ]
        rows += rows_of(work, taken)
    text = [
        f"CPU milliseconds, fp32, one thread, {options.layers} layers, {ADAPTED}; medians of {options.rounds} rounds,",
        f"taking turns; one cached token is the median of {CALLS['one token, cached']} calls in each round. Made by",
        "`python benchmarks/merged.py`; all adapted models gave the same logits before. A merged deltaw model has the",
        "base's own classes and forward: what it differs from the base by is noise.",
        "",
        *markdown(["work", "model", "CPU ms", "ratio to the base"], lines, words=2),
    ]
    write("merged", options, "Inference with an adapter, merged and not", text, rows)


if __name__ == "__main__":
    main()
