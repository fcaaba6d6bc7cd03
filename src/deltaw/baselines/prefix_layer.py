"""Prefix-layer tuning: at inserted positions, what every block reads is a trained vector.

The paper replaces "the activations after every Transformer layer", and counts L d (lp + li). The vectors here stand
before each of the L blocks: behind the embeddings, and behind every block but the last. Behind the last block no layer
reads a prefix any more, and the last infix position predicts the completion's first token: a trained vector there would
make that prediction the same for all inputs.

Source:
    Li and Liang 2021, arXiv:2101.00190; "PreLayer" of arXiv:2106.09685, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.inserter import Inserter
from deltaw.baselines.layout import CURRENT
from deltaw.baselines.method import NAME, Piece, device_dtype
from deltaw.baselines.prefix_embedding import PrefixMethod
from deltaw.errors import StateError
from deltaw.initialize import seed_for

__all__ = ["PrefixLayer"]


class Replacer(Piece):
    """A block's piece: what the block reads at the inserted positions.

    Args:
        vectors: prefix, then infix, shape (P + I, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def hook(self, module: nn.Module, root: nn.Module) -> None:
        """Stand before the block.

        Args:
            module: the block.
            root: the model.
        """
        del root
        module.register_forward_pre_hook(self.replace, with_kwargs=True)

    def replace(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook.

        Args:
            module: the block.
            args: of its call, hidden states first where they are not named.
            kwargs: of its call.

        Returns:
            The call with trained vectors at the inserted positions; None leaves it as it is.

        Raises:
            StateError: if the block's activations are recomputed, when it is not known which batch they belong to.
        """
        if self.off:
            return None
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise StateError(
                "prefix-layer tuning does not go with gradient checkpointing",
                where=type(module).__name__,
                got="a block that is run again in the backward pass",
                expected="blocks that keep their activations",
                hint="call model.gradient_checkpointing_disable() and use smaller batches.",
            )
        layout = CURRENT.get()
        if layout is None:
            return None
        if args:
            return (layout.replace(args[0], self.vectors), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": layout.replace(kwargs["hidden_states"], self.vectors)}


_START = "at the start random vectors of the embeddings' size are attended to: outputs differ from the base's"


@dataclass(frozen=True, kw_only=True)
class PrefixLayer(PrefixMethod):
    """Trained vectors at inserted positions, in the place of what every block would read there.

    Example:
        >>> PrefixLayer(prefix_length=8, infix_length=8).inserted
        16
    """

    name: ClassVar[str] = "prefix-layer"
    title: ClassVar[str] = "prefix-layer tuning"

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make the body's piece and the blocks'.

        Args:
            anatomy: the model's parts.

        Returns:
            Module path -> piece; the body's has no tensors.
        """
        self.check_room(anatomy)
        found: dict[str, Piece] = {anatomy.body[0]: Inserter(anatomy, self.prefix_length, self.infix_length, None)}
        table: Tensor = anatomy.embedding.weight.detach()  # type: ignore[operator]
        spread = 0.0 if table.is_meta else float(table[: min(len(table), 4096)].float().std())
        for path, block in anatomy.blocks.items():
            device, _ = device_dtype(block, anatomy.model)
            vectors = torch.empty(self.inserted, anatomy.width, device=device)
            if device.type != "meta":
                generator = torch.Generator().manual_seed(seed_for(self.seed, NAME, path))
                vectors = (torch.randn(vectors.shape, generator=generator) * spread).to(device)
            found[path] = Replacer(vectors)
        return found

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say how it starts and what room is left.

        Args:
            anatomy: the model's parts.

        Returns:
            Two lines.
        """
        return _START, self.room_note(anatomy)
