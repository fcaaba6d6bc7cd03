"""What an importer fills: updates by module path, and every tensor that found no place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaw.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from deltaw.ship.formats.tree import Node, Tree

__all__ = ["Draft", "Update", "raise_problems", "zero_blocked"]

_SHOWN = 12


@dataclass(kw_only=True)
class Update:
    """One module's update, as PEFT stores it.

    Args:
        lora_A: shape (R, I), (R, V) for an embedding, (R, I / groups, *kernel) for a convolution.
        lora_B: shape (O, R), or (O, R / groups, 1...) for a convolution.
        alpha: the update is alpha / R * B A.
        origin: the name it had in the file.
        table: it belongs to an embedding.
        magnitude: DoRA's magnitude, shape (O,), or None.
        bias: of B, shape (O,), or None.
    """

    lora_A: Tensor
    lora_B: Tensor
    alpha: float
    origin: str
    table: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.lora_A.shape[0]


@dataclass(kw_only=True)
class Draft:
    """An adapter in the making.

    Args:
        where: the file, for messages.
        title: who wrote it.
        tree: the base's modules, or None.
        updates: path -> update.
        copies: "path.parameter" -> tensor of a module trained in full.
        biases: path -> trained bias.
        notes: lines for the report.
        left: names that were left aside because the user asked for it.
        problems: what found no place, and why.
        used: options that made a difference.
        keep: fields for the adapter's configuration.
    """

    where: str
    title: str
    tree: Tree | None = None
    updates: dict[str, Update] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    keep: dict[str, object] = field(default_factory=dict)

    def node(self, path: str) -> Node | None:
        """What is known of a module.

        Args:
            path: its path.

        Returns:
            The module, or None where no tree was given or it has no such module.
        """
        return None if self.tree is None else self.tree.nodes.get(path)

    def add(self, path: str, update: Update) -> None:
        """Put an update where it belongs; whatever does not fit there becomes a problem.

        Args:
            path: module path in the base.
            update: what the file holds for it.
        """
        if path in self.updates:
            other = self.updates[path].origin
            self.problems.append(f"'{update.origin}' and '{other}' both belong to '{path}'")
            return
        node = self.node(path)
        if self.tree is not None and node is None:
            close = nearest(path, self.tree.adaptable(), 2)
            self.problems.append(f"'{update.origin}': no module '{path}' in {self.tree.where}; nearest: {close}")
            return
        if node is not None:
            _square(update, node)
            if not node.admits(update.lora_A, update.lora_B):
                shapes = f"A {tuple(update.lora_A.shape)} and B {tuple(update.lora_B.shape)}"
                self.problems.append(f"'{update.origin}': {shapes} do not fit '{path}', {node}")
                return
            update.table = update.table or node.kind == "embedding"
        if update.magnitude is not None and update.magnitude.numel() != update.lora_B.shape[0]:
            shapes = f"{tuple(update.magnitude.shape)} for {update.lora_B.shape[0]} outputs"
            self.problems.append(f"'{update.origin}': DoRA's magnitude {shapes}")
            return
        if update.table and update.magnitude is not None:
            self.problems.append(f"'{update.origin}': DoRA on an embedding, which PEFT stores in another sense")
            return
        self.updates[path] = update

    def pair(self, origin: str, lora_A: Tensor | None, lora_B: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Check that both factors of one module are there and meet in one rank.

        Args:
            origin: the module's name in the file.
            lora_A: the down factor, rank first, or None.
            lora_B: the up factor, rank second, or None.

        Returns:
            Both, or None after noting the problem.
        """
        if lora_A is None or lora_B is None:
            have, lack = ("down (A)", "up (B)") if lora_B is None else ("up (B)", "down (A)")
            self.problems.append(f"'{origin}' has its {have} factor but not its {lack} factor")
            return None
        if lora_A.dim() < 2 or lora_B.dim() < 2 or not lora_A.numel() or not lora_B.numel():
            shapes = f"A {tuple(lora_A.shape)} and B {tuple(lora_B.shape)}"
            self.problems.append(f"'{origin}': {shapes} are no factors")
            return None
        return lora_A, lora_B

    def same_rank(self, origin: str, pair: tuple[Tensor, Tensor]) -> bool:
        """Check that A (R, ...) and B (O, R, ...) meet.

        Args:
            origin: the module's name in the file.
            pair: both factors.

        Returns:
            Whether they do; a problem is noted where not.
        """
        if pair[0].shape[0] == pair[1].shape[1]:
            return True
        self.problems.append(f"'{origin}': A {tuple(pair[0].shape)} and B {tuple(pair[1].shape)} do not have one rank")
        return False

    def strays(self, names: Iterable[str], known: Iterable[str], why: str) -> None:
        """Note tensors that the format has no place for.

        Args:
            names: keys of the file.
            known: keys or paths they might have meant.
            why: what is wrong with them.
        """
        pool = list(known)
        for name in names:
            close = f"; nearest: {nearest(name, pool, 2)}" if pool else ""
            self.problems.append(f"'{name}' {why}{close}")


