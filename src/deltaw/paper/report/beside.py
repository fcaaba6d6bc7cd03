"""Which of our rows stands beside which row of the paper, and which of our numbers beside which column."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BESIDE", "Compared"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a table is set beside ours.

    Args:
        rows: row of the paper -> our rows that stand beside it (of several, each fills the columns it has).
        columns: (the paper's column, our value, factor to the paper's unit).
        summary: ``mean`` or ``median`` over seeds, as the paper's table has it.
    """

    rows: dict[str, tuple[str, ...]]
    columns: tuple[tuple[str, str, float], ...]
    summary: str = "mean"


_TEXT = (
    ("BLEU", "BLEU", 100.0), ("NIST", "NIST", 1.0), ("METEOR", "METEOR", 100.0), ("ROUGE-L", "ROUGE-L", 100.0),
    ("CIDEr", "CIDEr", 1.0),
)  # fmt: skip
_GLUE = (
    ("MNLI", "MNLI, a subset of 9k", 100.0), ("SST-2", "SST-2", 100.0), ("MRPC", "MRPC", 100.0),
    ("CoLA", "CoLA", 100.0), ("QNLI", "QNLI, a subset of 9k", 100.0), ("RTE", "RTE", 100.0), ("STS-B", "STS-B", 100.0),
)  # fmt: skip
_TASKS = ("cola", "sst2", "mrpc", "rte", "stsb", "mnli_9k", "qnli_9k")


def _glue(key: str) -> tuple[str, ...]:
    return tuple(f"glue/{task}-{key}" for task in _TASKS)


BESIDE: dict[str, Compared] = {
    "table2": Compared(
        rows={
            "RoB-base FT": _glue("full"),
            "RoB-base BitFit": _glue("bias"),
            "RoB-large Adpt H 0.8M": _glue("adapter-h"),
            "RoB-base LoRA": _glue("lora"),
        },
        columns=_GLUE,
        summary="median",
    ),
    "table3": Compared(
        rows={
            "M FT": ("e2e/full",),
            "M Adapter L 0.37M": ("e2e/adapter-l",),
            "M Adapter H": ("e2e/adapter-h",),
            "M FT-Top2": ("e2e/top2",),
            "M PreLayer": ("e2e/prefix-layer",),
            "M LoRA": ("e2e/lora-qv-r4",),
        },
        columns=_TEXT,
    ),
    "table5": Compared(
        rows={
            "q r=8": ("e2e/lora-q-r8",),
            "v r=8": ("e2e/lora-v-r8",),
            "q,v r=4": ("e2e/lora-qv-r4",),
            "q,k,v,o r=2": ("e2e/lora-qkvo-r2",),
        },
        columns=(("WikiSQL", "", 1.0), ("", "BLEU", 100.0), ("", "validation loss", 1.0), ("", "parameters", 1.0)),
    ),
    "table16": Compared(
        rows={
            "FT": ("low-data/sst2-100-full", "low-data/sst2-1000-full"),
            "LoRA": ("low-data/sst2-100-lora", "low-data/sst2-1000-lora"),
        },
        columns=(("n=100", "sst2-100", 100.0), ("n=1k", "sst2-1000", 100.0)),
    ),
    "table18": Compared(
        rows={f"r={rank}": (f"e2e/lora-qv-r{rank}",) for rank in (1, 2, 4, 8, 64)},
        columns=(
            ("validation loss", "validation loss", 1.0), ("BLEU", "BLEU", 100.0), ("NIST", "NIST", 1.0),
            ("METEOR", "METEOR", 1.0), ("ROUGE-L", "ROUGE-L", 1.0), ("CIDEr", "CIDEr", 1.0),
        ),
    ),
}  # fmt: skip
