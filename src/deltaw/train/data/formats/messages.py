"""``messages``: conversations as role and content, as chat templates take them; all assistant turns are trained."""

from __future__ import annotations

from typing import Any

from deltaw.train.data.formats.base import Chat, Columns, Kind, Record
from deltaw.train.data.sources.base import Row, RowProblem

__all__ = ["KIND", "chat"]


def chat(
    messages: object,
    column: str,
    *,
    weights: list[float] | None = None,
    tools: list[Any] | None = None,
    need_assistant: bool = True,
) -> Chat:
    """Check a list of messages.

    Args:
        messages: the value of the column.
        column: its name, for errors.
        weights: weight per message; taken from the messages' own ``weight`` where None.
        tools: tool descriptions.
        need_assistant: whether a turn to learn must be among them.

    Returns:
        The conversation; contents given as lists of text parts are joined.

    Raises:
        RowProblem: if it is no conversation, or has nothing to learn.
    """
    if messages is None:
        raise RowProblem(f"column {column!r} is missing or null")
    if not isinstance(messages, list):
        raise RowProblem(f"column {column!r} holds {type(messages).__name__}, not a list of messages")
    if not messages:
        raise RowProblem(f"column {column!r} is an empty list")
    read = [_message(message, f"message {number}") for number, message in enumerate(messages, 1)]
    own = [_weight(message, f"message {number}") for number, message in enumerate(messages, 1)]
    weights = weights if weights is not None else own
    weights = [value if item["role"] == "assistant" else 0.0 for value, item in zip(weights, read, strict=True)]
    if need_assistant and not any(weights):
        roles = ", ".join(dict.fromkeys(item["role"] for item in read))
        raise RowProblem(f"no assistant turn to learn (roles: {roles})")
    return Chat(messages=read, weights=weights, tools=tools)


def _message(message: object, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowProblem(f"{name} is {type(message).__name__}, not an object with role and content")
    # Columnar files fill absent keys with null, which templates would take for set.
    kept = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if not isinstance(kept.get("role"), str):
        raise RowProblem(f"{name} has no role")
    content = kept.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RowProblem(f"{name} has content that is not text (images and sound are not supported)")
        content = "".join(str(part) for part in parts)
    if content is None and kept.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise RowProblem(f"{name} ({kept['role']}) has no text as content")
    if kept["role"] == "assistant" and not content.strip() and not kept.get("tool_calls"):
        raise RowProblem(f"{name} is an empty assistant turn")
    return {**kept, "content": content}


def _weight(message: dict[str, Any], name: str) -> float:
    weight = message.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise RowProblem(f"{name} has weight {weight!r}, not a number from 0 up")
    return float(weight)


def _parse(row: Row, columns: Columns) -> Record:
    tools = row.get(columns["tools"]) if "tools" in columns else None
    if tools is not None and not isinstance(tools, list):
        raise RowProblem(f"column {columns['tools']!r} holds {type(tools).__name__}, not a list of tools")
    return chat(row.get(columns["messages"]), columns["messages"], tools=tools or None)


def _fits(row: Row, columns: Columns) -> bool:
    value = row.get(columns["messages"])
    first = value[0] if isinstance(value, list) and value else None
    return not (isinstance(first, dict) and "from" in first and "role" not in first)


KIND = Kind(
    name="messages",
    roles={"messages": ("messages", "conversation", "conversations", "dialog", "dialogue", "chat")},
    optional={"tools": ("tools", "functions")},
    parse=_parse,
    example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    fits=_fits,
)
