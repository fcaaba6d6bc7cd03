"""New tokens: the same ids and the same first rows wherever an adapter that knows them is used.

A new token's row starts as the mean of the rows of the pieces it was cut into before, in the embedding and in the
output head: the base alone then says nothing random about it, and is the same base in every process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltaw.errors import ConfigError, ModelError

__all__ = ["TOKENS", "NewTokens", "add_tokens", "grow", "tokens_of"]

TOKENS = "new_tokens"
"""Key of the tokens in the safetensors metadata, a JSON list."""


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens that the base's vocabulary lacks.

    Args:
        texts: as they are written.
        ids: their ids.
        pieces: for each, the ids that its text was cut into before.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    pieces: tuple[tuple[int, ...], ...] = ()


def add_tokens(tokenizer: Any, texts: Sequence[str]) -> NewTokens:
    """Add tokens to a tokenizer.

    Args:
        tokenizer: of the base; changed in place.
        texts: the tokens.

    Returns:
        Their ids.

    Raises:
        ConfigError: if a token is empty, named twice, or known already.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    wrong = [text for index, text in enumerate(texts) if not text.strip() or text in known or text in texts[:index]]
    if wrong:
        why = "empty" if not wrong[0].strip() else f"token {known[wrong[0]]}" if wrong[0] in known else "named twice"
        raise ConfigError(
            "a token is not new",
            where="--new-tokens or [adapter] new_tokens",
            got=f"{wrong[0]!r}: {why}",
            expected="texts that are no token of this vocabulary",
            hint="train the rows of known tokens with --train-rows embed_tokens=ID" if wrong[0] in known else "drop it",
        )
    pieces = tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    ids = tuple(int(tokenizer.convert_tokens_to_ids(text)) for text in texts)
    return NewTokens(texts=tuple(texts), ids=ids, pieces=pieces)


def grow(model: Any, new: NewTokens, where: str) -> tuple[str, ...]:
    """Make room for new tokens in the embedding and the head, where there is none yet.

    Args:
        model: the base, before anything is attached.
        new: from ``add_tokens``; without tokens nothing happens.
        where: the base's name, for messages.

    Returns:
        Lines the user should see.

    Raises:
        ModelError: if the model has no token embedding.
    """
    if not new.ids:
        return ()
    before = _table(model, where).num_embeddings
    wanted = max(new.ids) + 1
    if wanted > before:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    table, head = _table(model, where), model.get_output_embeddings()
    pieces = dict(zip(new.ids, new.pieces, strict=True))
    weights = [table.weight]
    untied = isinstance(head, nn.Module) and head.weight is not table.weight
    if untied:
        weights += [parameter for parameter in (head.weight, getattr(head, "bias", None)) if parameter is not None]
    with torch.no_grad():
        for weight in weights:
            for row in range(before, wanted):
                # a row between the tokens that nothing names stands for all of them
                known = [piece for piece in pieces.get(row, ()) if piece < before] or slice(0, before)
                weight[row] = weight[known].float().mean(0).to(weight.dtype)
    names = ", ".join(map(repr, new.texts[:6])) + (", ..." if len(new.texts) > 6 else "")
    room = f"the vocabulary grows from {before:,} to {wanted:,}" if wanted > before else "the table has room for them"
    lines = [f"new tokens {names} (ids {_span(new.ids)}): {room}"]
    if untied:
        lines.append(
            "the output head is a matrix of its own, whose rows are not trained: the new tokens are read, but hardly "
            "written; --train-also trains the head in full"
        )
    return tuple(lines)


def _span(ids: Sequence[int]) -> str:
    return f"{ids[0]}" if len(ids) == 1 else f"{ids[0]}-{ids[-1]}"


def _table(model: Any, where: str) -> nn.Embedding:
    found = model.get_input_embeddings()
    if not isinstance(found, nn.Embedding):
        raise ModelError(
            "the model has no table of tokens to add to",
            where=where,
            got=type(found).__name__,
            expected="an embedding",
            hint="drop --new-tokens",
        )
    return found


def table_path(model: Any) -> str:
    """Find the path of the token embedding.

    Args:
        model: a transformers model.

    Returns:
        The dotted path.
    """
    table = model.get_input_embeddings()
    return next(str(path) for path, module in model.named_modules() if module is table)


def tokens_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Read which tokens an adapter's file says it added.

    Args:
        metadata: of the safetensors file.

    Returns:
        The tokens; none where the file says nothing.
    """
    try:
        found = json.loads(metadata.get(TOKENS, "[]"))
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
