"""Where inserted positions stand among a batch's tokens, and which position answers for which token.

Shapes: B rows, T tokens, P prefix, I infix, E = P + T + I positions, D width::

    tokens          t0 t1 t2 | t3 t4        start = 3: the completion begins at t3
    positions  p p  t0 t1 t2 i i t3 t4      P = 2, I = 2

A decoder's position predicts the token after it. So the hidden state that is handed on for a token is the one right
before the next token: for t2 that of the last infix position, for all others their own. An encoder's state is handed on
for the token it belongs to.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["CURRENT", "LABELED", "STARTS", "Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """One batch's positions.

    Args:
        starts: shape (B,), int64: the infix stands before this token; T puts it behind all of them.
        tokens: T.
        prefix: P.
        infix: I.
        causal: whether positions predict the token after them.
    """

    starts: Tensor
    tokens: int
    prefix: int
    infix: int
    causal: bool

    @property
    def inserted(self) -> int:
        """P + I."""
        return self.prefix + self.infix

    @cached_property
    def source_BE(self) -> Tensor:
        """For every position: which of [prefix, infix, tokens] stands there, shape (B, E)."""
        start_B1 = self.starts[:, None]
        at_1E = torch.arange(self.tokens + self.inserted, device=self.starts.device)[None]
        token_1E = at_1E - self.prefix
        infix_BE = self.prefix + token_1E - start_B1
        behind_BE = torch.where(token_1E < start_B1 + self.infix, infix_BE, self.inserted + token_1E - self.infix)
        found_BE = torch.where(token_1E < start_B1, self.inserted + token_1E, behind_BE)
        return torch.where(at_1E < self.prefix, at_1E, found_BE)

    def _at(self, token: Tensor) -> Tensor:
        """Positions of tokens, shape (B, len(token))."""
        return self.prefix + token[None] + self.infix * (token[None] >= self.starts[:, None])

    @cached_property
    def answers_BT(self) -> Tensor:
        """For every token: the position whose hidden state is handed on for it, shape (B, T)."""
        token = torch.arange(self.tokens, device=self.starts.device)
        return self._at(token + 1) - 1 if self.causal else self._at(token)

    def spread(self, values: Tensor, rows: Tensor) -> Tensor:
        """Put inserted rows among a batch's tokens.

        Args:
            values: shape (B, T, D).
            rows: prefix, then infix, shape (P + I, D).

        Returns:
            Shape (B, E, D).
        """
        joined = torch.cat([rows.to(values.dtype).expand(len(values), -1, -1), values], dim=1)
        return joined[torch.arange(len(values), device=values.device)[:, None], self.source_BE]

    def repeat(self, values: Tensor) -> Tensor:
        """Give every inserted position the value of a token beside it: the first one's, or the context's last one's.

        Args:
            values: shape (B, T), such as token types.

        Returns:
            Shape (B, E).
        """
        token_BE = self.source_BE - self.inserted
        last_B1 = (self.starts - 1).clamp(min=0)[:, None]
        beside_BE = torch.where(self.source_BE < self.prefix, torch.zeros_like(token_BE), last_B1)
        return values.gather(1, torch.where(token_BE < 0, beside_BE, token_BE))

    def attend(self, mask: Tensor) -> Tensor:
        """Let every inserted position be seen.

        Args:
            mask: shape (B, T), 1 on tokens.

        Returns:
            Shape (B, E).
        """
        kept_BE = mask.gather(1, (self.source_BE - self.inserted).clamp(min=0))
        return torch.where(self.source_BE < self.inserted, torch.ones_like(kept_BE), kept_BE)

    def count(self, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Number the positions on from a caller's numbers of the tokens.

        Args:
            positions: shape (B, T) or (1, T), int64.
            mask: shape (B, T), or None where nothing is padded.

        Returns:
            Shape (B, E): the tokens' numbers moved up by what stands before them, the inserted ones' between.
        """
        positions = positions.expand(len(self.starts), -1)
        source_BE, token_BE = self.source_BE, self.source_BE - self.inserted
        first_B1 = positions[:, :1] if mask is None else positions.gather(1, mask.argmax(1, keepdim=True))
        context_B1 = positions.gather(1, (self.starts - 1).clamp(min=0)[:, None]) + 1
        context_B1 = torch.where(self.starts[:, None] > 0, context_B1, first_B1)
        own_BE = positions.gather(1, token_BE.clamp(min=0)) + self.prefix
        own_BE = own_BE + self.infix * (token_BE >= self.starts[:, None])
        inserted_BE = torch.where(source_BE < self.prefix, first_B1, context_B1) + source_BE
        return torch.where(token_BE < 0, inserted_BE, own_BE)

    def strip(self, states: Tensor) -> Tensor:
        """Keep the states that answer for tokens.

        Args:
            states: shape (B, E, D).

        Returns:
            Shape (B, T, D).
        """
        return states[torch.arange(len(states), device=states.device)[:, None], self.answers_BT]

    def replace(self, states: Tensor, rows: Tensor) -> Tensor:
        """Put rows in the place of the states at the inserted positions.

        Args:
            states: shape (B, E, D).
            rows: prefix, then infix, shape (P + I, D).

        Returns:
            Shape (B, E, D), in the states' dtype.
        """
        chosen = rows.to(states.dtype)[self.source_BE.clamp(max=self.inserted - 1)]
        return torch.where((self.source_BE < self.inserted)[..., None], chosen, states)


CURRENT: ContextVar[Layout | None] = ContextVar("deltaw_layout", default=None)
"""The layout of the forward pass under way; None where nothing is inserted in it."""

STARTS: ContextVar[Tensor | None] = ContextVar("deltaw_starts", default=None)
"""Where completions start in the batch under way, as its caller said it, shape (B,); else None."""

LABELED: ContextVar[Tensor | None] = ContextVar("deltaw_labeled", default=None)
"""The same as the labels of the call under way say it, where no caller did."""
