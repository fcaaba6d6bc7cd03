"""How a prompt is written before the model sees it: as plain text, or as training wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltaw.cli._sampling import encode
from deltaw.errors import DataError

if TYPE_CHECKING:
    from deltaw.ship.opening import Opened
    from deltaw.train.imprint import PromptForm

__all__ = ["FORMS", "conversation_ids", "form_used", "prompt_to_ids"]

FORMS = {
    "auto": "as the adapter was trained, where its file says so; else text",
    "text": "the text itself, to be continued",
    "prompt": "as deltaw train writes the prompt of a prompt/completion row",
    "chat": "a user turn in the model's chat template",
}

CHATS = ("messages", "sharegpt")


def form_used(opened: Opened, asked: str) -> str:
    """Settle the form.

    Args:
        opened: the model.
        asked: a key of ``FORMS``.

    Returns:
        "text", "prompt" or "chat".
    """
    if asked != "auto":
        return asked
    if opened.form is None or opened.form.rows == "text":
        return "text"
    return "chat" if opened.form.rows in CHATS else "prompt"


def prompt_to_ids(opened: Opened, form: str, prompt: str) -> list[int]:
    """Tokenize one prompt.

    Args:
        opened: the model.
        form: what ``form_used`` returned.
        prompt: the text.

    Returns:
        Token ids.

    Raises:
        DataError: if the prompt has no token, or there is no chat template to write a chat in.
    """
    from deltaw.train.data import prompt_ids
    from deltaw.train.data.formats.base import Completion

    if form == "text":
        return encode(opened.tokenizer, prompt)
    if form == "chat":
        _require_template(opened)
        return conversation_ids(opened, [{"role": "user", "content": prompt}])
    headed = opened.form is not None and opened.form.rows == "alpaca"
    record = Completion(prompt=prompt, completion="", headed=headed)
    return prompt_ids(opened.tokenizer, record, **_settings(opened.form))


def conversation_ids(opened: Opened, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Tokenize a conversation up to the answer that is to come.

    Args:
        opened: the model.
        messages: turns so far, each with role and content.

    Returns:
        Token ids.

    Raises:
        DataError: if the chat template refuses the conversation.
    """
    from deltaw.train.data import prompt_ids

    return prompt_ids(opened.tokenizer, messages, **_settings(opened.form))


def _settings(form: PromptForm | None) -> dict[str, Any]:
    return {} if form is None else form.settings()


def _require_template(opened: Opened) -> None:
    if opened.tokenizer.chat_template or (opened.form is not None and opened.form.rows in CHATS):
        return
    raise DataError(
        "the model has no chat template",
        where="tokenizer",
        got="no chat_template",
        expected="a tokenizer_config.json or chat_template.jinja with a template",
        hint="use --form text to continue the plain prompt, or --form prompt",
    )
