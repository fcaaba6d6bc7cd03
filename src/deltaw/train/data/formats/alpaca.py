"""``alpaca``: an instruction, perhaps an input for it, and the output.

A model with a chat template reads instruction and input as one user turn. For one without, the parts stand under the
headings that this family of data sets uses.
"""

from __future__ import annotations

from deltaw.train.data.formats.base import Columns, Completion, Kind, Record, text_of
from deltaw.train.data.sources.base import Row

__all__ = ["KIND"]


def _parse(row: Row, columns: Columns) -> Record:
    return Completion(
        prompt=text_of(row, columns, "instruction"),
        completion=text_of(row, columns, "output"),
        given=text_of(row, columns, "input", required=False) if "input" in columns else "",
        system=text_of(row, columns, "system", required=False) if "system" in columns else "",
        headed=True,
    )


KIND = Kind(
    name="alpaca",
    roles={"instruction": ("instruction",), "output": ("output", "response", "answer", "completion")},
    optional={"input": ("input", "context"), "system": ("system",)},
    parse=_parse,
    example='{"instruction": "Translate to French.", "input": "cat", "output": "chat"}',
)
