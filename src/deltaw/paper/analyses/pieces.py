"""An adapter as the analyses see it: one pair of matrices for each adapted matrix, slices of fused projections apart.

GPT-2 keeps W_q, W_k and W_v in one weight; the paper speaks of each by itself. Where the adapter was saved as slices,
``h.0.attn.c_attn[q]`` is the piece of W_q, with the rows of A that belong to it.

Legend: O output features, K columns of the weight's matrix, R rank.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.algebra.parts import Update, natural, parts_of
from deltaw.errors import ConfigError, nearest
from deltaw.read import CONFIG

__all__ = ["SIDES", "Piece", "chosen", "drawn_labels", "open_adapter", "pieces_of", "require_side"]

SIDES = ("A", "B")
"""A: directions of the input space, right singular vectors. B: of the output space, left ones (footnote 7)."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The update of one matrix, scaling * B A.

    Args:
        label: module path, with the slice in brackets where it is one.
        lora_A: shape (R, K), float64.
        lora_B: shape (O, R), float64.
        scaling: factor on the product.
    """

    label: str
    lora_A: Tensor
    lora_B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """R."""
        return int(self.lora_A.shape[0])

    def span(self, side: str) -> Tensor:
        """Rows that span one side's space.

        Args:
            side: "A" or "B".

        Returns:
            Shape (R, K) or (R, O).
        """
        return self.lora_A if side == "A" else self.lora_B.t()


def open_adapter(source: str | Path, *, alpha: float | None = None) -> Adapter:
    """Open an adapter that any of the known tools wrote.

    Args:
        source: a PEFT directory, or a file or directory of another format.
        alpha: LoRA's alpha, for formats that do not store it.

    Returns:
        The adapter.

    Raises:
        CheckpointError: if it cannot be read.
        ConfigError: if alpha is given for a file that says it itself.
    """
    place = Path(source).expanduser()
    if alpha is None and (place / CONFIG).is_file():
        return Adapter.open(place)
    from deltaw.ship.formats import open_any

    return open_any(place, alpha=alpha)


def pieces_of(adapter: Adapter) -> dict[str, Piece]:
    """Take an adapter apart.

    Args:
        adapter: any LoRA.

    Returns:
        Label -> piece, in the order of layers.

    Raises:
        CheckpointError: if it is no LoRA, is incomplete, or holds values that are not finite.
    """
    said = adapter.own.get("slices", {})
    found = [
        piece
        for path, update in parts_of(adapter).updates.items()
        for piece in (_slices(path, update, said[path]) if path in said else [_whole(path, update)])
    ]
    return {piece.label: piece for piece in sorted(found, key=lambda piece: natural(piece.label))}


def _whole(path: str, update: Update) -> Piece:
    """Groups of a convolution become blocks on the diagonal of B."""
    blocks = update.blocks()
    diagonal: Tensor = torch.block_diag(*(block[1] for block in blocks))  # type: ignore[no-untyped-call]
    lora_A = torch.cat([block[0] for block in blocks])
    return Piece(label=path, lora_A=lora_A, lora_B=diagonal, scaling=update.scaling)


def _slices(path: str, update: Update, said: Sequence[Mapping[str, object]]) -> list[Piece]:
    """The slices that deltaw noted when it stacked them."""
    whole, start, found = _whole(path, update), 0, []
    for note in said:
        rows = torch.cat([torch.arange(int(a), int(b)) for a, b in note["rows"]])  # type: ignore[attr-defined]
        # a start that is taken off again stands beside what was trained
        stop = start + int(str(note["rank"])) * (2 if note.get("subtract") else 1)
        found.append(
            Piece(
                label=f"{path}[{note['name']}]",
                lora_A=whole.lora_A[start:stop],
                lora_B=whole.lora_B[rows, start:stop],
                scaling=update.scaling,
            )
        )
        start = stop
    return found


def chosen(labels: Iterable[str], wanted: Sequence[str], where: str) -> list[str]:
    """Pieces that the user named, each name as in ``deltaw train --target``.

    Args:
        labels: labels of the pieces there are.
        wanted: dotted suffixes or globs, with or without a slice; empty means all.
        where: what the labels are of, for the message.

    Returns:
        Labels in their own order.

    Raises:
        ConfigError: if a name matches nothing.

    Example:
        >>> chosen(["h.0.c_attn[q]", "h.0.c_attn[v]", "h.1.c_attn[q]"], ["0.c_attn", "h.*[q]"], "a")
        ['h.0.c_attn[q]', 'h.0.c_attn[v]', 'h.1.c_attn[q]']
    """
    known = list(labels)
    if not wanted:
        return known
    taken: set[str] = set()
    for name in wanted:
        found = [label for label in known if _meant(label, name)]
        if not found:
            raise ConfigError(
                f"no module matches {name!r}",
                where=where,
                got=repr(name),
                expected=f"one of its {len(known)} modules, a dotted suffix of one, or a glob",
                hint=f"nearest: {nearest(name, known)}.",
            )
        taken.update(found)
    return [label for label in known if label in taken]


def _meant(label: str, name: str) -> bool:
    forms = (label, label.partition("[")[0])
    if any(letter in name for letter in "*?"):
        # in a glob a bracket would be a class of letters; here it names a slice
        pattern = name.replace("[", "[[]")
        return any(fnmatch.fnmatchcase(form, glob) for form in forms for glob in (pattern, f"*.{pattern}"))
    return any(form == name or form.endswith(f".{name}") for form in forms)


def drawn_labels(labels: Iterable[str], most: int) -> list[str]:
    """What a figure shows of many modules: evenly spaced layers, as figures 6 and 7 have it, all modules of each.

    Args:
        labels: labels of the pieces there are.
        most: how many at most.

    Returns:
        Labels in their own order.

    Example:
        >>> drawn_labels([f"h.{n}.{leaf}" for n in range(5) for leaf in "qv"], 6)
        ['h.0.q', 'h.0.v', 'h.2.q', 'h.2.v', 'h.4.q', 'h.4.v']
    """
    layers: dict[str, list[str]] = {}
    for label in labels:
        parts = label.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        layers.setdefault(".".join(parts[: numbers[-1] + 1]) if numbers else "", []).append(label)
    every = list(layers.values())
    wanted = max(1, most // max(map(len, every)))
    places = {round(place * (len(every) - 1) / max(1, wanted - 1)) for place in range(wanted)}
    taken = every if len(every) <= wanted else [every[place] for place in sorted(places)]
    return [label for layer in taken for label in layer][:most]


def require_side(side: str) -> str:
    """Refuse a side that no factor has.

    Args:
        side: as given.

    Returns:
        The same.

    Raises:
        ConfigError: if it is neither "A" nor "B".
    """
    if side not in SIDES:
        raise ConfigError(
            "a subspace belongs to A or to B",
            where="side",
            got=repr(side),
            expected="A (input directions, as in the paper) or B (output directions, footnote 7)",
            hint="leave it out for A.",
        )
    return side