def _square(update: Update, node: Node) -> None:
    """Square a factor pair with its module: 1x1 kernels on linear maps and matrices on 1x1 convolutions."""
    A, B = update.lora_A, update.lora_B
    linear = node.kind in ("linear", "transposed") or (not node.kind and len(node.shape) == 2)
    if linear and A.dim() > 2 and A.shape[2:].numel() == 1 and B.shape[2:].numel() == 1:
        update.lora_A, update.lora_B = A.flatten(1), B.flatten(1)
    elif len(node.kernel) > 0 and A.dim() == 2 and B.dim() == 2 and set(node.kernel) == {1}:
        ones = (1,) * len(node.kernel)
        update.lora_A, update.lora_B = A.reshape(*A.shape, *ones), B.reshape(*B.shape, *ones)


def zero_blocked(lora_A: Tensor, lora_B: Tensor, rows: list[Tensor], out: int) -> tuple[Tensor, Tensor]:
    """Turn several small updates on rows of one weight into one plain LoRA.

    Args:
        lora_A: the parts' A, stacked, shape (n * R, I).
        lora_B: the parts' B, stacked, shape (sum of the parts' widths, R).
        rows: for each of the n parts, the rows of the weight it updates.
        out: O, rows of the whole weight.

    Returns:
        A of shape (n * R, I) and B of shape (O, n * R), zero outside the blocks; every value as it was.

    Example:
        >>> A, B = zero_blocked(torch.ones(2, 3), torch.ones(2, 1), [torch.tensor([0]), torch.tensor([2])], 3)
        >>> B
        tensor([[1., 0.],
                [0., 0.],
                [0., 1.]])
    """
    rank, start = lora_B.shape[1], 0
    wide = lora_B.new_zeros(out, rank * len(rows))
    for number, index in enumerate(rows):
        block = lora_B[start : start + len(index)]
        wide[index, number * rank : (number + 1) * rank] = block
        start += len(index)
    return lora_A, wide


def raise_problems(draft: Draft, hint: str) -> None:
    """Raise one error with everything that found no place.

    Args:
        draft: what was read.
        hint: what to do about it.

    Raises:
        CheckpointError: if there is any problem.
    """
    if not draft.problems:
        return
    number = len(draft.problems)
    shown = draft.problems[:_SHOWN] + ([f"and {number - _SHOWN} more"] if number > _SHOWN else [])
    raise CheckpointError(
        f"the file cannot be converted as it stands: {number} problem{'s' if number > 1 else ''}",
        where=f"{draft.where}, read as {draft.title}",
        got="\n    - ".join(["", *shown]),
        expected="one module for every tensor of the file",
        hint=hint,
    )


def index_of(start: int, stop: int) -> Tensor:
    """Row numbers from start up to stop.

    Args:
        start: first row.
        stop: the row after the last.

    Returns:
        Shape (stop - start,), int64.
    """
    return torch.arange(start, stop)
