"""Which of our rows stands beside which row of the paper, and which of our numbers beside which column."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BESIDE", "Column", "Compared"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the paper, a value of ours, or both side by side.

    Args:
        paper: the paper's column, empty where ours has none.
        ours: name of our value, empty where only the paper's is shown.
        factor: to the paper's unit.
        among: pattern of the rows that the value is read from, as of file names.
    """

    paper: str = ""
    ours: str = ""
    factor: float = 1.0
    among: str = "*"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a table is set beside ours.

    Args:
        rows: row of the paper -> our rows that stand beside it (of several, each fills the columns it has).
        columns: what is shown.
        summary: ``mean`` or ``median`` over seeds, as the paper's table has it.
        note: how ours differ, a sentence.
    """

    rows: dict[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    summary: str = "mean"
    note: str = ""


_TEXT = (
    *(Column(paper=name, ours=name, factor=100.0 if name in ("BLEU", "METEOR", "ROUGE-L") else 1.0)
      for name in ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")),
)  # fmt: skip
_GLUE = tuple(
    Column(paper=name, ours=f"{name}, a subset of 9k" if name in ("MNLI", "QNLI") else name, factor=100.0)
    for name in ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "RTE", "STS-B")
)
_TASKS = ("cola", "sst2", "mrpc", "rte", "stsb", "mnli_9k", "qnli_9k")
_OURS = (Column(ours="BLEU", factor=100.0), Column(ours="validation loss"))
_RANKS = (1, 2, 4, 8, 64)
_SWEPT = {"q": (1, 8, 64), "qv": _RANKS, "qkvo": (1, 2, 8, 64)}
_NO_BIAS = "BitFit has no row: stories3M is of Llama's shape and has no bias."


def _glue(key: str) -> tuple[str, ...]:
    return tuple(f"glue/{task}-{key}" for task in _TASKS)


def _sweep(letters: str) -> tuple[str, ...]:
    return tuple(f"e2e/lora-{letters}-r{rank}" for rank in _SWEPT[letters])


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
        note="RoBERTa's head has a dense layer, which all methods of the paper train (ERR17); BERT's is the pooler, "
        "which full fine-tuning trains and the others leave. What LoRA reaches with it stands under what holds.",
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
        note=_NO_BIAS,
    ),
    "table5": Compared(
        rows={
            "q r=8": ("e2e/lora-q-r6",),
            "k r=8": ("e2e/lora-k-r10",),
            "v r=8": ("e2e/lora-v-r10",),
            "o r=8": ("e2e/lora-o-r6",),
            "q,k r=4": ("e2e/lora-qk-r4",),
            "q,v r=4": ("e2e/lora-qv-r4",),
            "q,k,v,o r=2": ("e2e/lora-qkvo-r2",),
        },
        columns=(Column(paper="WikiSQL"), Column(paper="MNLI"), *_OURS),
        note="Grouped heads make k and v narrower than q and o, so ours have r=6 (q, o), 10 (k, v), 4 and 2.",
    ),
    "table6": Compared(
        rows={f"WikiSQL {','.join(letters)}": _sweep(letters) for letters in _SWEPT},
        columns=tuple(Column(paper=f"r={rank}", ours="BLEU", factor=100.0, among=f"*-r{rank}") for rank in _RANKS),
        note="The paper's columns are accuracies on WikiSQL, ours BLEU on E2E.",
    ),
    "table15": Compared(
        rows={
            "PreEmbed lp=32, li=8": ("e2e/prefix-embedding",),
            "PreEmbed lp=64, li=8": ("e2e/prefix-embedding-64-8",),
            "PreEmbed lp=128, li=8": ("e2e/prefix-embedding-128-8",),
            "PreLayer lp=2, li=2": ("e2e/prefix-layer-2-2",),
            "PreLayer lp=8, li=8": ("e2e/prefix-layer",),
            "PreLayer lp=32, li=4": ("e2e/prefix-layer-32-4",),
            "PreLayer lp=64, li=0": ("e2e/prefix-layer-64-0",),
            "Adapter H r=8": ("e2e/adapter-h",),
            "LoRA qv r=1": ("e2e/lora-qv-r1",),
            "LoRA qv r=2": ("e2e/lora-qv-r2",),
            "LoRA qkvo r=1": ("e2e/lora-qkvo-r1",),
            "LoRA qv r=4": ("e2e/lora-qv-r4",),
            "LoRA qkvo r=2": ("e2e/lora-qkvo-r2",),
            "LoRA qv r=8": ("e2e/lora-qv-r8",),
            "LoRA qv r=64": ("e2e/lora-qv-r64",),
            "LoRA qkvo r=64": ("e2e/lora-qkvo-r64",),
            "LoRA+PE qv r=8": ("e2e/lora-prefix-embedding",),
            "LoRA+PL qv r=8": ("e2e/lora-prefix-layer",),
        },
        columns=(Column(paper="WikiSQL"), Column(paper="MNLI-m"), *_OURS),
        note=_NO_BIAS,
    ),
    "table16": Compared(
        rows={
            "FT": ("low-data/sst2-100-full", "low-data/sst2-1000-full"),
            "LoRA": ("low-data/sst2-100-lora", "low-data/sst2-1000-lora"),
        },
        columns=(
            Column(paper="n=100", ours="SST-2", factor=100.0, among="*/sst2-100-*"),
            Column(paper="n=1k", ours="SST-2", factor=100.0, among="*/sst2-1000-*"),
        ),
        note="The paper's columns are accuracies on MNLI-m, ours on SST-2.",
    ),
    "table18": Compared(
        rows={f"r={rank}": (f"e2e/lora-qv-r{rank}",) for rank in _RANKS},
        columns=(
            Column(paper="validation loss", ours="validation loss"),
            Column(paper="BLEU", ours="BLEU", factor=100.0),
            *(Column(paper=name, ours=name) for name in ("NIST", "METEOR", "ROUGE-L", "CIDEr")),
        ),
    ),
}
