"""Time of a training step of one layer: `python benchmarks/step.py` prints a table and writes it to results/.

The layer has Llama's shape. *Floor* is the same layer, frozen: forward, and backward to its input. All competitors run
in one process and take turns; ratios are taken round by round, and their median and spread are told. Before anything is
timed, outputs and gradients of all are compared on the same factors.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaw as dw

ROUNDS, WARM_UPS = 9, 2
WIDTH, INNER, TOKENS = 1024, 3072, 512
QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Layer(nn.Module):
    """Grouped attention of 16 heads and 4 groups, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH // 4, bias=False), nn.Linear(WIDTH, WIDTH // 4, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 64)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(a.transpose(1, 2).flatten(-2))
        h = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def competitors(targets: list[str], rank: int, dropout: float) -> dict[str, nn.Module]:
    """The same layer in every dress, with the same factors."""
    import peft

    torch.manual_seed(0)
    base = Layer()
    ours, full = copy.deepcopy(base), copy.deepcopy(base)
    dw.attach(ours, dw.LoRAConfig(targets=targets, rank=rank, alpha=16, dropout=dropout, seed=0))
    config = peft.LoraConfig(r=rank, lora_alpha=16, target_modules=targets, lora_dropout=dropout)
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name in targets:
            mine, his = ours.get_submodule(f"{name}.lora.default"), theirs.get_submodule(f"base_model.model.{name}")
            mine.lora_B.normal_(std=0.01)  # type: ignore[union-attr, operator]
            his.lora_A["default"].weight.copy_(mine.lora_A)  # type: ignore[union-attr, index, operator]
            his.lora_B["default"].weight.copy_(mine.lora_B)  # type: ignore[union-attr, index, operator]
    return {"floor": base.requires_grad_(False), "deltaw": ours, "PEFT": theirs, "full fine-tuning": full}


def verify(made: dict[str, nn.Module], targets: list[str], x: Tensor) -> None:
    """Without dropout, outputs and gradients of both libraries agree."""
    outs = {}
    for name in ("deltaw", "PEFT"):
        model = made[name].eval()
        out = model(x)
        out.square().mean().backward()
        outs[name] = out.detach()
    torch.testing.assert_close(outs["deltaw"], outs["PEFT"], rtol=1e-4, atol=1e-4)
    for target in targets:
        mine: Any = made["deltaw"].get_submodule(f"{target}.lora.default")
        his: Any = made["PEFT"].get_submodule(f"base_model.model.{target}")
        torch.testing.assert_close(mine.lora_A.grad, his.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(mine.lora_B.grad, his.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-6)


def measure(targets: list[str], rank: int, dropout: float) -> tuple[dict[str, list[float]], float]:
    """Ratios to the floor, round by round, and the floor's own time in seconds."""
    made = competitors(targets, rank, dropout)
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    dy = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    verify(made, targets, x)
    for model in made.values():
        model.train()
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(ROUNDS + WARM_UPS):
        for name, model in made.items():
            start = time.process_time()
            model(x).backward(dy)
            if turn >= WARM_UPS:
                taken[name].append(time.process_time() - start)
    floor = taken.pop("floor")
    return {n: [t / f for t, f in zip(times, floor, strict=True)] for n, times in taken.items()}, statistics.median(
        floor
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for label, targets, rank in (("q, v, r 8", QV, 8), ("all linear, r 16", ALL, 16)):
        for dropout in (0.0, 0.1):
            ratios, floor = measure(targets, rank, dropout)
            cells = [
                f"{statistics.median(values):.3f} ({min(values):.2f} to {max(values):.2f})"
                for values in ratios.values()
            ]
            rows.append(f"| {label} | {dropout} | {floor:.3f} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        "# A training step of one layer",
        "",
        f"{options.date}. {cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, one thread. Python "
        f"{platform.python_version()}, torch {torch.__version__}, peft {version('peft')}, deltaw {dw.__version__}. "
        f"Load average after the run: {load}.",
        f"CPU seconds of forward and backward, Llama's layer of width {WIDTH} on {TOKENS} tokens, fp32; ratio to the "
        f"floor (the frozen layer), median of {ROUNDS} rounds and its spread, competitors taking turns.",
        "Made by `python benchmarks/step.py`; outputs and gradients of deltaw and PEFT were compared before.",
        "",
        "| adapted | dropout | floor, s | deltaw | PEFT | full fine-tuning |",
        "|---|---|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    target = Path(__file__).parent / "results" / f"step_cpu_{options.date}.md"
    target.write_text("\n".join(text))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
