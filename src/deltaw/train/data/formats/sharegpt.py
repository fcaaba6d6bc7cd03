"""``sharegpt``: conversations as from and value, with the speakers' names of that family of data sets."""

from __future__ import annotations

from deltaw.errors import nearest
from deltaw.train.data.formats.base import Columns, Kind, Record
from deltaw.train.data.formats.messages import chat
from deltaw.train.data.sources.base import Row, RowProblem

__all__ = ["KIND", "SPEAKERS"]

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def _parse(row: Row, columns: Columns) -> Record:
    column = columns["conversations"]
    turns = row.get(column)
    if turns is None:
        raise RowProblem(f"column {column!r} is missing or null")
    if not isinstance(turns, list):
        raise RowProblem(f"column {column!r} holds {type(turns).__name__}, not a list of turns")
    messages: list[dict[str, object]] = []
    system = row.get(columns["system"]) if "system" in columns else None
    if system:
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowProblem(f"turn {number} is {type(turn).__name__}, not an object with from and value")
        speaker = str(turn.get("from")).lower()
        if speaker not in SPEAKERS:
            raise RowProblem(f"turn {number} is from {turn.get('from')!r}; closest: {nearest(speaker, SPEAKERS, 1)}")
        messages.append({"role": SPEAKERS[speaker], "content": turn.get("value"), "weight": turn.get("weight")})
    return chat(messages, column)


def _fits(row: Row, columns: Columns) -> bool:
    value = row.get(columns["conversations"])
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "from" in first


KIND = Kind(
    name="sharegpt",
    roles={"conversations": ("conversations", "conversation", "messages")},
    optional={"system": ("system", "system_prompt")},
    parse=_parse,
    example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
    fits=_fits,
)
