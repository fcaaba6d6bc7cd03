"""What variants and initializations ask of the other settings, and what a user should know who chose one.

"Learning Rate Matters" (arXiv:2602.04998) finds nine variants within 1 to 2 % of plain LoRA once each has its own
learning rate: none is a default here, and a rate that was tuned for one does not hold for another.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INIT_HABITS", "OURS", "VARIANT_HABITS", "Habit"]


@dataclass(frozen=True, kw_only=True)
class Habit:
    """One variant or initialization.

    Args:
        remark: a line of advice, or nothing.
        rank: the rank to use where none is given; 0 for LoRA's.
        rank_reason: why.
        rate: factor on LoRA's learning rate, where none is given.
        rate_reason: why; empty for LoRA's own.
        scaled: alpha and the initialization are its settings too.
        looks: it looks at the first batches.
    """

    remark: str = ""
    rank: int = 0
    rank_reason: str = ""
    rate: float = 1.0
    rate_reason: str = ""
    scaled: bool = True
    looks: bool = False


VARIANT_HABITS: dict[str, Habit] = {
    "dora": Habit(
        remark="dora: every step reads each adapted weight once more for its norms, which costs time and memory "
        "(arXiv:2402.09353; plain LoRA at a tuned rate comes within 1-2 %, arXiv:2602.04998)",
    ),
    "lora_fa": Habit(
        remark="lora_fa: A stays random and no adapted layer keeps its input: less memory, half the parameters "
        "(arXiv:2308.03303)",
    ),
    "lora_bias": Habit(
        remark="lora_bias: where a module has no bias of its own there is none to merge B's into, and the adapter "
        "stays beside its base",
    ),
    "vera": Habit(
        remark="vera: a few vectors are trained; the random matrices, shared by all modules, are most of the file "
        "(arXiv:2310.11454)",
        rank=256,
        rank_reason="it costs one number a module; the VeRA paper takes 256 to 1024 (arXiv:2310.11454)",
        rate=10.0,
        rate_reason="10x for vera, which trains vectors alone (arXiv:2310.11454)",
        scaled=False,
    ),
}

OURS = frozenset({"dora", "lora_bias"})
"""Variants that PEFT (up to 0.21.2 at least) does not read together."""

_LARGE = "an update that starts from the largest directions wants a lower rate than LoRA's (arXiv:2602.04998)"

INIT_HABITS: dict[str, Habit] = {
    "pissa": Habit(remark=f"pissa: {_LARGE}; pissa_fast starts sooner on large layers"),
    "pissa_fast": Habit(remark=f"pissa_fast: {_LARGE}"),
    "eva": Habit(looks=True),
    "lora_ga": Habit(
        looks=True,
        remark="lora_ga: before step 1 it holds a float32 gradient of every adapted weight at once",
    ),
}
