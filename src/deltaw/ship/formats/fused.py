"""Several small updates that transformers holds in one fused weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.ship.formats.draft import Draft, Update, zero_blocked

__all__ = ["Part", "add_parts"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One update on some rows of a weight.

    Args:
        update: the update as if its rows were a weight of their own.
        rows: which rows of the fused weight they are.
        out: rows of the whole weight.
    """

    update: Update
    rows: Tensor
    out: int


def add_parts(draft: Draft, parts: dict[str, list[Part]]) -> None:
    """Put the parts of each fused weight into one plain LoRA.

    Args:
        draft: receives the updates, and a problem where parts cannot stand together.
        parts: path -> parts, all with one rank and one alpha.
    """
    for path, members in parts.items():
        updates = [part.update for part in members]
        origin = " + ".join(update.origin for update in updates)
        first = updates[0]
        wrong = [u.origin for u, part in zip(updates, members, strict=True) if u.lora_B.shape[0] != len(part.rows)]
        if wrong or len({(u.rank, u.alpha, u.lora_A.shape[1]) for u in updates}) > 1:
            what = f"rows of {', '.join(wrong)}" if wrong else "ranks and sizes"
            draft.problems.append(f"'{origin}': {what} do not fit the parts of '{path}'")
            continue
        if any(update.magnitude is not None for update in updates):
            draft.problems.append(f"'{origin}': DoRA on parts of '{path}' is no DoRA of the whole")
            continue
        lora_A, lora_B = zero_blocked(
            torch.cat([update.lora_A for update in updates]),
            torch.cat([update.lora_B for update in updates]),
            [part.rows for part in members],
            members[0].out,
        )
        draft.add(path, Update(lora_A=lora_A, lora_B=lora_B, alpha=first.alpha * len(updates), origin=origin))
