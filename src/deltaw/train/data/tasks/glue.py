"""GLUE: the eight tasks of the paper in the standard tsv layouts, and released subsets in JSON.

In these tsv files a quote is text, MRPC starts with a byte order mark, CoLA has no header line, and MNLI has two
validation files. GLUE's test labels are not public: there is no test split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from deltaw.train.data.formats.labelled import PAIR, SINGLE
from deltaw.train.data.sources.base import Row, RowProblem
from deltaw.train.data.tasks.base import Layout, License, Open, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Mapped, TaskSource, column, text
from deltaw.train.data.tasks.tables import json_rows, separated

__all__ = ["TASKS"]

_NLI = ("entailment", "neutral", "contradiction")
_TWO = ("entailment", "not_entailment")
_CARD = "the benchmark's card (nyu-mll/glue)"
_WHOLE = License(terms="other: that of each source", by=_CARD)
_UNSTATED = License(terms="none stated", by="the files themselves")


def _reader(texts: tuple[str, ...], label: str, names: Mapping[str, str] | None, kind: str) -> Open:
    """Make a reader of one tsv layout; ``names`` maps what stands in the file to class names, None for scores."""

    def read(files: list[File], split: str) -> TaskSource:
        def convert(row: Row, line: int) -> Row:
            value = str(column(row, label)).strip()
            return _labelled([text(row, name, empty=True) for name in texts], _label(value, label, names))

        return Mapped(separated(files[0], "tsv", (*texts, label)), convert, kind)

    return read


def _json_reader(names: tuple[str, ...], kind: str) -> Open:
    same = {name: name for name in names}

    def read(files: list[File], split: str) -> TaskSource:
        def convert(row: Row, line: int) -> Row:
            label = _label(text(row, "label"), "label", same)
            return _labelled([text(row, "text_a", empty=True), text(row, "text_b", empty=True)], label)

        return Mapped(json_rows(files[0]), convert, kind)

    return read


def _labelled(texts: list[str], label: str | float) -> Row:
    if len(texts) == 1:
        return {"text": texts[0], "label": label}
    return {"text_a": texts[0], "text_b": texts[1], "label": label}


def _label(value: str, name: str, names: Mapping[str, str] | None) -> str | float:
    if names is not None:
        if value not in names:
            raise RowProblem(f"{name!r} holds {value!r}, not one of {', '.join(names)}")
        return names[value]
    try:
        score = float(value)
    except ValueError:
        raise RowProblem(f"{name!r} holds {value!r}, not a score") from None
    if not 0 <= score <= 5:
        raise RowProblem(f"{name!r} holds {value}, not a score from 0 to 5")
    return score


def _task(
    name: str, folder: str, texts: tuple[str, ...], label: str, names: Mapping[str, str] | None,
    sizes: tuple[int, int], licenses: tuple[License, ...], notes: tuple[str, ...] = (),
) -> Task:  # fmt: skip
    read = _reader(texts, label, names, f"{folder} tsv")
    splits = {
        split: Split(layouts=(Layout(name="tsv", files=(f"{file}.tsv",), open=read),), rows=rows)
        for split, file, rows in (("train", "train", sizes[0]), ("valid", "dev", sizes[1]))
    }
    roles = ("text",) if len(texts) == 1 else ("text_a", "text_b")
    return Task(
        name=name,
        title=f"GLUE {folder}",
        format=SINGLE if len(texts) == 1 else PAIR,
        columns={role: role for role in (*roles, "label")},
        task="regression" if names is None else "classification",
        example="columns " + ", ".join([*texts, f"{label} ({' or '.join(names) if names else 'a score from 0 to 5'})"]),
        splits=splits,
        folders=(folder, f"glue/{folder}", f"glue_data/{folder}"),
        labels=() if names is None else tuple(names.values()),
        licenses=licenses,
        counted=_CARD,
        notes=notes,
    )


def _mnli() -> Task:
    same = {name: name for name in _NLI}
    plain = _task(
        "mnli", "MNLI", ("sentence1", "sentence2"), "gold_label", same, (392_702, 0),
        (_WHOLE,),
    )  # fmt: skip
    read = _reader(("sentence1", "sentence2"), "gold_label", same, "MNLI tsv")
    valid = {
        f"valid_{kind}": Split(layouts=(Layout(name="tsv", files=(f"dev_{kind}.tsv",), open=read),), rows=rows)
        for kind, rows in (("matched", 9_815), ("mismatched", 9_832))
    }
    both = Split(parts=("valid_matched", "valid_mismatched"), rows=19_647)
    return dataclasses.replace(plain, splits={"train": plain.splits["train"], "valid": both, **valid})


def _subset(whole: Task, folder: str) -> Task:
    """A released part of a task, under a name that says so."""
    read = _json_reader(whole.labels, f"{folder} json")
    splits = {
        split: Split(layouts=(Layout(name="json", files=(f"{file}.json",), open=read),), rows=rows)
        for split, file, rows in (("train", "train", 8_999), ("valid", "dev", 1_000))
    }
    return dataclasses.replace(
        whole,
        name=folder.lower(),
        title=f"{folder}, a subset of {whole.title}",
        example=f'{{"text_a": "It rains.", "text_b": "It is wet.", "label": "{whole.labels[0]}"}}',
        splits=splits,
        folders=(folder, f"glue/{folder}"),
        licenses=(License(terms="MIT", by="the subset's repository, ZhengxiangShi/PowerfulPromptFT"), *whole.licenses),
        counted="counted in the subset's repository",
        subset=f"9,999 labelled examples of {whole.title}: figures on it are not figures on {whole.title}",
        notes=(),
    )


def _drawn(whole: Task, count: int, suffix: str) -> Task:
    """A task whose training rows are a random draw, as the paper's MNLI-n."""
    train = dataclasses.replace(whole.splits["train"], rows=count)
    part = f"{count:,} training rows drawn from {whole.title}"
    return dataclasses.replace(
        whole,
        name=f"{whole.name}_{suffix}",
        title=f"{count:,} rows of {whole.title}",
        splits={**whole.splits, "train": train},
        subset=f"{part}; {whole.subset}" if whole.subset else part,
        draw=count,
        whole=whole.name,
    )


