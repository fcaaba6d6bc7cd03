"""From rendered text to token ids and weights.

The text of an example is tokenized whole, and each border between context and answer is looked up by tokenizing the
text before it: where those tokens begin the whole, the border is exact and the model sees in training what it sees when
it is used. Where a token lies across the border (``"A: " + "Paris"`` in a byte-level vocabulary), the pieces are
tokenized one by one, which again is what happens in use; the result must decode to the same text. Where even that is
impossible, the token across the border is trained, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from deltaw.errors import DataError, nearest
from deltaw.train.data.templates import Rendered

__all__ = ["Affixes", "Encoded", "Example", "affixes", "encode", "encode_labelled", "end_token_id"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training example.

    Args:
        ids: input tokens, begin and end tokens included.
        weights: as long as ``ids``; ``weights[i]`` is the loss weight of predicting ``ids[i]``, 0 for context. The
            first is always 0.
        label: class position or score, for classification and regression; then all weights are 0.
        row: position of the source row, from 0.
        types: token type per token (0 for the first text, 1 for the second), for encoders that take them; else None.
    """

    ids: list[int]
    weights: list[float]
    label: int | float | None = None
    row: int = -1
    types: list[int] | None = None


@dataclass
class Encoded:
    """Tokens of one example, before truncation.

    Args:
        ids: the tokens.
        weights: loss weight per token.
        windows: whether to cut into windows when too long.
        types: token types, or None.
        across: tokens that lie across a border of trained text.
        begun: whether the text itself already began with the begin token.
    """

    ids: list[int]
    weights: list[float]
    windows: bool = False
    types: list[int] | None = None
    across: int = 0
    begun: bool = False


@dataclass(frozen=True, kw_only=True)
class Affixes:
    """What a tokenizer adds to a text by itself.

    Args:
        prefix: ids before.
        suffix: ids after.
        joins_pairs: whether its pair encoding puts no separator between the texts, or a second begin token, so that
            pairs are better joined as text.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    joins_pairs: bool = field(default=False)


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return found


def affixes(tokenizer: Any) -> Affixes:
    """Find what a tokenizer adds, by trying it.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        The ids before and after, and what it does with pairs.
    """
    inner = _ids(tokenizer, ["a"])[0]
    whole = list(tokenizer("a", verbose=False)["input_ids"])
    places = [at for at in range(len(whole) - len(inner) + 1) if whole[at : at + len(inner)] == inner]
    at = places[0] if places and inner else 0
    prefix, suffix = tuple(whole[:at]), tuple(whole[at + len(inner) :]) if inner else ()
    pair = list(tokenizer("a", "a", verbose=False)["input_ids"])
    between = pair[len(prefix) + len(inner) : len(pair) - len(inner) - len(suffix)]
    return Affixes(prefix=prefix, suffix=suffix, joins_pairs=not between or tuple(between) == prefix)


def end_token_id(tokenizer: Any, end_token: str) -> int | None:
    """Find the token that ends an answer.

    Args:
        tokenizer: a transformers tokenizer.
        end_token: ``auto`` for the tokenizer's own, ``none`` for no end token, or the text of one token.

    Returns:
        Its id; None for no end token.

    Raises:
        DataError: if the tokenizer has none, or the text is no single token of it.
    """
    if end_token == "none":
        return None
    vocabulary = tokenizer.get_vocab()
    if end_token == "auto":
        if tokenizer.eos_token_id is not None:
            return int(tokenizer.eos_token_id)
        known = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        raise DataError(
            "the tokenizer has no end token, so a model could never learn to stop",
            where=f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
            got="eos_token not set",
            expected=f"an end token; its added tokens: {', '.join(map(repr, known[:8])) or 'none'}",
            hint="name one with --end-token, or pass --end-token none to train without.",
        )
    if end_token not in vocabulary:
        raise DataError(
            "the end token is not in the vocabulary",
            where=f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
            got=f"end token {end_token!r}",
            expected=f"one token of it; closest: {nearest(end_token, vocabulary)}",
            hint="a new token would be an untrained row of a frozen embedding: choose one the model knows.",
        )
    return int(vocabulary[end_token])


def encode(tokenizer: Any, batch: Sequence[Rendered], added: Affixes, end_id: int | None) -> list[Encoded]:
    """Tokenize examples.

    Args:
        tokenizer: a transformers tokenizer.
        batch: the examples as text.
        added: what the tokenizer adds by itself.
        end_id: the end token, or None.

    Returns:
        One result per example, in order, not truncated.
    """
    merged = [_merge(item.pieces) for item in batch]
    texts: list[str] = []
    for pieces in merged:
        texts.extend(accumulate(text for text, _ in pieces))
    found = iter(_ids(tokenizer, texts))
    encoded = []
    for item, pieces in zip(batch, merged, strict=True):
        stages = [next(found) for _ in pieces]
        result = _exact(stages, pieces) or _piecewise(tokenizer, stages[-1], pieces) or _across(stages, pieces)
        result.windows = item.windows
        _finish(result, item, added.prefix, end_id, pieces[-1][1])
        encoded.append(result)
    return encoded


def _merge(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Join neighbours of equal weight and leave out empty ones."""
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        elif text:
            merged.append((text, weight))
    return merged or [("", pieces[-1][1])]


