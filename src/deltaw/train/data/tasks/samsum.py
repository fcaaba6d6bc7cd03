"""SAMSum: chats and their summaries; utterances one per line, then a blank line, as the paper encodes them."""

from __future__ import annotations

from deltaw.train.data.formats.prompt_completion import KIND
from deltaw.train.data.sources.base import Row
from deltaw.train.data.tasks.base import Layout, License, Split, Task
from deltaw.train.data.tasks.files import File
from deltaw.train.data.tasks.sources import Mapped, TaskSource, text
from deltaw.train.data.tasks.tables import json_rows

__all__ = ["TASK", "encode"]


def encode(dialogue: str) -> str:
    """Write a chat as the paper does.

    Args:
        dialogue: utterances in lines that end in any way.

    Returns:
        The utterances joined by a newline, followed by a blank line.

    Source:
        Hu et al. 2021, arXiv:2106.09685, appendix C.

    Example:
        >>> encode("Ann: Tea?\\r\\nBob: Yes!")
        'Ann: Tea?\\nBob: Yes!\\n\\n'
    """
    spoken = dialogue.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in spoken if line.strip()) + "\n\n"


def _read(files: list[File], split: str) -> TaskSource:
    def convert(row: Row, line: int) -> Row:
        name = str(row.get("id", line))
        context, completion = encode(text(row, "dialogue")), text(row, "summary").strip()
        return {"id": name, "context": context, "completion": completion, "group": "", "entry": name}

    return Mapped(json_rows(files[0]), convert, "samsum json")


def _split(stem: str, rows: int) -> Split:
    return Split(layouts=(Layout(name="json", files=(f"{stem}.json",), open=_read),), rows=rows)


TASK = Task(
    name="samsum",
    title="SAMSum",
    format=KIND,
    columns={"prompt": "context", "completion": "completion"},
    task="causal",
    example='{"id": "1", "dialogue": "Ann: Tea?\\r\\nBob: Yes!", "summary": "Bob wants tea."}',
    splits={"train": _split("train", 14_732), "valid": _split("val", 818), "test": _split("test", 819)},
    folders=("samsum", "SAMSum", "corpus"),
    licenses=(License(terms="CC BY-NC-ND 4.0", by="the paper, appendix C"),),
    counted="train and test as the paper states them; valid as the data set's paper does",
)
