"""Prompts for generation, made by the same code that made the training examples, so that both agree token for token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltaw.errors import DataError
from deltaw.train.data.formats.base import Chat, Completion
from deltaw.train.data.formats.messages import chat
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.templates import Renderer
from deltaw.train.data.tokens import Affixes, affixes, encode

__all__ = ["prompt_ids", "renderer_for"]


def renderer_for(tokenizer: Any, added: Affixes, **settings: Any) -> Renderer:
    """Make a renderer that knows whether the tokenizer adds a begin token.

    Args:
        tokenizer: a transformers tokenizer.
        added: what it adds by itself.
        **settings: fields of :class:`deltaw.train.data.templates.Renderer`.

    Returns:
        The renderer.
    """
    adds_bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in added.prefix
    return Renderer(tokenizer, adds_bos=adds_bos, **settings)


def prompt_ids(
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, Any]] | Completion | Chat,
    *,
    template: str = "auto",
    template_options: Mapping[str, Any] | None = None,
    system: str = "keep",
    joiner: str = "auto",
) -> list[int]:
    """Tokenize what a model is given to answer, exactly as it stood before the answers it was trained on.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: a prompt as in prompt/completion rows, the messages so far, or a parsed record.
        template: as in :func:`deltaw.train.data.build`, like the arguments below.
        template_options: variables for the chat template.
        system: what happens to system turns.
        joiner: what stands between a plain prompt and its completion.

    Returns:
        Token ids, the begin token included where training had one.

    Raises:
        DataError: if the chat template refuses the conversation.
    """
    added = affixes(tokenizer)
    options = dict(template_options or {})
    renderer = renderer_for(tokenizer, added, template=template, options=options, system=system, joiner=joiner)
    if tokenizer.eos_token is not None:
        renderer.set_end(str(tokenizer.eos_token))
    try:
        record: Completion | Chat
        if isinstance(prompt, str):
            record = Completion(prompt=prompt, completion="")
        elif isinstance(prompt, (Completion, Chat)):
            record = prompt
        else:
            record = chat([dict(message) for message in prompt], "messages", need_assistant=False)
        rendered = renderer.prompt(record)
    except RowProblem as problem:
        raise DataError(
            "a prompt cannot be rendered",
            where="the conversation so far",
            got=str(problem),
            expected="messages that the chat template takes",
            hint="change the roles or their order, or pass another template.",
        ) from None
    return encode(tokenizer, [rendered], added, None)[0].ids
