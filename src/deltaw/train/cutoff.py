"""Cut-off: part of the input is taken away in training, behind the embedding table, and the targets stay as they are.

Legend: N rows, T tokens, H size of an embedding. Of each row

    token     every token's embedding is zero with the given probability
    span      a run of tokens that makes up the given share, somewhere in the row, is zero
    feature   every one of the H features is zero in all tokens with the given probability
    unknown   every token is read as the tokenizer's unknown token with the given probability

Padding and special tokens (starts, ends, separators) are never taken away, but their features are: what is cut then is
a direction, not a place. What is left is not scaled up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import StateError
from deltaw.train.batches import Batch

__all__ = ["Cutoff"]


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """What is cut off, and how much.

    Args:
        share: the probability, or the share of a row, 0 to 1.
        kind: ``token``, ``span``, ``feature`` or ``unknown``.
        special: ids that are never cut.
        unknown: id of the unknown token, which only its kind needs.

    Source:
        Shen et al. 2020, arXiv:2009.13818 (token, feature and span cutoff); microsoft/LoRA at c4593f0, examples/NLU,
        the setting masking_prob of its DeBERTa (``unknown``).
    """

    share: float
    kind: str = "token"
    special: tuple[int, ...] = ()
    unknown: int | None = None

    def draw(self, batch: Batch, size: int, first: int = 0) -> Tensor:
        """Draw what is cut, from torch's random stream on the CPU: the same on every device.

        Args:
            batch: the rows.
            size: H.
            first: rows before this one stay whole.

        Returns:
            Bool, true where something is cut: shape (N, T), or (N, 1, H) for ``feature``; on the batch's device.
        """
        ids = batch.input_ids
        count, width = ids.shape
        if self.kind == "feature":
            cut = torch.rand(count - first, 1, size) < self.share
            return _below(cut, first).to(ids.device)
        real = torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask
        open_ = real.bool() & ~torch.isin(ids, torch.tensor(self.special, dtype=ids.dtype, device=ids.device))
        if self.kind == "span":
            cut = self._spans(real[first:].sum(1).cpu(), width)
        else:
            cut = torch.rand(count - first, width) < self.share
        return _below(cut, first).to(ids.device) & open_

    def _spans(self, tokens: Tensor, width: int) -> Tensor:
        """One run of tokens for each row, all starts equally likely."""
        length = (tokens * self.share).round().clamp_min(1)
        start = (torch.rand(len(tokens)) * (tokens - length + 1)).floor()
        place = torch.arange(width)
        return (place >= start[:, None]) & (place < (start + length)[:, None])

    @contextmanager
    def applied(self, model: nn.Module, batch: Batch, first: int = 0) -> Iterator[None]:
        """Cut what the model reads within the block.

        Args:
            model: with an embedding table, as transformers' models have.
            batch: what it is called with there.
            first: rows before this one stay whole.

        Yields:
            None: the block.

        Raises:
            StateError: if the model did not read these tokens through its embedding table.
        """
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        cut, reached = self.draw(batch, table.weight.shape[-1], first), []

        def ids(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            if not inputs or inputs[0].shape != cut.shape:
                return None
            reached.append(module)
            return (inputs[0].masked_fill(cut, self.unknown), *inputs[1:])

        def values(module: nn.Module, inputs: Any, out: Tensor) -> Any:
            if out.shape[:2] != batch.input_ids.shape:
                return None
            reached.append(module)
            return out.masked_fill(cut if self.kind == "feature" else cut[..., None], 0.0)

        handle = table.register_forward_pre_hook(ids) if self.kind == "unknown" else table.register_forward_hook(values)
        try:
            yield
        finally:
            handle.remove()
        if not reached:
            raise StateError(
                "nothing was cut off",
                where=f"{type(model).__name__}, --cutoff",
                got="a forward that does not read these tokens through get_input_embeddings()",
                expected="one look-up of the batch's tokens",
                hint="drop --cutoff: this model reads its tokens another way",
            )


def _below(cut: Tensor, first: int) -> Tensor:
    """Rows that stay whole, and the cut ones below them."""
    return torch.cat([torch.zeros((first, *cut.shape[1:]), dtype=torch.bool), cut])
