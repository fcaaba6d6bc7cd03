"""Time of a batch of many adapters: `python benchmarks/mixed_batch.py` prints a table and writes it to results/.

A Llama-like model of 162M parameters, every linear layer of its blocks adapted at rank 16. 32 rows are spread over 1, 8
or 32 adapters, in turns, so that rows of one adapter do not stand together. All competitors run in one process and take
turns; ratios to the base's own forward are taken round by round, and their median and spread are told. Before anything
is timed, outputs of all are compared, with each other and with each adapter run alone.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import Row, Spread, cpu_seconds, markdown, one_thread, parser, ratio, take_turns, write
from torch import Tensor

import deltaw as dw

ROWS, TOKENS, RANK, MOST = 32, 64, 16, 32
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


def measure(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every forward, round by round."""
    return take_turns({name: partial(cpu_seconds, run) for name, run in runs.items()}, rounds)


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


def rows_of(tokens: int, count: int, taken: dict[str, list[float]], read: str) -> list[Row]:
    """Lines of the main table: a batch beside the base's forward and PEFT's."""
    found = []
    for other, against in (("base", "base"), (f"PEFT {count}", "PEFT adapter_names")):
        mine, his = taken[f"deltaw {count}"], taken[other]
        found.append(Row(
            work=f"mixed batch: 32 rows of {tokens}, {count} adapter{'s' * (count > 1)}{read}", against=against,
            ours=f"{statistics.median(mine):.3f} CPU s", theirs=f"{statistics.median(his):.3f} CPU s",
            ratio=ratio(mine, his), limit=1.0 if other != "base" else 1.15 if tokens == TOKENS else None,
        ))  # fmt: skip
    return found


def table(options: argparse.Namespace) -> tuple[list[list[str]], list[Row]]:
    """Measure everything; rows of the table, and of the main one."""
    base = llama(options.layers)
    model = ours(base)
    peft_model = theirs(base, model)
    lines, rows = [], []
    for tokens in options.tokens:
        batch = Batch(base, tokens)
        runs = competitors(base, model, peft_model, batch)
        for on in (True, False) if options.without_bank else (True,):
            with banked(model, on):
                verify(runs, model, batch)
                taken = measure(runs, options.rounds)
            for count in COUNTS:
                cells: list[Spread] = [ratio(taken[f"{name} {count}"], taken["base"]) for name in ("deltaw", "PEFT")]
                read = f"{bytes_read(base, model, count, batch):.2f}" if tokens == 1 else ""
                place, time_of_base = "bank" if on else "none", f"{statistics.median(taken['base']):.3f}"
                lines.append([str(tokens), str(count), place, time_of_base, *map(str, cells), read])
                print(lines[-1], flush=True)
                if on:
                    rows += rows_of(tokens, count, taken, f" ({read}x the bytes read)" if read else "")
    return lines, rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--tokens", type=int, nargs="+", default=[TOKENS, 1], choices=[TOKENS, 1])
    made.add_argument("--without-bank", action="store_true", help="also measure adapters in their own tensors")
    options = made.parse_args()
    one_thread()
    warnings.filterwarnings("ignore", module="peft")
    with torch.no_grad():
        lines, rows = table(options)
    head = ["tokens a row", "adapters", "slots", "base, s", "deltaw", "PEFT", "bytes"]
    text = [
        f"CPU seconds of a forward in fp32, one thread, {ROWS} rows of 64 tokens, or of 1 token after a cache of 64; "
        f"Llama-like, {options.layers} layers of width 1024, all linear layers of the blocks at rank {RANK}; logits of "
        f"the last token. Ratio to the base's forward, median of {options.rounds} rounds and its spread, competitors "
        "taking turns. PEFT: `adapter_names`. Bytes: weights, cache and adapters read, over the base's.",
        "Made by `python benchmarks/mixed_batch.py`; outputs were compared before: deltaw with PEFT, with each adapter "
        "alone, and rows of the base with the base bit for bit.",
        "",
        *markdown(head, lines, words=3),
    ]
    write("mixed_batch", options, "A batch of many adapters", text, rows)


if __name__ == "__main__":
    main()