def _exact(stages: list[list[int]], pieces: list[tuple[str, float]]) -> Encoded | None:
    whole, weights = stages[-1], list[float]()
    for ids, (_, weight) in zip(stages, pieces, strict=True):
        if whole[: len(ids)] != ids or len(ids) < len(weights):
            return None
        weights += [weight] * (len(ids) - len(weights))
    return Encoded(whole, weights)


# Put before a piece so that a vocabulary that begins each text with a blank begins another text.
_ANCHORS = ("", "\n", ".", ":", "x", "=")


def _piecewise(tokenizer: Any, whole: list[int], pieces: list[tuple[str, float]]) -> Encoded | None:
    """Tokenize piece by piece, the later ones as the rest of a text; what comes out must decode to the same text."""
    wanted = _decode(tokenizer, whole)
    first, *later = [text for text, _ in pieces]
    parts = _ids(tokenizer, [first])
    for anchor in _ANCHORS:
        (lead, *found) = _ids(tokenizer, [anchor, *(anchor + text for text in later)])
        if any(ids[: len(lead)] != lead for ids in found):
            continue
        split = parts + [ids[len(lead) :] for ids in found]
        joined = [token for part in split for token in part]
        if _decode(tokenizer, joined) == wanted:
            weights = [weight for part, (_, weight) in zip(split, pieces, strict=True) for _ in part]
            return Encoded(joined, weights)
    return None


def _across(stages: list[list[int]], pieces: list[tuple[str, float]]) -> Encoded:
    """Split where the tokens still agree, so that a token across a border counts as the later piece, or is trained."""
    whole = stages[-1]
    weights, count = list[float](), 0
    for place, (ids, (_, weight)) in enumerate(zip(stages, pieces, strict=True)):
        agree = next((i for i, (x, y) in enumerate(zip(ids, whole, strict=False)) if x != y), min(len(ids), len(whole)))
        inside = agree < len(ids)
        count += inside
        end = len(whole) if place == len(pieces) - 1 else min(agree + (inside and weight > 0), len(whole))
        weights += [weight] * (end - len(weights))
    return Encoded(whole, weights, across=count)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _finish(result: Encoded, item: Rendered, prefix: tuple[int, ...], end_id: int | None, weight: float) -> None:
    """Put begin and end tokens where they belong, once."""
    if item.begin and prefix:
        if result.ids[: len(prefix)] == list(prefix):
            result.begun = True
        else:
            result.ids = [*prefix, *result.ids]
            result.weights = [0.0] * len(prefix) + result.weights
    if item.end and end_id is not None and (not result.ids or result.ids[-1] != end_id):
        result.ids = [*result.ids, end_id]
        result.weights = [*result.weights, weight]
    if result.weights:
        result.weights[0] = 0.0


def encode_labelled(
    tokenizer: Any, pairs: Sequence[tuple[str, str | None]], added: Affixes, max_length: int
) -> list[tuple[Encoded, int]]:
    """Tokenize texts, or pairs of texts, for a classifier, the way the tokenizer does it by itself.

    Args:
        tokenizer: a transformers tokenizer.
        pairs: first and second text; the second None throughout for single texts.
        added: what the tokenizer adds; decides whether pairs are joined by a line break instead.
        max_length: tokens at most; the longer text of a pair is cut first.

    Returns:
        Per pair the tokens, cut to ``max_length``, and the length before the cut.
    """
    first = [one for one, _ in pairs]
    second = [other for _, other in pairs if other is not None]
    if second and added.joins_pairs:
        first, second = [f"{one}\n{other}" for one, other in pairs], []
    found = tokenizer(first, second or None, return_attention_mask=False, verbose=False)
    types = found.get("token_type_ids")
    results = []
    for place, ids in enumerate(found["input_ids"]):
        kinds = types[place] if types is not None and any(types[place]) else None
        length = len(ids)
        if length > max_length:
            cut = tokenizer(
                first[place], second[place] if second else None, truncation=True, max_length=max_length, verbose=False
            )
            ids, kinds = cut["input_ids"], cut.get("token_type_ids") if kinds is not None else None
        results.append((Encoded(list(ids), [0.0] * len(ids), types=kinds), length))
    return results
