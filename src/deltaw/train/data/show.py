"""Show an example with its trained tokens marked, with and without colour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from deltaw.train.data.tokens import Example

__all__ = ["marked", "show", "spans"]

OPEN, CLOSE = "[[", "]]"


def spans(example: Example, tokenizer: Any) -> Iterator[tuple[str, bool, bool]]:
    """Divide an example into stretches of text.

    Args:
        example: the tokens.
        tokenizer: the tokenizer that made them.

    Yields:
        tuple[str, bool, bool]: text, whether trained, whether special tokens.
    """
    special = set(tokenizer.all_special_ids)
    special |= {key for key, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    marks = [(weight > 0, token in special) for token, weight in zip(example.ids, example.weights, strict=True)]
    start, shown = 0, ""
    for (trained, is_special), group in groupby(marks):
        # Text grows with the tokens, so blanks and parts of characters that a token alone would lose are kept.
        size = len(list(group))
        text = _decode(tokenizer, example.ids[: start + size])
        common = len(shown) if text.startswith(shown) else _agree(text, shown)
        names = tokenizer.convert_ids_to_tokens(example.ids[start : start + size])
        yield "".join(names) if is_special else text[common:], trained, is_special
        start += size
        shown = text


def _agree(one: str, other: str) -> int:
    return next((at for at, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def marked(example: Example, tokenizer: Any) -> str:
    """Write an example as plain text, trained stretches between ``[[`` and ``]]``.

    Args:
        example: the tokens.
        tokenizer: the tokenizer that made them.

    Returns:
        The text, special tokens included.
    """
    return str(show(example, tokenizer))


def show(example: Example, tokenizer: Any) -> RichText:
    """Write an example as rich text: trained stretches green and between ``[[`` and ``]]``, special tokens in reverse.

    Args:
        example: the tokens.
        tokenizer: the tokenizer that made them.

    Returns:
        Rich text; its ``plain`` reads well without colour.
    """
    from rich.text import Text as RichText

    text = RichText()
    inside = False
    for part, trained, is_special in spans(example, tokenizer):
        if trained != inside:
            text.append(OPEN if trained else CLOSE, style="bold green")
            inside = trained
        style = "bold green" if trained else "dim"
        text.append(part, style=f"{style} reverse" if is_special else style)
    if inside:
        text.append(CLOSE, style="bold green")
    return text
