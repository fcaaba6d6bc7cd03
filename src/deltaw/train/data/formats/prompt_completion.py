"""``prompt_completion``: a prompt and what must follow; both texts, or both lists of messages."""

from __future__ import annotations

from deltaw.train.data.formats.base import Columns, Completion, Kind, Record, text_of
from deltaw.train.data.formats.messages import chat
from deltaw.train.data.sources.base import Row

__all__ = ["KIND"]


def _parse(row: Row, columns: Columns) -> Record:
    prompt, completion = row.get(columns["prompt"]), row.get(columns["completion"])
    if isinstance(prompt, list) and isinstance(completion, list):
        context = chat(prompt, columns["prompt"], need_assistant=False)
        answer = chat(completion, columns["completion"])
        return chat(
            context.messages + answer.messages, columns["completion"], weights=[0.0] * len(prompt) + answer.weights
        )
    return Completion(
        prompt=text_of(row, columns, "prompt", required=columns["prompt"] not in row or prompt is None),
        completion=text_of(row, columns, "completion"),
    )


KIND = Kind(
    name="prompt_completion",
    roles={
        "prompt": ("prompt", "question", "query", "source", "src", "context", "input"),
        "completion": ("completion", "answer", "response", "output", "target", "tgt", "reply"),
    },
    parse=_parse,
    example='{"prompt": "Capital of France?", "completion": "Paris"}',
)
