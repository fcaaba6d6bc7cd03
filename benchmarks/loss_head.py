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

import importlib.util
import math
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from harness import Row, Spread, cpu_seconds, markdown, one_thread, parser, ratio, take_turns, write
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


def measure(vocab: int, dtype: torch.dtype, tokens: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every form, round by round."""
    hidden, weight, targets = inputs(vocab, dtype, tokens)

    def spent(loss: Loss) -> float:
        hidden.grad = None
        return cpu_seconds(lambda: loss(hidden, weight, targets).backward())

    return take_turns({name: partial(spent, loss) for name, loss in COMPETITORS.items()}, rounds)


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


def memory(rows: list[Row]) -> list[list[str]]:
    """Peaks of all cases; deltaw's go to the main table too."""
    lines = []
    for vocab, dtype, _ in CASES:
        peaks = {name: peak(name, vocab, dtype) for name in COMPETITORS}
        base, kind = peaks["full logits"], str(dtype).removeprefix("torch.")
        others = {name: value for name, value in peaks.items() if name != "full logits"}
        cells = ["" if math.isnan(value) else f"{value:,.0f} ({value / base:.3f})" for value in others.values()]
        lines.append([f"{vocab:,}", kind, f"{base:,.0f}", *cells])
        print(lines[-1], flush=True)
        for name, limit in (("full logits", 0.1 if vocab == 32_000 else None), ("TRL", 1.0)):
            rows.append(Row(
                work=f"loss head: memory, vocabulary {vocab:,}, {TOKENS:,} tokens, {kind}", against=name,
                ours=f"{peaks['deltaw']:,.0f} MiB", theirs=f"{peaks[name]:,.0f} MiB",
                ratio=Spread.of([peaks["deltaw"] / peaks[name]]), limit=limit,
            ))  # fmt: skip
    return lines


def times(rows: list[Row], rounds: int) -> list[list[str]]:
    """Times of all cases; deltaw's go to the main table too."""
    lines = []
    for vocab, dtype, tokens in CASES:
        verify(vocab, dtype, tokens)
        taken = measure(vocab, dtype, tokens, rounds)
        base, kind = taken["full logits"], str(dtype).removeprefix("torch.")
        cells = [str(ratio(values, base)) for name, values in taken.items() if name != "full logits"]
        lines.append([f"{vocab:,}", kind, f"{tokens:,}", f"{statistics.median(base):.2f}", *cells])
        print(lines[-1], flush=True)
        for name, limit in (("full logits", 0.95), ("TRL", 1.0)):
            rows.append(Row(
                work=f"loss head: time, vocabulary {vocab:,}, {tokens:,} tokens, {kind}", against=name,
                ours=f"{statistics.median(taken['deltaw']):.3f} CPU s",
                theirs=f"{statistics.median(taken[name]):.3f} CPU s", ratio=ratio(taken["deltaw"], taken[name]),
                limit=limit,
            ))  # fmt: skip
    return lines


def main() -> None:
    options = parser(__doc__).parse_args()
    one_thread()
    rows: list[Row] = []
    held, taken = memory(rows), times(rows, options.rounds)
    capability = torch.backends.cpu.get_cpu_capability()
    text = [
        f"Cross-entropy of a frozen head on hidden states of width {WIDTH}, forward and backward, one thread "
        f"({capability}). Made by `python benchmarks/loss_head.py`; losses and gradients of all were compared before, "
        f"and the counts of bytes with the profiler's. {liger()}",
        "",
        f"Peak memory of the step in MiB on {TOKENS:,} tokens, and its ratio to full logits:",
        "",
        *markdown(["vocabulary", "dtype", "full logits", "deltaw", "torch", "TRL"], held, words=2),
        "",
        f"CPU seconds of full logits, and the ratio to it: median of {options.rounds} rounds and its spread, "
        "competitors taking turns:",
        "",
        *markdown(["vocabulary", "dtype", "tokens", "full logits, s", "deltaw", "torch", "TRL"], taken, words=2),
        "",
        "This CPU has no units for bfloat16: products in it are emulated, which is what the full form pays for there, "
        "and why only few tokens are timed. deltaw reads a bfloat16 head in float32 blocks on a CPU.",
        "",
        "Torch's default chunk is smaller: its memory is lower and its time higher. TRL's function is made for Triton; "
        "measured is what it falls back to on a CPU, where one of its tiles holds the 32k vocabulary whole.",
    ]
    write("loss_head", options, "The loss head", text, rows, ("trl",))


if __name__ == "__main__":
    main()
