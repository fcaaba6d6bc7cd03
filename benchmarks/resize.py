"""Resizing on factors beside the dense method: `python benchmarks/resize.py` prints a table and writes it to results/.

A rank-64 adapter on two 4096 x 4096 sites is cut to rank 8: by deltaw, and as merge scripts do it, by forming the
dense update and taking its SVD in float32. Rounds alternate. Both results are then judged against the optimum, from
the singular values of the dense update in float64 (Eckart and Young: no matrix of rank 8 is nearer).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from harness import Row, Times, markdown, one_thread, parser, ratio, take_turns, write
from torch import Tensor

import deltaw as dw

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


def timed(methods: dict[str, Callable[[], Factors]], rounds: int) -> tuple[Times, dict[str, Factors]]:
    """CPU seconds of every method and what it made, methods taking turns; deltaw once before, not counted."""
    made: dict[str, Factors] = {}
    methods["deltaw"]()

    def measure(name: str) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            made[name] = methods[name]()
            return time.process_time() - start

        return run

    return take_turns({name: measure(name) for name in methods}, rounds, warm_ups=0), made


def judged(source: dw.Adapter, rank: int, results: dict[str, Factors]) -> list[list[str]]:
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
        rows.append([path, f"{optimum / size:.6f}", *cells])
    return rows


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--size", type=int, default=4096)
    made.add_argument("--rank", type=int, default=64)
    made.add_argument("--to", type=int, default=8)
    options = made.parse_args()
    one_thread()
    source = adapter(options.size, options.rank)
    methods = {"deltaw": lambda: ours(source, options.to), "dense": lambda: dense(source, options.to)}
    taken, results = timed(methods, options.rounds)
    head = ["spectrum", "optimum / norm", "deltaw above the optimum", "dense above the optimum"]
    middle = {name: f"{statistics.median(values):.3f}" for name, values in taken.items()}
    text = [
        f"Medians of {options.rounds} rounds, the methods taking turns, one thread; deltaw once before, not counted.",
        "Made by `python benchmarks/resize.py`. deltaw works in float64 on the factors and measures its own error; the",
        "dense method forms scaling * B A and takes its SVD in float32, as kohya's resize script does. PEFT has none.",
        "",
        *markdown(["method", "CPU seconds"], [[name, value] for name, value in middle.items()]),
        "",
        f"The dense method takes {1 / ratio(taken['deltaw'], taken['dense']).median:.0f} times the CPU time of deltaw.",
        "",
        "Distance to the full update, relative to the least possible one (Frobenius norm; dense float64 as judge):",
        "",
        *markdown(head, judged(source, options.to, results)),
    ]
    sites = f"{len(SITES)} sites of {options.size} x {options.size}"
    row = Row(
        work=f"resize r {options.rank} to {options.to}, {sites}", against="dense SVD (kohya's method)",
        ours=f"{middle['deltaw']} CPU s", theirs=f"{middle['dense']} CPU s",
        ratio=ratio(taken["deltaw"], taken["dense"]), limit=0.01,
    )  # fmt: skip
    write("resize", options, f"Resizing rank {options.rank} to {options.to} on {sites}", text, [row])


if __name__ == "__main__":
    main()