_SST2 = _task(
    "sst2", "SST-2", ("sentence",), "label", {"0": "negative", "1": "positive"}, (67_349, 872), (_UNSTATED, _WHOLE)
)
_COLA = _task(
    "cola", "CoLA", ("sentence",), "label", {"0": "unacceptable", "1": "acceptable"}, (8_551, 1_043),
    (_UNSTATED, _WHOLE),
)  # fmt: skip
_MRPC = _task(
    "mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", {"0": "not_equivalent", "1": "equivalent"}, (3_668, 408),
    (_UNSTATED, _WHOLE), ("a widely copied train.tsv has 3,667 rows: the pair 2750203/2750153 is not in it",),
)  # fmt: skip
_STSB = _task(
    "stsb", "STS-B", ("sentence1", "sentence2"), "score", None, (5_749, 1_500),
    (License(terms="CC BY-SA 4.0 for the scores; per source for the texts", by="its LICENSE.txt"), _WHOLE),
)  # fmt: skip
_QQP = _task(
    "qqp", "QQP", ("question1", "question2"), "is_duplicate", {"0": "not_duplicate", "1": "duplicate"},
    (363_846, 40_430), (_WHOLE,),
    ("the released train.tsv is said to have lines with too few fields; training on it then needs --bad-rows drop",),
)  # fmt: skip
_QNLI = _task(
    "qnli", "QNLI", ("question", "sentence"), "label", {name: name for name in _TWO}, (104_743, 5_463),
    (License(terms="CC BY-SA 4.0", by="SQuAD, whose paragraphs it uses; not stated in these files"), _WHOLE),
)  # fmt: skip
_RTE = _task(
    "rte", "RTE", ("sentence1", "sentence2"), "label", {name: name for name in _TWO}, (2_490, 277),
    (_UNSTATED, _WHOLE),
)  # fmt: skip
_MNLI = _mnli()
_MNLI_9K = _subset(_MNLI, "MNLI_9k")

TASKS = (
    _SST2, _COLA, _MRPC, _STSB, _QQP, _MNLI, _QNLI, _RTE,
    _MNLI_9K, _subset(_QNLI, "QNLI_9k"), _subset(_QQP, "QQP_9k"),
    _drawn(_MNLI, 100, "100"), _drawn(_MNLI, 1_000, "1k"), _drawn(_MNLI, 10_000, "10k"),
    _drawn(_MNLI_9K, 100, "100"), _drawn(_MNLI_9K, 1_000, "1k"), _drawn(_SST2, 100, "100"), _drawn(_SST2, 1_000, "1k"),
)  # fmt: skip
