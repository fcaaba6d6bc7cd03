"""Adapter dropout: masks that are functions of a counter, so that a backward or a resumed run draws them again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.config import LoRAConfig
from deltaw.errors import StateError
from deltaw.functional import drop
from deltaw.initialize import seed_for
from deltaw.step import Mask
from deltaw.tokens import TokenRows
from deltaw.tree import set_plain

__all__ = ["Dropping", "drop_apart"]


class _Open:
    """A forward whose backward is still to come; it ends with the backward, or when its graph is thrown away."""

    def __init__(self, among: set[int], draw: int) -> None:
        self.among, self.draw = among, draw
        among.add(draw)

    def close(self) -> None:
        """Count it no longer."""
        self.among.discard(self.draw)

    __del__ = close


class _Drop(torch.autograd.Function):
    """Inverted dropout that draws its mask again in the backward instead of keeping it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, probability: float, seed: int, here: _Open | None
    ) -> Tensor:
        ctx.probability, ctx.seed, ctx.here = probability, seed, here
        return drop(x, probability, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if ctx.here is not None:
            ctx.here.close()
        wanted = ctx.needs_input_grad[0]
        return drop(grad, ctx.probability, ctx.seed) if wanted else None, None, None, None, None


class _DropApart(torch.autograd.Function):
    """The same for a batch of several adapters, each with the mask that it would draw for its own rows alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, drawn: list[tuple[Mask, Tensor]]) -> Tensor:
        ctx.drawn = drawn
        return _apart(x, drawn)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        for mask, _ in ctx.drawn:
            if mask.here is not None:
                mask.here.close()
        return _apart(grad, ctx.drawn) if ctx.needs_input_grad[0] else None, None, None


def _apart(x: Tensor, drawn: list[tuple[Mask, Tensor]]) -> Tensor:
    out = x.clone()
    for mask, rows in drawn:
        out.index_copy_(0, rows, drop(x.index_select(0, rows), mask.probability, mask.seed))
    return out


def drop_apart(x: Tensor, anchor: Tensor | None, drawn: list[tuple[Mask, Tensor]]) -> Tensor:
    """Dropout of several adapters on their own rows of one batch; masks are drawn again in the backward.

    Args:
        x: the layer's input, rows first.
        anchor: a parameter that is trained, so that the backward comes by even where ``x`` needs no gradient.
        drawn: each adapter's mask and rows.

    Returns:
        Tensor like ``x``; rows of no adapter as they are.
    """
    out: Tensor = _DropApart.apply(x, anchor, drawn)  # type: ignore[no-untyped-call]
    return out


class Dropping(nn.Module):
    """Dropout on the term's input, shared by whole and sliced sites."""

    dropout: float
    drop_seed: int
    draws: int
    open: set[int]
    loose: list[int]
    bias: nn.Parameter | None
    tokens: TokenRows | None

    def start(self, config: LoRAConfig, droppable: bool, seed: int, path: str) -> None:
        """Set the dropout's state, and that nothing stands beside the update yet.

        Args:
            config: its dropout applies.
            droppable: whether the site's kind takes dropout at all.
            seed: seed of the run.
            path: path of the site.
        """
        set_plain(
            self,
            dropout=config.dropout if droppable else 0.0,
            drop_seed=seed_for(seed, path, "dropout"),
            draws=0,
            open=set(),
            loose=[],
            bias=None,
            tokens=None,
        )

    def dropped(self, x: Tensor) -> Tensor:
        """The term's input under dropout while training, ``x`` itself otherwise.

        Args:
            x: input of the layer.

        Returns:
            Tensor like ``x``.

        Raises:
            StateError: as ``mask``.
        """
        if self.training and self.dropout and torch.compiler.is_compiling():
            # a graph cannot count its calls: torch's own generator draws here, and checkpointing keeps its state
            return F.dropout(x, self.dropout)
        mask = self.mask()
        if mask is None:
            return x
        # the anchor makes the backward come by even where x needs no gradient, as in a first block
        out: Tensor = _Drop.apply(x, self._anchor(), *mask)  # type: ignore[no-untyped-call]
        return out

    def _anchor(self) -> nn.Parameter | None:
        return next((p for p in self.parameters() if p.requires_grad), None)

    def mask(self) -> Mask | None:
        """The next dropout mask while training, None otherwise.

        The masks come from this site's own counter, so the global random state is left alone. Activation
        checkpointing runs the forward again inside the backward; the same mask is then drawn again.

        Returns:
            What draws the mask.

        Raises:
            StateError: if several forwards are open and it cannot be told which one is being recomputed.
        """
        if not (self.training and self.dropout):
            return None
        here: _Open | None = None
        if torch._C._current_graph_task_id() != -1:
            draw = self._recomputed()
        else:
            self.draws = draw = self.draws + 1
            if torch.is_grad_enabled() and self._anchor() is not None:
                here = _Open(self.open, draw)
            else:
                self.loose = [*self.loose[-1:], draw]
        return Mask(self.dropout, seed_for(self.drop_seed, str(draw)), here)

    def _recomputed(self) -> int:
        """The draw that a forward inside a backward repeats: the only one that is open.

        Reentrant checkpointing runs its first forward without gradients; such a forward is loose instead.
        """
        candidates = self.open or self.loose
        if len(candidates) != 1:
            raise StateError(
                "adapter dropout cannot be recomputed: it is not clear which forward is meant",
                where=f"a layer with dropout={self.dropout} under activation checkpointing",
                got=f"{len(candidates)} open forwards",
                expected="one forward, then its backward",
                hint="run backward after each forward, or set dropout=0 or turn checkpointing off.",
            )
        if not self.open:
            self.loose = []
            return candidates[0]  # type: ignore[index]
        return next(iter(self.open))
