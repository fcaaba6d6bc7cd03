"""Time and memory of the loss head: `python benchmarks/loss_head.py` prints a table and writes it to results/.

Cross-entropy of frozen heads of 32k and 152k rows, forward and backward to the hidden states. All competitors run in
one process and take turns; ratios are taken round by round, and their median and spread are told. Before anything is
timed, losses and gradients of all are compared. Memory is the highest sum of live storages that the operations made
(weights and hidden states are not counted), for 2048 tokens; it is compared with the profiler's count on what is timed.
Torch's own form is one operation that cannot be looked into: there it is the profiler's count of a run, in float32.

*Full logits* is transformers' own loss on ``hidden @ W.T``. *torch* is ``F.linear_cross_entropy`` with its default
options, *TRL* the function that SFTTrainer's head calls, with its tiles, and what makes a mean of it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

import deltaw as dw

ROUNDS, WARM_UPS = 7, 2
WIDTH, TOKENS = 1024, 2048
# vocabulary, dtype, tokens that are timed: a CPU without units for bfloat16 takes minutes for the full form
CASES = [
    (32_000, torch.float32, 2048), (152_064, torch.float32, 256), (32_000, torch.bfloat16, 32),
    (152_064, torch.bfloat16, 8),
]  # fmt: skip
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return ForCausalLMLoss(F.linear(hidden, weight), targets, len(weight), shift_labels=targets)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return dw.linear_cross_entropy(hidden, weight, targets, ignore_index=None) / len(targets)


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    chosen = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
    )  # type: ignore[no-untyped-call]
    return -chosen[0].sum() / len(targets)


def own_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


COMPETITORS: dict[str, Loss] = {"full logits": full, "deltaw": ours, "torch": own_torch, "TRL": trl}


class Count(TorchDispatchMode):
    """The highest sum of bytes of the storages that operations made and that are alive."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.given = {StorageWeakRef(t.untyped_storage()).cdata for t in given}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in self.given:
                    self.alive[ref.cdata] = ref, storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def counted(loss: Loss, vocab: int, dtype: torch.dtype, tokens: int) -> int:
    """Peak bytes of a step, without doing its arithmetic."""
    with FakeTensorMode():
        hidden = torch.empty(tokens, WIDTH, dtype=dtype, requires_grad=True)
        weight, targets = torch.empty(vocab, WIDTH, dtype=dtype), torch.zeros(tokens, dtype=torch.int64)
        with Count([hidden, weight, targets]) as count:
            loss(hidden, weight, targets).backward()
    return count.peak


def profiled(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> int:
    """Peak bytes of a step as the allocator sees them."""
    hidden.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(hidden, weight, targets).backward()
    now = top = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    return top


def inputs(vocab: int, dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, WIDTH, generator=draw) * 0.05).to(dtype)
    return hidden, weight, torch.randint(0, vocab, (tokens,), generator=draw)


