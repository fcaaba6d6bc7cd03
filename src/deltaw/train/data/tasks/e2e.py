"""E2E NLG: the paper's text files (``record||text``) and the challenge's own csv files.

The paper's files are the csv's records with four slots under other names and with tokenized texts.
"""

from __future__ import annotations

import re

from deltaw.train.data.formats.prompt_completion import KIND
from deltaw.train.data.sources.base import Row, RowProblem
from deltaw.train.data.tasks.base import Layout, License, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Mapped, TaskSource, text
from deltaw.train.data.tasks.tables import lines, separated

__all__ = ["TASK", "encode"]

RENAMED = {
    "eatType": "Type",
    "familyFriendly": "family friendly",
    "priceRange": "price",
    "customerrating": "customer rating",
}
_SLOT = re.compile(r"\s*([A-Za-z][A-Za-z ]*)\[([^\]]*)\]\s*(?:,|$)")


def encode(record: str) -> str:
    """Write a record of the csv as the paper's files write it.

    Args:
        record: such as ``name[Cotto], eatType[pub]``.

    Returns:
        ``slot : value | slot : value``.

    Raises:
        RowProblem: if it is no such list.

    Source:
        The slots' names in e2e/train.txt of microsoft/LoRA beside those of the challenge's trainset.csv.

    Example:
        >>> encode("name[Cotto], eatType[pub], familyFriendly[no]")
        'name : Cotto | Type : pub | family friendly : no'
    """
    slots, at = [], 0
    while at < len(record):
        found = _SLOT.match(record, at)
        if found is None:
            raise RowProblem(f"no slot[value] at character {at + 1} of the record")
        slots.append(f"{RENAMED.get(found[1], found[1])} : {found[2].strip()}")
        at = found.end()
    if not slots:
        raise RowProblem("'mr' is empty")
    return " | ".join(slots)


def _row(split: str, line: int, context: str, completion: str) -> Row:
    return {"id": f"{split}-{line}", "context": context, "completion": completion, "group": "", "entry": ""}


def _text(files: list[File], split: str) -> TaskSource:
    def convert(row: Row, line: int) -> Row:
        context, completion = text(row, "prompt"), text(row, "completion")
        if "||" in completion:
            raise RowProblem("two separators '||' in the line")
        stray = next((slot for slot in context.split(" | ") if " : " not in slot), None)
        if stray is not None:
            raise RowProblem(f"no ' : ' in the slot {stray!r}")
        return _row(split, line, context, completion)

    return Mapped(lines(files[0], "||"), convert, "e2e text")


def _csv(files: list[File], split: str) -> TaskSource:
    def convert(row: Row, line: int) -> Row:
        return _row(split, line, encode(text(row, "mr")), text(row, "ref").strip())

    return Mapped(separated(files[0], "csv", ("mr", "ref")), convert, "e2e csv")


def _split(stem: str, csv: str, rows: int, inputs: int) -> Split:
    text_files = Layout(name="text", files=(f"{stem}.txt",), open=_text)
    return Split(layouts=(text_files, Layout(name="csv", files=(csv,), open=_csv)), rows=rows, inputs=inputs)


TASK = Task(
    name="e2e",
    title="E2E NLG Challenge",
    format=KIND,
    columns={"prompt": "context", "completion": "completion"},
    task="causal",
    example="name : Cotto | Type : pub||Cotto is a pub .",
    splits={
        "train": _split("train", "trainset.csv", 42_061, 4_862),
        "valid": _split("valid", "devset.csv", 4_672, 547),
        "test": _split("test", "testset_w_refs.csv", 4_693, 630),
    },
    folders=("e2e", "E2E", "e2e-dataset", "e2e_data"),
    archives=("e2e*.tar*",),
    licenses=(
        License(terms="CC BY-SA 4.0", by="the data's repository, tuetschek/e2e-dataset"),
        License(terms="CC BY-NC-SA 4.0", by="the paper, appendix C"),
    ),
    counted="counted in the paper's own files",
)
