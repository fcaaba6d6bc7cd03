"""``text``: running text; every token is trained, and a text longer than the context is cut into windows."""

from __future__ import annotations

from deltaw.train.data.formats.base import Columns, Kind, Record, Text, text_of
from deltaw.train.data.sources.base import Row

__all__ = ["KIND"]


def _parse(row: Row, columns: Columns) -> Record:
    return Text(text=text_of(row, columns, "text"))


KIND = Kind(
    name="text",
    roles={"text": ("text", "content", "document", "story", "body")},
    parse=_parse,
    example='{"text": "Once upon a time ..."}',
)