def verify(vocab: int, dtype: torch.dtype, tokens: int) -> None:
    """Equal losses, equal gradients, and a count of bytes that the profiler confirms."""
    hidden, weight, targets = inputs(vocab, dtype, tokens)
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    first: tuple[Tensor, Tensor] | None = None
    for name, loss in COMPETITORS.items():
        hidden.grad = None
        value = loss(hidden, weight, targets)
        value.backward()
        assert hidden.grad is not None
        found = value.detach().float(), hidden.grad.float()
        first = first or found
        for a, b in zip(found, first, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < bound, name
        if name in {"full logits", "deltaw"}:
            seen, count = profiled(loss, hidden, weight, targets), counted(loss, vocab, dtype, tokens)
            assert abs(seen / count - 1) < 0.1, (name, seen, count)


def measure(vocab: int, dtype: torch.dtype, tokens: int) -> tuple[dict[str, list[float]], float]:
    """Ratios to the full form, round by round, and the full form's own time in seconds."""
    hidden, weight, targets = inputs(vocab, dtype, tokens)
    taken: dict[str, list[float]] = {name: [] for name in COMPETITORS}
    for turn in range(ROUNDS + WARM_UPS):
        for name, loss in COMPETITORS.items():
            hidden.grad = None
            start = time.process_time()
            loss(hidden, weight, targets).backward()
            if turn >= WARM_UPS:
                taken[name].append(time.process_time() - start)
    base = taken.pop("full logits")
    ratios = {n: [t / f for t, f in zip(times, base, strict=True)] for n, times in taken.items()}
    return ratios, statistics.median(base)


def liger() -> str:
    """Whether Liger's kernel can be called at all."""
    missing = [name for name in ("liger_kernel", "triton") if importlib.util.find_spec(name) is None]
    if missing or not torch.cuda.is_available():
        why = f"{' and '.join(missing)} not installed" if missing else "no GPU"
        return f"Liger's fused_linear_cross_entropy is a Triton kernel: it does not run here ({why})."
    return "Liger's fused_linear_cross_entropy is installed and is not measured by this script."


def peak(name: str, vocab: int, dtype: torch.dtype) -> float:
    """Peak MiB of a step on ``TOKENS`` tokens; nan where it is not known."""
    if name != "torch":
        return counted(COMPETITORS[name], vocab, dtype, TOKENS) / 2**20
    if dtype != torch.float32:
        return math.nan
    return profiled(COMPETITORS[name], *inputs(vocab, dtype, TOKENS)) / 2**20


def memory_rows() -> list[str]:
    rows = []
    for vocab, dtype, _ in CASES:
        peaks = {name: peak(name, vocab, dtype) for name in COMPETITORS}
        base = peaks.pop("full logits")
        cells = ["-" if math.isnan(value) else f"{value:,.0f} ({value / base:.3f})" for value in peaks.values()]
        rows.append(f"| {vocab:,} | {str(dtype).removeprefix('torch.')} | {base:,.0f} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def time_rows() -> list[str]:
    rows = []
    for vocab, dtype, tokens in CASES:
        verify(vocab, dtype, tokens)
        ratios, base = measure(vocab, dtype, tokens)
        cells = [
            f"{statistics.median(values):.3f} ({min(values):.2f} to {max(values):.2f})" for values in ratios.values()
        ]
        name = str(dtype).removeprefix("torch.")
        rows.append(f"| {vocab:,} | {name} | {tokens:,} | {base:.2f} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory, times = memory_rows(), time_rows()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        "# The loss head",
        "",
        f"{options.date}. {cpu}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()}), "
        f"{platform.system()} {platform.machine()}, one thread. Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {version('transformers')}, trl {version('trl')}, deltaw {dw.__version__}. "
        f"Load average after the run: {load}.",
        f"Cross-entropy of a frozen head on hidden states of width {WIDTH}, forward and backward. Made by `python "
        "benchmarks/loss_head.py`; losses and gradients of all were compared before, and the counts of bytes with the "
        f"profiler's. {liger()}",
        "",
        f"Peak memory of the step in MiB on {TOKENS:,} tokens, and its ratio to full logits:",
        "",
        "| vocabulary | dtype | full logits | deltaw | torch | TRL |",
        "|---:|---|---:|---:|---:|---:|",
        *memory,
        "",
        f"CPU seconds of full logits, and the ratio to it: median of {ROUNDS} rounds and its spread, competitors "
        "taking turns:",
        "",
        "| vocabulary | dtype | tokens | full logits, s | deltaw | torch | TRL |",
        "|---:|---|---:|---:|---:|---:|---:|",
        *times,
        "",
        "This CPU has no units for bfloat16: products in it are emulated, which is what the full form pays for there, "
        "and why only few tokens are timed. deltaw reads a bfloat16 head in float32 blocks on a CPU.",
        "",
        "Torch's default chunk is smaller: its memory is lower and its time higher. TRL's function is made for Triton; "
        "measured is what it falls back to on a CPU, where one of its tiles holds the 32k vocabulary whole.",
        "",
    ]
    target = Path(__file__).parent / "results" / f"loss_head_cpu_{options.date}.md"
    target.write_text("\n".join(text))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
