"""Adapters, bases and results for the tests of the analyses, made from numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import deltaw as dw
from deltaw.paper.analyses.base import against_base
from deltaw.paper.analyses.deployment import deployment
from deltaw.paper.analyses.latency import Case, Latency
from deltaw.paper.analyses.low_data import collect, protocol
from deltaw.paper.analyses.memory import ClaimLine, MemoryAccount, MethodMemory
from deltaw.paper.analyses.pieces import Piece
from deltaw.paper.analyses.printed import figure2
from deltaw.paper.analyses.quality import Scored, quality
from deltaw.paper.analyses.recipes import Recipe, Recipes
from deltaw.paper.analyses.result import Analysis
from deltaw.paper.analyses.subspace import subspace
from deltaw.paper.analyses.switch import Switch, Way
from deltaw.paper.analyses.throughput import Speed, Throughput
from deltaw.paper.analyses.turns import Timing
from deltaw.paper.analyses.within import within

sys.path.insert(0, str(Path(__file__).parents[1]))

PREFIX = "base_model.model."
MILLION = 10**6


def made(
    rank: int = 3, width: int = 12, out: int = 10, seed: int = 0, layers: int = 2, modules: str = "qv"
) -> dw.Adapter:
    """An adapter of some layers, q and v unless said otherwise, with random values."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(layers):
        for leaf in modules:
            stem = f"{PREFIX}h.{layer}.{leaf}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules)}
    return dw.Adapter(tensors=tensors, raw=fields, where=f"runs/r{rank}-seed{seed}")


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def piece(label: str, lora_A: Tensor, lora_B: Tensor, scaling: float = 1.0) -> Piece:
    return Piece(label=label, lora_A=lora_A.double(), lora_B=lora_B.double(), scaling=scaling)


def _timing(ms: float, ratio: float) -> Timing:
    return Timing(mean=ms, deviation=0.1, median=ms, ratio=ratio, ratios=(ratio - 0.01, ratio + 0.01), rounds=7)


def _latency() -> Latency:
    cases = tuple(
        Case(method=name, batch=b, length=n, bottleneck=r, parameters=r * 10, timing=_timing(b + n / 100, 1 + lost))
        for b in (1, 4)
        for n in (16, 64)
        for r in (2, 8)
        for name, lost in (("base", 0.0), ("LoRA merged", 0.001 * b), ("Adapter H", 0.03 * r / b))
    )
    return Latency(model="toy", machine="cpu", cases=cases, difference=1e-7)


def _against() -> Analysis:
    pieces = {f"h.{n}.q": piece(f"h.{n}.q", torch.randn(3, 12), torch.randn(10, 3)) for n in range(2)}
    return against_base(pieces, {label: torch.randn(10, 12) for label in pieces}, directions=(1, 3))


def _recipes(kind: str, scored: bool) -> Recipes:
    made_up = [("q", 4), ("q", 8), ("qv", 2), ("qv", 4)]
    recipes = tuple(
        Recipe(run=f"{w}-r{r}", weights=w, targets=tuple(w), rank=r, alpha=4, parameters=100 * r * len(w))
        for w, r in made_up
    )
    scores = {"task": {recipe.run: (0.5 + 0.01 * n,) for n, recipe in enumerate(recipes)}} if scored else {}
    return Recipes(kind=kind, model="toy", recipes=recipes, scores=scores)


def _speed(method: str, tokens: float, step: int) -> Speed:
    return Speed(method=method, trained=5, tokens=tokens, deviation=1, ratio=tokens / 10, peak_bytes=step, rest_bytes=9)


def _switch() -> Switch:
    ways = tuple(Way(way=way, mean=ms, deviation=0.1, median=ms) for way, ms in (("activate", 0.1), ("merge", 30.0)))
    return Switch(model="toy", machine="cpu", adapters=3, adapter_bytes=1000, rounds=4, ways=ways)


def _memory(estimated: bool) -> MemoryAccount:
    held = (("full fine-tuning", 100, 500), ("LoRA", 4, 300), ("LoRA+PL", 5, None))
    methods = tuple(
        MethodMemory(
            method=method, trained=n, weights=400 * MILLION, added=4 * n * MILLION, gradients=2 * n * MILLION,
            optimizer=8 * n * MILLION, activations=kept * MILLION if kept and estimated else None,
        )
        for method, n, kept in held
    )  # fmt: skip
    return MemoryAccount(
        model="toy", base=100 * MILLION, batch=2, length=64, dtype="float32", matrices="qv", rank=4, methods=methods,
        claims=(ClaimLine(name="LoRA", paper="350GB", ours="0.5 GB"),) if estimated else (), notes=("made up",),
    )  # fmt: skip


def _quality() -> Analysis:
    runs = [
        Scored(method=m, parameters=10**n, score=n + bias, task=t)
        for n in (2, 4)
        for m, bias in (("LoRA", 1.0), ("FT", 0.0))
        for t in ("WikiSQL", "MNLI-m")
    ]
    return quality(runs)


RESULTS: dict[str, Callable[[], Analysis]] = {
    "subspace": lambda: subspace(made(), made(2, seed=1), control=True),
    "subspace-many": lambda: subspace(made(layers=9), made(2, seed=1, layers=9)),
    "within": lambda: within(made()),
    "against-base": _against,
    "latency": _latency,
    "throughput": lambda: Throughput(
        model="toy",
        machine="cpu",
        batch=1,
        length=2,
        rank=3,
        rounds=4,
        speeds=(_speed("full", 10.0, 40), _speed("LoRA", 13.0, 20)),
    ),
    "switch": _switch,
    "deployment": lambda: deployment(model="GPT-3", base_bytes=350 * 10**9, adapter_bytes=2 * 18_874_368),
    "memory": lambda: _memory(True),
    "memory-states": lambda: _memory(False),
    "quality": _quality,
    "figure2": figure2,
    "which": lambda: _recipes("which", False),
    "which-scored": lambda: _recipes("which", True),
    "sweep": lambda: _recipes("rank-sweep", False),
    "sweep-scored": lambda: _recipes("rank-sweep", True),
    "protocol": protocol,
    "low-data": lambda: collect([("LoRA", 100, 0.5), ("LoRA", 100, 0.7), ("LoRA", 1000, 0.8), ("FT", 100, 0.4)]),
}
"""One small result of each analysis."""
