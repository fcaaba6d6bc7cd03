"""Prefix-embedding tuning: special tokens before the context and before the completion, with trained embeddings.

Source:
    Li and Liang 2021, arXiv:2101.00190; "PreEmbed" of arXiv:2106.09685: d (lp + li) values, with lp + li fewer
    positions left for the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.inserter import Inserter
from deltaw.baselines.method import NAME, Method, Piece, whole
from deltaw.errors import ConfigError
from deltaw.initialize import seed_for

__all__ = ["PrefixEmbedding", "PrefixMethod", "starting_ids"]


@dataclass(frozen=True, kw_only=True)
class PrefixMethod(Method):
    """What the prefix baselines share.

    Args:
        prefix_length: lp, positions before the first token.
        infix_length: li, positions between context and completion.
    """

    prefix_length: int = 8
    infix_length: int = 0

    unmergeable: ClassVar[str] = "inserted positions are inputs: no weight of the base computes them"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "prefix_length", 0)
        whole(self, "infix_length", 0)
        if not self.inserted:
            raise ConfigError(
                "there is no position to train",
                where=f"{type(self).__name__}(prefix_length=0, infix_length=0)",
                got="0 + 0 positions",
                expected="at least one",
                hint="set prefix_length to 1 or more.",
            )

    @property
    def inserted(self) -> int:
        """lp + li."""
        return self.prefix_length + self.infix_length

    def check_room(self, anatomy: Anatomy) -> None:
        """Refuse a prefix that fills the model.

        Args:
            anatomy: the model's parts.

        Raises:
            ConfigError: if no token fits beside it.
        """
        if anatomy.positions is not None and self.inserted >= anatomy.positions:
            raise ConfigError(
                "the inserted positions fill the model",
                where="prefix_length and infix_length",
                got=f"{self.prefix_length} + {self.infix_length} positions",
                expected=f"fewer than {anatomy.positions}, which is all that the model takes",
                hint="lower prefix_length.",
            )

    def room_note(self, anatomy: Anatomy) -> str:
        """Say what is left for the input.

        Args:
            anatomy: the model's parts.

        Returns:
            One line.
        """
        if anatomy.positions is None:
            return f"{self.inserted} positions are inserted into every input"
        return f"{self.inserted} positions are inserted: inputs of up to {anatomy.positions - self.inserted} tokens fit"


def starting_ids(method: Method, count: int, table: Tensor, path: str) -> Tensor:
    """Draw the tokens whose embeddings the inserted ones start as.

    Args:
        method: whose seed is used.
        count: how many.
        table: the embedding table, shape (V, D).
        path: of the body, for a seed of its own.

    Returns:
        int64, shape (count,).
    """
    generator = torch.Generator().manual_seed(seed_for(method.seed, NAME, path))
    return torch.randint(len(table), (count,), generator=generator)


_START = "at the start the model computes what the base computes with as many random tokens in those places"


@dataclass(frozen=True, kw_only=True)
class PrefixEmbedding(PrefixMethod):
    """Trained embeddings before the input and before its completion.

    They start as the embeddings of tokens drawn from the vocabulary, so the model starts as the base with those tokens.

    Example:
        >>> PrefixEmbedding(prefix_length=32, infix_length=8).inserted
        40
    """

    name: ClassVar[str] = "prefix-embedding"
    title: ClassVar[str] = "prefix-embedding tuning"

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make the body's piece.

        Args:
            anatomy: the model's parts.

        Returns:
            Path of the body -> piece.
        """
        self.check_room(anatomy)
        path, _ = anatomy.body
        table: Tensor = anatomy.embedding.weight.detach()  # type: ignore[operator]
        if table.is_meta:
            rows = torch.empty(self.inserted, table.shape[1], device=table.device)
        else:
            rows = table[starting_ids(self, self.inserted, table, path).to(table.device)].float()
        return {path: Inserter(anatomy, self.prefix_length, self.infix_length, rows)}

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say how it starts and what room is left.

        Args:
            anatomy: the model's parts.

        Returns:
            Two lines.
        """
        return _START, self.room_note(anatomy)
