"""Embedding: a table with an update, whose A starts at zero and whose B is drawn."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deltaw.functional import add_term
from deltaw.layers import KINDS, Kind
from deltaw.loralib.base import Adapted, Self
from deltaw.loralib.take import refuse_base, take

__all__ = ["Embedding"]

_SAME = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


class Embedding(Adapted, nn.Embedding):
    """nn.Embedding with an update: the row of W, and lora_alpha / r * B times the column of A.

    A (r, num_embeddings) starts at zero and B (embedding_dim, r) is drawn, the other way round than in a linear layer,
    so that only the columns of tokens that were seen ever leave zero. ``padding_idx`` and ``max_norm`` hold for the
    sum.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of a row.
        r: rank of the update; 0 makes the plain layer.
        lora_alpha: numerator of the scaling.
        merge_weights: ``eval()`` adds the update to the table, ``train()`` takes it off again.
        **kwargs: further arguments of ``nn.Embedding``.

    Example:
        >>> import torch
        >>> table = Embedding(10, 4, r=2)
        >>> torch.equal(table(torch.tensor([3]))[0], table.weight[3]), table.lora_A.shape
        (True, torch.Size([2, 10]))
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, r: int = 0, lora_alpha: float = 1, merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        self._begin(r, lora_alpha, 0.0, merge_weights)
        if r > 0:
            self._grow((r, num_embeddings), (embedding_dim, r))
        if kwargs.get("_weight") is None:
            self.reset_parameters()
        else:
            # from_pretrained hands the table over; drawing it anew would throw it away
            self.reset_factors()

    def _kind(self) -> Kind:
        return KINDS["Embedding"]

    def reset_factors(self) -> None:
        """Draw the factors anew and leave the table alone: A zero, B normal."""
        if self.adapted:
            nn.init.zeros_(self.lora_A)
            nn.init.normal_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the table, with the update's unless it is in the table.

        Args:
            x: token ids, any shape.

        Returns:
            Tensor of shape (*x.shape, embedding_dim).
        """
        if not self._speaks():
            return super().forward(x)
        kind = self._kind()
        assert kind.plain is not None and kind.bounded is not None
        out = kind.plain(self, x)
        out = super().forward(x) if out is None else out
        term = kind.up(self, kind.down(self, x, self.lora_A, out.dtype), self.lora_B)
        return kind.bounded(self, add_term(out, term, self.scaling))

    @classmethod
    def from_base(cls: type[Self], base: nn.Module, *, r: int, lora_alpha: float, merge_weights: bool = True) -> Self:
        """Put an update beside a table that exists; the table is its very parameter.

        Args:
            base: an ``nn.Embedding``; put the new layer in its place.
            r: rank of the update.
            lora_alpha: numerator of the scaling.
            merge_weights: ``eval()`` adds the update to the table, ``train()`` takes it off again.

        Returns:
            The layer, in the mode of ``base``.

        Raises:
            TargetError: if it is another kind of layer, or one whose forward or weight is not torch's own.
        """
        if type(base) is not nn.Embedding:
            raise refuse_base(base, "a plain nn.Embedding")
        settings = {"r": r, "lora_alpha": lora_alpha, "merge_weights": merge_weights}
        return take(cls, base, {**{name: getattr(base, name) for name in _SAME}, **settings})

    def plain(self) -> nn.Module:
        """The nn.Embedding of these sizes, on the meta device.

        Returns:
            The layer.
        """
        return nn.Embedding(**{name: getattr(self, name) for name in _SAME}, device="meta")
