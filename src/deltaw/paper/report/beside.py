"""Which of our rows stands beside which row of the paper, and which of our numbers beside which column."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaw.paper.reproduce.row import TIMES

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
        alone: our rows that no row of the paper's table stands beside, in words -> the rows.
    """

    rows: dict[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    summary: str = "mean"
    note: str = ""
    alone: dict[str, tuple[str, ...]] = field(default_factory=dict)


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
        "which full fine-tuning trains and the others leave but where it is named.",
        alone={
            "LoRA and the pooler": _glue("lora-pooler"),
            "LoRA, from the MNLI adapter": _glue("lora-from-mnli"),
            f"FT, {TIMES} times the steps": _glue("full-long"),
            f"LoRA, {TIMES} times the steps": _glue("lora-long"),
        },
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
        alone={
            f"FT, {TIMES} times the steps": ("e2e/full-long",),
            f"LoRA, {TIMES} times the steps": ("e2e/lora-qv-r4-long",),
            "PreEmbed": ("e2e/prefix-embedding",),
            **{
                f"{title} at LoRA's rate": (f"e2e/{name}-matched-rate",)
                for title, name in (
                    ("FT", "full"),
                    ("FT-Top2", "top2"),
                    ("PreEmbed", "prefix-embedding"),
                    ("PreLayer", "prefix-layer"),
                )
            },
        },
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
            name: tuple(f"low-data/sst2_{size}-{key}" for size in ("100", "1k"))
            for name, key in (
                ("FT", "full"),
                ("PreEmbed", "prefix-embedding"),
                ("PreLayer", "prefix-layer"),
                ("LoRA", "lora"),
            )
        },
        columns=tuple(
            Column(paper=f"n={size}", ours="SST-2", factor=100.0, among=f"*/sst2_{size}-*") for size in ("100", "1k")
        ),
        note="The paper's columns are accuracies on MNLI-m, ours on SST-2, with epochs, batch, ranks and lengths of "
        "Table 17 and rates for the small model.",
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
