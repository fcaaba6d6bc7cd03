"""Resizing on factors beside the dense method: `python benchmarks/resize.py` prints a table and writes it to results/.

A rank-64 adapter on two 4096 x 4096 sites is cut to rank 8: by deltaw, and as merge scripts do it, by forming the
dense update and taking its SVD in float32. Rounds alternate. Both results are then judged against the optimum, from
the singular values of the dense update in float64 (Eckart and Young: no matrix of rank 8 is nearer).
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from attach import hardware, versions
from torch import Tensor

import deltaw as dw

HERE = Path(__file__).parent
PREFIX = "base_model.model."
Factors = dict[str, tuple[Tensor, Tensor, float]]
"""Site -> A, B and the scaling."""
SITES = ("flat", "falling")
"""Spectra: of Gaussian factors, and one that halves every eight directions, as trained updates tend to fall."""


def adapter(size: int, rank: int) -> dw.Adapter:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name in SITES:
        lora_A, lora_B = (torch.randn(shape, generator=generator) for shape in ((rank, size), (size, rank)))
        if name == "falling":
            lora_A = lora_A * 2.0 ** (-torch.arange(rank) / 8).unsqueeze(1)
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = lora_A, lora_B / size
    raw = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(SITES)}
    return dw.Adapter(tensors=tensors, raw=raw)


def ours(source: dw.Adapter, rank: int) -> Factors:
    made = source.resize(rank=rank)
    return {path: (*made.factors(path), made.scaling(path)) for path in SITES}


def dense(source: dw.Adapter, rank: int) -> Factors:
    """The dense update, its SVD, the first directions."""
    found = {}
    for path in SITES:
        lora_A, lora_B = source.factors(path)
        U, values, right = torch.linalg.svd(source.scaling(path) * (lora_B @ lora_A), full_matrices=False)
        root = values[:rank].sqrt()
        found[path] = (root.unsqueeze(1) * right[:rank], U[:, :rank] * root, 1.0)
    return found


def timed(
    work: Callable[[], Factors],
) -> tuple[float, float, Factors]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def judged(source: dw.Adapter, rank: int, results: dict[str, Factors]) -> list[str]:
    """One row for each site: the optimum and how far above it each method is."""
    rows = []
    for path in SITES:
        lora_A, lora_B = (factor.double() for factor in source.factors(path))
        update = source.scaling(path) * (lora_B @ lora_A)
        optimum = float(torch.linalg.svdvals(update)[rank:].norm())
        size = float(update.norm())
        cells = []
        for result in results.values():
            A, B, scaling = result[path]
            missed = float((update - scaling * (B.double() @ A.double())).norm())
            cells.append(f"{missed / optimum - 1:+.1e}")
        rows.append(f"| {path} | {optimum / size:.6f} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--to", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="for the name of the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = adapter(options.size, options.rank)
    methods = {"deltaw": lambda: ours(source, options.to), "dense": lambda: dense(source, options.to)}
    methods["deltaw"]()
    walls: dict[str, list[float]] = {name: [] for name in methods}
    cpus: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for _ in range(options.rounds):
        for name, work in methods.items():
            wall, cpu, results[name] = timed(work)
            walls[name].append(wall)
            cpus[name].append(cpu)
    rows = judged(source, options.to, results)
    middle = {name: statistics.median(values) for name, values in cpus.items()}
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        f"# Resizing rank {options.rank} to {options.to} on {len(SITES)} sites of {options.size} x {options.size}",
        "",
        f"{options.date}. {hardware()}. {versions()}. Load average after the run: {load}.",
        f"Medians of {options.rounds} rounds, the methods taking turns, one thread; deltaw once before, not counted.",
        "Made by `python benchmarks/resize.py`. deltaw works in float64 on the factors and measures its own error; the",
        "dense method forms scaling * B A and takes its SVD in float32.",
        "",
        "| method | wall seconds | CPU seconds |",
        "|---|---:|---:|",
        *(f"| {name} | {statistics.median(walls[name]):.3f} | {middle[name]:.3f} |" for name in methods),
        "",
        f"The dense method takes {middle['dense'] / middle['deltaw']:.0f} times the CPU time of deltaw.",
        "",
        "Distance to the full update, relative to the least possible one (Frobenius norm; dense float64 as judge):",
        "",
        "| spectrum | optimum / norm | deltaw above the optimum | dense above the optimum |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]
    print("\n".join(text))
    if options.size == 4096:
        (HERE / "results" / f"resize_cpu_{options.date}.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
