"""Inserting positions into a model's input and taking them out of its output, so that callers see their own tokens.

The hooks sit on the model's body, which turns ids into hidden states: before it, ids become embeddings with rows
between them, and mask, token types and positions follow; behind it, the states that answer for tokens are kept. Heads,
losses and readouts then work on the caller's positions. With a key-value cache the positions go in once, with the
prompt; later calls only extend the mask.

Where the infix goes, in this order: ``completion_starts``; the first label that is not -100, where token labels are
given to the model; else behind the last token, so that in ``generate`` it stands between prompt and answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.layout import CURRENT, LABELED, STARTS, Layout
from deltaw.baselines.method import Piece
from deltaw.errors import DataError, StateError

__all__ = ["Inserter", "completion_starts"]

_CACHES = ("cache", "past_key_values")
_MARK = "_deltaw_starts"


@contextmanager
def completion_starts(starts: Tensor | None) -> Iterator[None]:
    """Say where the completions of the batches in this block start, for an infix to stand before them.

    Args:
        starts: shape (B,), int64: index of each row's first token that is no context; None says nothing.

    Yields:
        None: models without an infix do not look at it.
    """
    token = STARTS.set(starts)
    try:
        yield
    finally:
        STARTS.reset(token)


class Inserter(Piece):
    """The body's piece: rows for the inserted positions, or none where every block's input is replaced.

    Args:
        anatomy: the model's parts.
        prefix: P, positions before the first token.
        infix: I, positions before the completion.
        rows: shape (P + I, width of the embedding table), or None.
    """

    def __init__(self, anatomy: Anatomy, prefix: int, infix: int, rows: Tensor | None) -> None:
        super().__init__()
        self.prefix, self.infix = prefix, infix
        self.causal, self.limit = anatomy.causal, anatomy.positions
        self.rows = None if rows is None else nn.Parameter(rows)

    def hook(self, module: nn.Module, root: nn.Module) -> None:
        """Stand around the body.

        Args:
            module: the body.
            root: the model, whose labels say where completions start.
        """
        if root is not module:
            root.register_forward_pre_hook(self.look, with_kwargs=True)
            root.register_forward_hook(self.forget, always_call=True)
        module.register_forward_pre_hook(self.insert, with_kwargs=True)
        module.register_forward_hook(self.take_out, always_call=True)
        pooler = getattr(module, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.register_forward_pre_hook(self.pool)

    def look(self, root: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the model: find where completions start by its labels.

        Args:
            root: the model.
            args: of its call.
            kwargs: of its call; ``labels`` of tokens are read.
        """
        LABELED.set(None)
        labels = _named(root, args, kwargs).get("labels")
        if self.off or not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
            return
        trained = labels != -100
        LABELED.set(torch.where(trained.any(1), trained.int().argmax(1), labels.shape[1]))

    def forget(self, root: nn.Module, args: Any, output: Any) -> None:
        """Behind the model: what was found in its labels holds for this call alone.

        Args:
            root: the model.
            args: of its call.
            output: of its call.
        """
        del root, args, output
        LABELED.set(None)

    def insert(self, body: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before the body: put the positions in.

        Args:
            body: the body.
            args: of its call.
            kwargs: of its call.

        Returns:
            The call with inserted positions; None leaves it as it is.
        """
        CURRENT.set(None)
        if self.off:
            return None
        values = _named(body, args, kwargs)
        cache = next((values[name] for name in _CACHES if values.get(name) is not None), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = values.get("attention_mask")
        if isinstance(mask, Mapping) or (mask is not None and mask.dim() != 2):
            raise _odd_mask(mask)
        if past:
            self._go_on(values, cache, past)
        else:
            self._begin(body, values)
        return (), values

    def _begin(self, body: nn.Module, values: dict[str, Any]) -> None:
        """A call without a past: ids become embeddings with rows between them."""
        embeddings = values.get("inputs_embeds")
        if embeddings is None:
            embeddings = body.get_input_embeddings()(values.get("input_ids"))  # type: ignore[operator]
        batch, tokens = embeddings.shape[:2]
        self._fits(tokens + self.prefix + self.infix, tokens)
        mask = values.get("attention_mask")
        starts = self._starts(batch, tokens, mask, embeddings.device)
        layout = Layout(starts, tokens, self.prefix, self.infix, self.causal)
        rows = self.rows
        if rows is None:
            rows = embeddings.new_zeros(layout.inserted, embeddings.shape[-1])
        values |= {"input_ids": None, "inputs_embeds": layout.spread(embeddings, rows)}
        if mask is not None:
            values["attention_mask"] = layout.attend(mask)
        if values.get("token_type_ids") is not None:
            values["token_type_ids"] = layout.repeat(values["token_type_ids"].expand(batch, -1))
        if values.get("position_ids") is not None:
            values["position_ids"] = layout.count(values["position_ids"], mask)
        CURRENT.set(layout)

    def _go_on(self, values: dict[str, Any], cache: Any, past: int) -> None:
        """A call with a past: the positions are in the cache, the mask does not know of them yet."""
        starts = getattr(cache, _MARK, None)
        if starts is None:
            raise StateError(
                "the key-value cache was filled without the inserted positions",
                where="cache",
                got=f"{past} positions from before attach, or from a disabled model",
                expected="a cache that was filled by this model",
                hint="start with an empty cache.",
            )
        given = values.get("input_ids")
        given = values.get("inputs_embeds") if given is None else given
        assert given is not None
        self._fits(past + given.shape[1], past + given.shape[1] - self.prefix - self.infix)
        mask = values.get("attention_mask")
        if mask is not None:
            layout = Layout(starts, mask.shape[1], self.prefix, self.infix, self.causal)
            values["attention_mask"] = layout.attend(mask)
        if values.get("position_ids") is not None:
            values["position_ids"] = values["position_ids"] + self.prefix + self.infix

    def _fits(self, positions: int, tokens: int) -> None:
        if self.limit is not None and positions > self.limit:
            raise DataError(
                "the input leaves no room for the inserted positions",
                where="input_ids",
                got=f"{tokens} tokens with {self.prefix} + {self.infix} positions inserted",
                expected=f"at most {self.limit - self.prefix - self.infix} tokens; the model takes {self.limit}",
                hint="shorten the input, or the prefix and the infix.",
            )

    def _starts(self, batch: int, tokens: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """Where the infix goes in each row, shape (B,)."""
        starts = LABELED.get() if STARTS.get() is None else STARTS.get()
        if starts is not None:
            if starts.shape != (batch,):
                raise StateError(
                    "the starts of completions do not fit the batch",
                    where="completion_starts",
                    got=f"shape {tuple(starts.shape)}",
                    expected=f"one number for each of {batch} rows",
                    hint="give the index of each row's first token that is no context.",
                )
            return starts.to(device).clamp(0, tokens)
        if mask is None:
            return torch.full((batch,), tokens, device=device)
        return tokens - mask.flip(1).long().argmax(1)

    def take_out(self, body: nn.Module, args: Any, output: Any) -> Any:
        """Behind the body: keep the states that answer for tokens.

        Args:
            body: the body.
            args: of its call.
            output: of its call; None where it raised.

        Returns:
            The output on the caller's positions; None leaves it as it is.
        """
        del body, args
        layout = CURRENT.get()
        CURRENT.set(None)
        if layout is None or output is None:
            return None
        if isinstance(output, tuple):
            return (layout.strip(output[0]), *output[1:])
        output.last_hidden_state = layout.strip(output.last_hidden_state)
        if (states := getattr(output, "hidden_states", None)) is not None:
            output.hidden_states = tuple(None if state is None else layout.strip(state) for state in states)
        cache = next((found for name in _CACHES if (found := getattr(output, name, None)) is not None), None)
        if cache is not None:
            setattr(cache, _MARK, layout.starts)
        return output

    def pool(self, pooler: nn.Module, args: Any) -> Any:
        """Before a pooler that is part of the body: it reads the caller's first position.

        Args:
            pooler: the pooler.
            args: of its call, states first.

        Returns:
            The arguments on the caller's positions; None leaves them as they are.
        """
        del pooler
        layout = CURRENT.get()
        return None if layout is None else (layout.strip(args[0]), *args[1:])


def _named(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    if not args:
        return dict(kwargs)
    names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    return dict(zip(names, args, strict=False)) | kwargs


def _odd_mask(mask: Any) -> StateError:
    return StateError(
        "positions cannot be inserted under this attention mask",
        where="attention_mask",
        got="one mask for each kind of layer" if isinstance(mask, Mapping) else f"shape {tuple(mask.shape)}",
        expected="shape (rows, tokens), 1 on tokens, or none",
        hint="pass a plain mask; packed rows and static caches make others and do not go with a prefix.",
    )
