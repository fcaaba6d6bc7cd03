"""Every number of the paper that follows from shapes alone, each beside what the paper prints for it.

What the modules can say is asked of them (``deltaw.paper.models``); bottleneck adapters and prefixes have no module in
a transformers model and are counted by their formulas. Ranks of adapters that the paper does not print are inferred
from its labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial

from deltaw.paper import counts, models
from deltaw.paper.ledger import Case
from deltaw.paper.models import paper_model
from deltaw.paper.tables import find_cell

__all__ = ["GROUPS", "paper_cases"]

GPT3 = "gpt3-175b"
README = "README of microsoft/LoRA"
VALUES_ALONE = "values alone; a file holds names and offsets besides"


def paper_cases() -> tuple[Case, ...]:
    """List the numbers, group by group.

    Returns:
        The cases; nothing is counted on modules yet.

    Example:
        >>> next(case.exact for case in paper_cases() if case.id == "lora/GPT-2 M qv r=4")
        393216
    """
    return tuple(case for group in GROUPS.values() for case in group())


def _lora(
    name: str, matrices: str, rank: int, label: str = "", source: str = "", *, errata: str = "", note: str = ""
) -> Case:
    known = paper_model(name)
    number = len(matrices) * known.layers
    return Case(
        group="lora",
        name=f"{known.title} {matrices} r={rank}",
        formula=f"2 x {number} x {known.width} x {rank}",
        exact=counts.lora_count(number, known.width, rank),
        label=label,
        source=source,
        errata=tuple(errata.split()),
        note=note,
        modules=partial(models.lora_parameters, name, matrices, rank),
    )


def _lora_cases() -> Iterator[Case]:
    yield _lora("roberta-base", "qv", 8, "0.3M", "Table 2")
    yield _lora("roberta-large", "qv", 8, "0.8M", "Table 2")
    yield _lora("deberta-v2-xxlarge", "qv", 16, "4.7M", "Table 2", errata="ERR2")
    yield _lora("deberta-v2-xxlarge", "qv", 8, "4.7M", "Table 2", errata="ERR2", note="as Table 10 prints it")
    yield _lora("gpt2", "qv", 4)
    for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        own = ("0.35M", "Table 3") if rank == 4 else ("", "")
        yield _lora("gpt2-medium", "qv", rank, *own, errata="ERR1" if rank == 4 else "")
    yield _lora("gpt2-large", "qv", 4, "0.77M", "Table 3", errata="ERR1")
    yield _lora(GPT3, "v", 2, "4.7M", "Tables 4, 15")
    yield _lora(GPT3, "qv", 1, "4.7M", "Table 15")
    yield _lora(GPT3, "qv", 2, "9.4M", "Table 15")
    yield _lora(GPT3, "qkvo", 1, "9.4M", "Table 15")
    for letter in "qkvo":
        yield _lora(GPT3, letter, 8, "18M", "Table 5", errata="ERR6")
    yield _lora(GPT3, "qk", 4, "18M", "Table 5", errata="ERR6")
    yield _lora(GPT3, "qv", 4, "18.8M", "Table 15", errata="ERR6", note="Table 5 prints 18M")
    yield _lora(GPT3, "qkvo", 2, "18.8M", "Table 15", errata="ERR5 ERR6", note="Table 5 prints 18M, section D.4 37.7M")
    yield _lora(GPT3, "qv", 8, "37.7M", "Table 15")
    yield _lora(GPT3, "qkvo", 4, "37.7M", "Tables 4, 15", errata="ERR5")
    yield _lora(GPT3, "qv", 64, "301.9M", "Table 15", errata="ERR6")
    yield _lora(GPT3, "qkvo", 64, "603.8M", "Table 15", errata="ERR6")


def _stored(name: str, rank: int, label: str, *, labels: int = 0, note: str = "", errata: str = "") -> Case:
    """Bytes of an adapter in float32, its head with it; the README prints MB and means MiB."""
    known = paper_model(name)
    matrices = 2 * known.layers
    lora = f"2 x {matrices} x {known.width} x {rank}"
    d = known.width
    head = f" + {d}^2 + {d} + {d} x {labels} + {labels}" if labels else ""
    values = counts.lora_count(matrices, d, rank) + (counts.head_count(d, labels) if labels else 0)

    def stored() -> int:
        return 4 * models.lora_plan(name, "qv", rank, labels=labels or None, head=bool(labels)).parameters

    return Case(
        group="checkpoint",
        name=f"{known.title} qv r={rank}, fp32" + (f", head of {labels} labels" if labels else ""),
        formula=f"4 x ({lora}{head})",
        exact=4 * values,
        unit="bytes",
        label=label,
        source=README,
        reads_in=" MiB",
        errata=tuple(errata.split()),
        note=note,
        modules=stored,
    )


def _checkpoint_cases() -> Iterator[Case]:
    yield Case(
        group="checkpoint",
        name="GPT-3 175B qv r=4, fp16",
        formula="2 x (2 x 192 x 12288 x 4)",
        exact=2 * counts.lora_count(192, 12288, 4),
        unit="bytes",
        label="35MB",
        source="section 4.2",
        note="36.0 MiB or 37.7 MB, neither of which is 35",
        modules=lambda: 2 * models.lora_parameters(GPT3, "qv", 4),
    )
    yield _stored("roberta-base", 8, "3.4MB", labels=3, errata="ERR17", note="the released file has 3,568,073 bytes")
    yield _stored("roberta-large", 8, "7.1MB", labels=3, errata="ERR17", note=f"7.02 MiB, {VALUES_ALONE}")
    yield _stored("deberta-v2-xxlarge", 16, "27.1MB", labels=3, errata="ERR2 ERR17", note=f"27.02 MiB, {VALUES_ALONE}")
    yield _stored("gpt2-medium", 4, "1.5MB", errata="ERR1")
    yield _stored("gpt2-large", 4, "2.3MB", errata="ERR1", note="2.81 MiB; the listed size is unexplained")


def _adapter(name: str, kind: str, rank: int, label: str, source: str, *, errata: str = "", note: str = "") -> Case:
    known = paper_model(name)
    number = known.layers * (2 if kind == "H" else 1)
    norms = known.layers if kind == "L" else 0
    d = known.width
    return Case(
        group="adapter",
        name=f"{known.title} {kind} r={rank}",
        formula=f"{number} x (2 x {d} x {rank} + {rank} + {d})" + (f" + 2 x {norms} x {d}" if norms else ""),
        exact=counts.adapter_count(number, d, rank, norms),
        label=label,
        source=source,
        errata=tuple(errata.split()),
        note=note,
    )


def _adapter_cases() -> Iterator[Case]:
    for rank, label in ((1, "7.1M"), (4, "21.2M"), (8, "40.1M"), (16, "77.9M"), (64, "304.4M")):
        yield _adapter(GPT3, "H", rank, label, "Tables 4, 15" if rank in (1, 8) else "Table 15")
    yield _adapter("roberta-large", "P", 64, "3.0M", "Table 2", errata="ERR10")
    yield _adapter("roberta-large", "P", 16, "0.8M", "Table 2")
    yield _adapter("roberta-large", "H", 64, "6.0M", "Table 2", errata="ERR10")
    yield _adapter("roberta-large", "H", 8, "0.8M", "Table 2")
    inferred = "bottleneck inferred from the label"
    yield _adapter("gpt2-medium", "L", 6, "0.37M", "Table 3", note=inferred)
    yield _adapter("gpt2-medium", "L", 224, "11.09M", "Table 3", note=inferred)
    yield _adapter("gpt2-medium", "H", 112, "11.09M", "Table 3", note=f"{inferred}, which is what L has at 224")
    yield _adapter("gpt2-large", "L", 8, "0.88M", "Table 3", note=inferred)
    yield _adapter("gpt2-large", "L", 248, "23.00M", "Table 3", note=inferred)


def _prefix_cases() -> Iterator[Case]:
    known = paper_model(GPT3)
    d, blocks = known.width, known.layers
    for prefix, label in ((32, "0.4M"), (64, "0.9M"), (128, "1.7M"), (256, "3.2M"), (512, "6.4M")):
        yield Case(
            group="prefix",
            name=f"GPT-3 175B PreEmbed lp={prefix}, li=8",
            formula=f"{d} x ({prefix} + 8)",
            exact=counts.prefix_embedding_count(d, prefix, 8),
            label=label,
            source="Tables 4, 15" if prefix == 256 else "Table 15",
            errata=("ERR6",) if prefix == 32 else (),
        )
    sizes = ((2, 2, "5.1M"), (8, 0, "10.1M"), (8, 8, "20.2M"), (32, 4, "44.1M"), (64, 0, "76.1M"))
    for prefix, infix, label in sizes:
        yield Case(
            group="prefix",
            name=f"GPT-3 175B PreLayer lp={prefix}, li={infix}",
            formula=f"{blocks} x {d} x ({prefix} + {infix})",
            exact=counts.prefix_layer_count(blocks, d, prefix, infix),
            label=label,
            source="Tables 4, 15" if (prefix, infix) == (8, 8) else "Table 15",
            errata=("ERR7",),
        )


def _combined_cases() -> Iterator[Case]:
    known = paper_model(GPT3)
    d, blocks = known.width, known.layers
    for rank, label in ((8, "37.8M"), (32, "151.1M"), (64, "302.1M")):
        yield Case(
            group="combined",
            name=f"GPT-3 175B LoRA+PE qv r={rank}, lp=8, li=4",
            formula=f"2 x {2 * blocks} x {d} x {rank} + {d} x (8 + 4)",
            exact=counts.lora_count(2 * blocks, d, rank) + counts.prefix_embedding_count(d, 8, 4),
            label=label,
            source="Table 15",
            errata=("ERR6",) if rank == 8 else (),
        )
    yield Case(
        group="combined",
        name="GPT-3 175B LoRA+PL qv r=8, lp=8, li=4",
        formula=f"2 x {2 * blocks} x {d} x 8 + {blocks} x {d} x (8 + 4)",
        exact=counts.lora_count(2 * blocks, d, 8) + counts.prefix_layer_count(blocks, d, 8, 4),
        label="52.8M",
        source="Table 15",
        errata=("ERR7",),
    )


def _total(name: str, label: str = "", source: str = "", *, errata: str = "") -> Case:
    known = paper_model(name)
    size = (known.vocabulary, known.positions, known.layers, known.width)
    v, t, layers, d = size
    return Case(
        group="total",
        name=known.title,
        formula=f"{v} x {d} + {t} x {d} + {layers} x (12 x {d}^2 + 13 x {d}) + 2 x {d}",
        exact=counts.model_total(*size),
        label=label,
        source=source,
        errata=tuple(errata.split()),
        modules=partial(models.total_parameters, name),
    )


def _encoder(name: str, label: str) -> Case:
    known = paper_model(name)
    size = (known.vocabulary, known.positions, known.layers, known.width)
    v, t, layers, d = size
    return Case(
        group="total",
        name=f"{known.title}, encoder",
        formula=f"({v} + {t} + 1) x {d} + {layers} x (12 x {d}^2 + 13 x {d}) + 2 x {d}",
        exact=counts.encoder_total(*size),
        label=label,
        source="Table 2",
        note="the label is a round figure for the model with some head; this is the encoder alone",
        modules=partial(models.body_parameters, name),
    )


def _total_cases() -> Iterator[Case]:
    yield _total("gpt2")
    yield _total("gpt2-medium", "354.92M", "Table 3", errata="ERR9")
    yield _total("gpt2-large", "774.03M", "Table 3")
    yield _total(GPT3, "175,255.8M", "Table 4", errata="ERR8")
    yield _encoder("roberta-base", "125.0M")
    yield _encoder("roberta-large", "355.0M")


def _baseline_cases() -> Iterator[Case]:
    known = paper_model("gpt2-medium")
    d = known.width
    top = partial(models.block_parameters, "gpt2-medium", 2)
    for label, source, note in (
        ("25.19M", "Table 3", ""),
        ("24M", "Tables 13, 14", "24.0 in units of 2^20 (inferred)"),
    ):
        yield Case(
            group="baseline", name=f"GPT-2 M FT-Top2, {source}", formula=f"2 x (12 x {d}^2 + 13 x {d})",
            exact=counts.top_blocks_count(d), label=label, source=source, note=note, modules=top,
        )  # fmt: skip
    for name, label in (("roberta-base", "0.1M"), ("roberta-large", "")):
        known = paper_model(name)
        d, layers = known.width, known.layers
        yield Case(
            group="baseline", name=f"{known.title} BitFit", formula=f"{layers} x 11 x {d} + {d}",
            exact=counts.bias_count(layers, d, outside=d), label=label, source="Table 2" if label else "",
            modules=partial(models.bias_parameters, name),
        )  # fmt: skip
    known = paper_model(GPT3)
    d, layers = known.width, known.layers
    yield Case(
        group="baseline", name="GPT-3 175B BitFit", formula=f"{layers} x 11 x {d}",
        exact=counts.bias_count(layers, d), label="14.2M", source="Table 4", errata=("ERR8",),
        note="biases of the blocks; the norm after them has 12,288 more",
        modules=partial(models.bias_parameters, GPT3),
    )  # fmt: skip


def _head_cases() -> Iterator[Case]:
    for name in ("roberta-base", "roberta-large", "deberta-v2-xxlarge"):
        known = paper_model(name)
        d = known.width
        for labels in (3, 2, 1):
            yield Case(
                group="head",
                name=f"{known.title}, {labels} label" + "s" * (labels > 1),
                formula=f"{d}^2 + {d} + {d} x {labels} + {labels}",
                exact=counts.head_count(d, labels),
                errata=("ERR17",),
                modules=partial(models.head_parameters, name, labels),
            )


def _number(cell: str) -> tuple[str, Fraction]:
    """The digits of a printed cell, without its spread, and their value."""
    found = find_cell(cell)
    assert found.number is not None
    return found.text.partition("+-")[0], found.number


def _latency_cases() -> Iterator[Case]:
    for row in ("batch 32, length 512", "batch 16, length 256", "batch 1, length 128"):
        base, base_ms = _number(f"table1/{row}/FT or LoRA")
        for kind in ("Adapter L", "Adapter H"):
            slow, slow_ms = _number(f"table1/{row}/{kind}")
            yield Case(
                group="latency",
                name=f"{kind}, {row}",
                formula=f"{slow} / {base} - 1",
                exact=slow_ms / base_ms - 1,
                unit="share",
                label=find_cell(f"table1/{row}/{kind} slow-down").text,
                source="Table 1",
            )


def _ratio_cases() -> Iterator[Case]:
    for rank, note in (("r=4", ""), ("r=64", "the text says: around 2")):
        (change, above), (inside, below) = (
            _number(f"table7/norm of Delta W_q/{rank}"),
            _number(f"table7/Delta W_q/{rank}"),
        )
        yield Case(
            group="ratio", name=f"amplification at {rank}", formula=f"{change} / {inside}", exact=above / below,
            unit="ratio", label=find_cell(f"table7/amplification/{rank}").text, source="section 7.3, H.4", note=note,
        )  # fmt: skip
    fast, more = _number("claims/tokens a second of a V100, LoRA/stated")
    slow, less = _number("claims/tokens a second of a V100, full fine-tuning/stated")
    yield Case(
        group="ratio", name="throughput, LoRA over full fine-tuning", formula=f"{fast} / {slow} - 1",
        exact=more / less - 1, unit="share", label="25%", source="section 4.2",
        note="the stated 25% is the time saved, on the next line",
    )  # fmt: skip
    yield Case(
        group="ratio", name="time of a token saved", formula=f"1 - {slow} / {fast}", exact=1 - less / more,
        unit="share", label="25%", source="section 4.2",
    )  # fmt: skip


def _deployment_cases() -> Iterator[Case]:
    adapter = 2 * counts.lora_count(192, 12288, 4)
    base = 350 * 10**9
    total = counts.model_total(50257, 2048, 96, 12288)
    ours = "exact bytes of the adapter; the label rests on 35 MB"
    yield Case(
        group="deployment", name="checkpoint, full over LoRA qv r=4", formula=f"350000000000 / {adapter}",
        exact=Fraction(base, adapter), unit="ratio", label="10,000x", source="section 4.2", note=ours,
    )  # fmt: skip
    yield Case(
        group="deployment", name="trained values, full over LoRA qv r=4", formula=f"{total} / {adapter // 2}",
        exact=Fraction(total, adapter // 2), unit="ratio", label="10,000x", source="abstract", errata=("ERR8",),
        note="the abstract says 10,000 times fewer, of no stated rank",
    )  # fmt: skip
    yield Case(
        group="deployment", name="100 tasks, LoRA qv r=4", formula=f"350000000000 + 100 x {adapter}",
        exact=counts.deployment_bytes(base, adapter, 100), unit="bytes", label="354GB", source="footnote 4",
    )  # fmt: skip
    yield Case(
        group="deployment", name="100 tasks, full fine-tuning", formula="100 x 350000000000",
        exact=counts.deployment_bytes(0, base, 100), unit="bytes", label="35TB", source="footnote 4",
    )  # fmt: skip


GROUPS = {
    "lora": _lora_cases,
    "checkpoint": _checkpoint_cases,
    "adapter": _adapter_cases,
    "prefix": _prefix_cases,
    "combined": _combined_cases,
    "total": _total_cases,
    "baseline": _baseline_cases,
    "head": _head_cases,
    "latency": _latency_cases,
    "ratio": _ratio_cases,
    "deployment": _deployment_cases,
}
"""Group -> its cases, in the order they are printed."""
