"""One plain LoRA for what is more than that: slices of a weight, and the two projections of an attention.

A file knows one pair of factors and one scaling for each module. Slices are stacked: A on A, B in blocks of zeros.
The projections of an attention share one rank and one scaling in PEFT's files: the smaller one is padded with zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.factors import Pair
from deltaw.layers import Kind
from deltaw.sites import BaseView
from deltaw.variants.dora import row_norms

__all__ = ["Stack", "level", "stacked", "unstacked", "whole"]


@dataclass
class Stack:
    """What a file holds for one module.

    Args:
        lora_A: shape (R, K...).
        lora_B: shape (O, R...).
        scaling: factor on B A.
        extras: what a variant keeps beside them.
        alpha: numerator of the scaling where it is known exactly, or None.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float
    extras: dict[str, Tensor]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rank as the file states it."""
        return int(self.lora_A.shape[0])

    def numerator(self, stabilized: bool) -> float:
        """Alpha that gives the scaling at this rank.

        Args:
            stabilized: the scaling divides by the root of the rank.

        Returns:
            Alpha.
        """
        if self.alpha is not None:
            return self.alpha
        return self.scaling * (math.sqrt(self.rank) if stabilized else self.rank)


def whole(pair: Pair) -> Stack:
    """The update of a whole weight.

    Args:
        pair: the update.

    Returns:
        Its factors, those it started from included.
    """
    lora_A, lora_B = pair.factors
    extras = {name: pair.tensors[name] for name in ("magnitude", "bias_B") if name in pair.tensors}
    return Stack(lora_A, lora_B, pair.part.scaling, extras, None if pair.part.subtract else pair.part.alpha)


def stacked(parts: list[Pair], kind: Kind, module: nn.Module) -> Stack:
    """Slices as one plain LoRA.

    Where all slices have one scaling, the stack has it too and the factors are written bit for bit; otherwise each
    slice's scaling is folded into its B and the whole has scaling 1.

    Args:
        parts: the slices' updates.
        kind: the site's kind.
        module: the site's module.

    Returns:
        The stack.
    """
    width = kind.sizes(module)[1]
    pairs = [pair.factors for pair in parts]
    scalings = {pair.part.scaling for pair in parts}
    common = scalings.pop() if len(scalings) == 1 else None
    lora_A = torch.cat([A for A, _ in pairs])
    lora_B = torch.zeros(width, len(lora_A), dtype=lora_A.dtype, device=lora_A.device)
    extras: dict[str, Tensor] = {}
    if "magnitude" in parts[0].tensors:
        # rows without a slice keep their own norm, which is a factor of 1
        extras["magnitude"] = row_norms(BaseView(kind, module).matrix(), lora_A[:1] * 0, lora_B[:, :1], 1.0)
    if "bias_B" in parts[0].tensors:
        extras["bias_B"] = torch.zeros(width, dtype=lora_A.dtype, device=lora_A.device)
    start = 0
    for pair, (A, B) in zip(parts, pairs, strict=True):
        factor = 1.0 if common is not None else pair.part.scaling
        lora_B[pair.rows, start : start + len(A)] = B.detach() * factor
        if "magnitude" in extras:
            extras["magnitude"][pair.rows] = pair.tensors["magnitude"].detach().to(extras["magnitude"])
        if "bias_B" in extras:
            extras["bias_B"][pair.rows] = pair.tensors["bias_B"].detach() * factor
        start += len(A)
    return Stack(lora_A, lora_B, common or 1.0, extras)


def unstacked(stack: Stack, slices: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The slices of a stack.

    Args:
        stack: as it was read.
        slices: what the writer noted about each.

    Returns:
        (note, tensors by name) of each slice.
    """
    found, start = [], 0
    folded = len({said["scaling"] for said in slices}) > 1
    for said in slices:
        index = torch.cat([torch.arange(int(a), int(b)) for a, b in said["rows"]])
        width = int(said["rank"]) * (2 if said.get("subtract") else 1)
        stop = start + width
        factor = said["scaling"] if folded else 1.0
        tensors = split(stack.lora_A[start:stop], stack.lora_B[index, start:stop] / factor, bool(said.get("subtract")))
        if "magnitude" in stack.extras:
            tensors["magnitude"] = stack.extras["magnitude"].reshape(-1)[index]
        if "bias_B" in stack.extras:
            tensors["bias_B"] = stack.extras["bias_B"][index] / factor
        found.append((said, tensors))
        start = stop
    return found


def split(lora_A: Tensor, lora_B: Tensor, subtract: bool) -> dict[str, Tensor]:
    """Factors by name, apart from those they started from.

    Args:
        lora_A: shape (R, K...) or (2 R, K...).
        lora_B: shape (O, R...) or (O, 2 R...).
        subtract: the second half is what the first one started from.

    Returns:
        name -> tensor.
    """
    if not subtract:
        return {"lora_A": lora_A, "lora_B": lora_B}
    rank = len(lora_A) // 2
    return {
        "lora_A": lora_A[:rank], "lora_B": lora_B[:, :rank], "start_A": lora_A[rank:], "start_B": -lora_B[:, rank:],
    }  # fmt: skip


def level(first: Stack, second: Stack) -> bool:
    """Give two stacks one rank and one scaling.

    Args:
        first: keeps its scaling.
        second: has the difference folded into its B where the scalings differ.

    Returns:
        Whether anything had to be changed.
    """
    if (first.rank, first.scaling) == (second.rank, second.scaling):
        return False
    if second.scaling != first.scaling:
        factor = second.scaling / first.scaling
        second.lora_B = second.lora_B * factor
        second.extras = {n: t * factor if n == "bias_B" else t for n, t in second.extras.items()}
        second.scaling = first.scaling
    rank = max(first.rank, second.rank)
    for stack in (first, second):
        missing = rank - stack.rank
        if missing:
            A, B = stack.lora_A, stack.lora_B
            stack.lora_A = torch.cat([A, A.new_zeros((missing, *A.shape[1:]))])
            stack.lora_B = torch.cat([B, B.new_zeros((B.shape[0], missing, *B.shape[2:]))], dim=1)
    first.alpha = second.alpha = None
    return True
