"""Time of a batch of many adapters: `python benchmarks/mixed_batch.py` prints a table and writes it to results/.

A Llama-like model of 162M parameters, every linear layer of its blocks adapted at rank 16. 32 rows are spread over 1, 8
or 32 adapters, in turns, so that rows of one adapter do not stand together. All competitors run in one process and take
turns; ratios to the base's own forward are taken round by round, and their median and spread are told. Before anything
is timed, outputs of all are compared, with each other and with each adapter run alone.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

import deltaw as dw

WARM_UPS, ROWS, TOKENS, RANK, MOST = 2, 32, 64, 16, 32
COUNTS = (1, 8, 32)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Runs = dict[str, Callable[[], Tensor]]


def llama(layers: int) -> Any:
    """The base, frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def ours(base: Any) -> Any:
    """A copy of the base with all adapters, whose factors are as large as training makes them."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    for place in range(MOST):
        dw.attach(model, dw.LoRAConfig(targets=TARGETS, rank=RANK, alpha=16, seed=place), f"a{place}")
        for name, parameter in model.named_parameters():
            if name.endswith(f".a{place}.lora_B"):
                parameter.data.normal_(std=0.02, generator=generator)
    return model


def theirs(base: Any, model: Any) -> Any:
    """PEFT's model with the same factors."""
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=TARGETS)
    wrapped = peft.get_peft_model(copy.deepcopy(base), config, adapter_name="a0")
    for place in range(1, MOST):
        wrapped.add_adapter(f"a{place}", config)
    for path, module in wrapped.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            for place in range(MOST):
                own = model.get_submodule(f"{path}.lora.a{place}")
                module.lora_A[f"a{place}"].weight.data.copy_(own.lora_A)
                module.lora_B[f"a{place}"].weight.data.copy_(own.lora_B)
    return wrapped.eval()


class Batch:
    """The inputs of a forward: a prompt of 64 tokens, or one token after it."""

    def __init__(self, base: Any, tokens: int) -> None:
        self.ids = torch.randint(0, 32000, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(2))
        self.tokens = tokens
        self.cache = base(self.ids[:, :TOKENS], logits_to_keep=1, use_cache=True).cache if tokens == 1 else None

    def run(self, model: Any, **names: Any) -> Tensor:
        """Logits of each row's last token."""
        if self.cache is None:
            return model(self.ids[:, :TOKENS], logits_to_keep=1, use_cache=False, **names).logits
        logits = model(self.ids[:, TOKENS:], cache=self.cache, logits_to_keep=1, **names).logits
        self.cache.crop(-1)
        return logits


def routes(count: int) -> list[str]:
    """The adapter of each row: in turns."""
    return [f"a{row % count}" for row in range(ROWS)]


def competitors(base: Any, model: Any, peft_model: Any, batch: Batch) -> Runs:
    """What is timed, by name."""

    def routed(names: list[str]) -> Tensor:
        with dw.route(model, names):
            return batch.run(model)

    runs: Runs = {"base": lambda: batch.run(base)}
    for count in COUNTS:
        runs[f"deltaw {count}"] = partial(routed, routes(count))
        runs[f"PEFT {count}"] = partial(batch.run, peft_model, adapter_names=routes(count))
    return runs


def verify(runs: Runs, model: Any, batch: Batch) -> None:
    """Outputs of both libraries agree, each row is its adapter's own, and the bank and single stacks agree."""
    for count in COUNTS:
        got = runs[f"deltaw {count}"]()
        torch.testing.assert_close(got, runs[f"PEFT {count}"](), rtol=1e-3, atol=1e-3)
        for name in {f"a{place}" for place in (0, count - 1)}:
            rows = [row for row, other in enumerate(routes(count)) if other == name]
            with dw.active(model, name):
                torch.testing.assert_close(got[rows], batch.run(model)[rows], rtol=1e-3, atol=1e-3)
    with dw.route(model, [None] * ROWS):
        if not torch.equal(batch.run(model), runs["base"]()):
            raise AssertionError("rows of the base are not the base's own")


def measure(runs: Runs, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Ratios to the base, round by round, and the base's own time in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + WARM_UPS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn >= WARM_UPS:
                taken[name].append(time.process_time() - start)
    base = taken.pop("base")
    return {n: [t / b for t, b in zip(times, base, strict=True)] for n, times in taken.items()}, statistics.median(base)


def bytes_read(base: Any, model: Any, count: int, batch: Batch) -> float:
    """Bytes of weights and cache that a forward of one token must read, over those of the base."""
    blocks = sum(p.numel() for p in base.model.layers.parameters()) + base.lm_head.weight.numel()
    cached = 0 if batch.cache is None else sum(l.keys.numel() + l.values.numel() for l in batch.cache.layers)  # noqa: E741
    adapter = sum(p.numel() for name, p in model.named_parameters() if ".lora.a0." in name)
    return (blocks + cached + count * adapter) / (blocks + cached)


@contextmanager
def banked(model: Any, on: bool) -> Iterator[None]:
    """The model's adapters in a bank, or each in its own tensors."""
    bank = dw.AdapterBank(model, size=MOST) if on else None
    yield
    if bank is not None:
        bank.close()


def table(options: argparse.Namespace) -> list[str]:
    """Measure everything; rows of the table."""
    base = llama(options.layers)
    model = ours(base)
    peft_model = theirs(base, model)
    rows = []
    for tokens in options.tokens:
        batch = Batch(base, tokens)
        runs = competitors(base, model, peft_model, batch)
        for on in (True, False) if options.without_bank else (True,):
            with banked(model, on):
                verify(runs, model, batch)
                ratios, taken = measure(runs, options.rounds)
            for count in COUNTS:
                cells = [
                    f"{statistics.median(r):.3f} ({min(r):.2f} to {max(r):.2f})"
                    for r in (ratios[f"deltaw {count}"], ratios[f"PEFT {count}"])
                ]
                read = f"{bytes_read(base, model, count, batch):.2f}" if tokens == 1 else "-"
                place = "bank" if on else "none"
                rows.append(f"| {tokens} | {count} | {place} | {taken:.3f} | {' | '.join(cells)} | {read} |")
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--layers", type=int, default=8, help="fewer are quicker; only 8 are written to results/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[TOKENS, 1], choices=[TOKENS, 1])
    parser.add_argument("--without-bank", action="store_true", help="also measure adapters in their own tensors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="peft")
    with torch.no_grad():
        rows = table(options)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        "# A batch of many adapters",
        "",
        f"{options.date}. {cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, one thread. Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}, peft "
        f"{version('peft')}, deltaw {dw.__version__}. Load average after the run: {load}.",
        f"CPU seconds of a forward in fp32, {ROWS} rows of 64 tokens, or of 1 token after a cache of 64; Llama-like, "
        f"{options.layers} layers of width 1024, all linear layers of the blocks at rank {RANK}; logits of the last "
        f"token. Ratio to the base's forward, median of {options.rounds} rounds and its spread, competitors taking "
        "turns. PEFT: `adapter_names`. Bytes: weights, cache and adapters read, over the base's.",
        "Made by `python benchmarks/mixed_batch.py`; outputs were compared before: deltaw with PEFT, with each adapter "
        "alone, and rows of the base with the base bit for bit.",
        "",
        "| tokens a row | adapters | slots | base, s | deltaw | PEFT | bytes |",
        "|---:|---:|---|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    if options.layers == 8 and options.tokens == [TOKENS, 1]:
        target = Path(__file__).parent / "results" / f"mixed_batch_cpu_{options.date}.md"
        target.write_text("\n".join(text))
        print(f"wrote {target}")


if __name__ == "__main__":
    main()
