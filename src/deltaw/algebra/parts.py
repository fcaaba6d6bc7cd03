"""What an adapter is made of, for arithmetic: its updates as blocks of matrices, and what is no update.

An update is scaling * B A. A linear map, an embedding or an attention projection is one block; a convolution with
groups is one block for each group, A_j (R/g, K) and B_j (O/g, R/g), because B meets only its own group's rank space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError
from deltaw.keys import EXTRAS, INNER, PREFIX, factors_meet

__all__ = ["Block", "Parts", "Update", "attention_of", "named", "natural", "parts_of", "together"]

Block = tuple[Tensor, Tensor]
"""A (r, K) and B (o, r) as matrices."""

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Update:
    """One module's low-rank update.

    Args:
        path: module path.
        stem: the path as keys have it, which differs within PEFT's attention.
        lora_A: as stored, (R, I) or (R, I, *kernel).
        lora_B: as stored, (O, R) or (O, R / groups, 1...).
        scaling: factor on B A.
        suffixes: key endings of A and B.
        bias: a trained bias of B, shape (O,), scaled like B; None where there is none.
    """

    path: str
    stem: str
    lora_A: Tensor
    lora_B: Tensor
    scaling: float
    suffixes: tuple[str, str]
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """R, all groups together."""
        return int(self.lora_A.shape[0])

    @property
    def groups(self) -> int:
        """Number of blocks."""
        return int(self.lora_A.shape[0] // self.lora_B.shape[1])

    @property
    def shape(self) -> tuple[tuple[int, ...], int, int]:
        """What two updates must share to be added: A's shape without the rank, O, and the groups."""
        return tuple(self.lora_A.shape[1:]), int(self.lora_B.shape[0]), self.groups

    @property
    def parameters(self) -> int:
        """Values of A and B."""
        return self.lora_A.numel() + self.lora_B.numel()

    def blocks(self, dtype: torch.dtype = torch.float64) -> list[Block]:
        """The update's factors as matrices, without the scaling.

        Args:
            dtype: to compute in.

        Returns:
            One pair for each group.
        """
        lora_A, lora_B = self.lora_A.detach().to(dtype).flatten(1), self.lora_B.detach().to(dtype).flatten(1)
        groups = self.groups
        return list(zip(lora_A.chunk(groups), lora_B.chunk(groups), strict=True)) if groups > 1 else [(lora_A, lora_B)]

    def with_blocks(self, blocks: Sequence[Block], scaling: float, dtypes: tuple[torch.dtype, torch.dtype]) -> Update:
        """The same module with other factors.

        Args:
            blocks: as ``blocks`` returns them, all of one rank.
            scaling: the factor that goes with them.
            dtypes: in which A and B are stored.

        Returns:
            The update.
        """
        lora_A = torch.cat([block[0] for block in blocks]).reshape(-1, *self.lora_A.shape[1:])
        lora_B = torch.cat([block[1] for block in blocks])
        lora_B = lora_B.reshape(*lora_B.shape, *([1] * (self.lora_B.dim() - 2)))
        return replace(
            self,
            lora_A=lora_A.to(dtypes[0]).contiguous(),
            lora_B=lora_B.to(dtypes[1]).contiguous(),
            scaling=scaling,
        )

    def padded(self, rank: int) -> Update:
        """The same update written with a larger rank: zeros in A and B, the scaling kept.

        Args:
            rank: at least the present one, a multiple of the groups.

        Returns:
            The update; itself where the rank is the present one.
        """
        more = (rank - self.rank) // self.groups
        if more == 0:
            return self
        own = (self.lora_A.dtype, self.lora_B.dtype)
        wide = [
            (torch.cat([A, A.new_zeros(more, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], more)], 1))
            for A, B in self.blocks(torch.promote_types(*own))
        ]
        return self.with_blocks(wide, self.scaling, own)

    @property
    def keys(self) -> tuple[str, str]:
        """Keys of A and B in a file."""
        return PREFIX + self.stem + self.suffixes[0], PREFIX + self.stem + self.suffixes[1]

    def tensors(self) -> dict[str, Tensor]:
        """The update as a file holds it.

        Returns:
            key -> tensor.
        """
        found = {self.keys[0]: self.lora_A, self.keys[1]: self.lora_B}
        if self.bias is not None:
            found[PREFIX + self.stem + EXTRAS["bias_B"]] = self.bias
        return found


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An adapter's tensors, sorted by what arithmetic can do with them.

    Args:
        updates: path -> update: sums of these are exact.
        magnitudes: path -> DoRA's magnitude key; the output is not linear in B A there.
        whole: keys of trained values that are no updates: full copies, biases of the base, token rows.
        frozen: keys of frozen base tensors that were written along.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    magnitudes: dict[str, str] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


def named(names: Iterable[str], shown: int = _SHOWN) -> str:
    """A list of names for a message.

    Args:
        names: paths or keys.
        shown: how many at most.

    Returns:
        Quoted names, and how many more there are.

    Example:
        >>> named(["a", "b", "c"], 2)
        "'a', 'b' and 1 more"
    """
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(repr(name.removeprefix(PREFIX)) for name in every[:shown]) + more


def natural(path: str) -> list[tuple[int, str]]:
    """Sort key under which layer 2 stands before layer 10.

    Args:
        path: module path.

    Returns:
        The key.

    Example:
        >>> sorted(["h.10.q", "h.2.q"], key=natural)
        ['h.2.q', 'h.10.q']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def parts_of(adapter: Adapter) -> Parts:
    """Sort an adapter's tensors for arithmetic.

    Args:
        adapter: any adapter.

    Returns:
        Its parts.

    Raises:
        CheckpointError: if it is no LoRA, is incomplete, or holds values that are not finite.
    """
    _require_lora(adapter)
    _require_pairs(adapter)
    _require_finite(adapter)
    contents = adapter.contents
    updates = {path: _update(adapter, path) for path in sorted(contents.factors)}
    owned = {key for update in updates.values() for key in update.tensors()}
    magnitudes: dict[str, str] = {}
    whole: list[str] = []
    frozen: list[str] = []
    along = tuple(f"{path}." for path in adapter.own.get("along", ()))
    for key in sorted(adapter.tensors):
        name = key.removeprefix(PREFIX)
        if PREFIX + name in owned:
            continue
        if name.removesuffix(".weight").endswith(EXTRAS["magnitude"]):
            magnitudes[name.removesuffix(".weight").removesuffix(EXTRAS["magnitude"])] = key
        elif (".base_layer." in name and not name.endswith(".bias")) or (along and name.startswith(along)):
            frozen.append(key)
        else:
            whole.append(key)
    return Parts(updates=updates, magnitudes=magnitudes, whole=tuple(whole), frozen=tuple(frozen))


def _update(adapter: Adapter, path: str) -> Update:
    pair, extras = adapter.contents.factors[path], adapter.contents.extras.get(path, {})
    suffixes = adapter.contents.suffixes[path]
    stem = path.removesuffix(".out_proj") + INNER
    known = {key.removeprefix(PREFIX) for key in adapter.tensors} if path.endswith(".out_proj") else set()
    return Update(
        path=path,
        stem=stem if stem + suffixes[0] in known else path,
        lora_A=pair[0],
        lora_B=pair[1],
        scaling=adapter.scaling(path),
        suffixes=suffixes,
        bias=extras.get("bias_B"),
    )


def _require_lora(adapter: Adapter) -> None:
    method = str(adapter.raw.get("peft_type", "LORA")).upper()
    if method != "LORA":
        raise CheckpointError(
            f"adapter algebra works on low-rank updates, and this is {method}",
            where=adapter.where,
            got=f"peft_type {method!r}",
            expected="peft_type 'LORA'",
            hint="merge it into a copy of its base, then deltaw extract gives a LoRA from the two.",
        )
    if not adapter.contents.factors:
        raise CheckpointError(
            "the adapter has no low-rank update",
            where=adapter.where,
            got=f"{len(adapter.tensors)} tensors, none of them lora_A or lora_B",
            expected="at least one module with lora_A and lora_B",
            hint="full copies and biases alone cannot be added or resized.",
        )


def _require_pairs(adapter: Adapter) -> None:
    """All broken pairs in one error."""
    wrong = []
    for path, pair in sorted(adapter.contents.factors.items()):
        if set(pair) != {0, 1}:
            wrong.append(f"'{path}' has no lora_{'B' if 0 in pair else 'A'}")
        elif not factors_meet(pair[0], pair[1]):
            wrong.append(f"'{path}' has A {tuple(pair[0].shape)} and B {tuple(pair[1].shape)}")
    if wrong:
        raise CheckpointError(
            "factors of the adapter do not fit together",
            where=adapter.where,
            got="; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""),
            expected="for every module A of shape (R, I) and B of shape (O, R)",
            hint="the file is incomplete: save or download it again.",
        )


def _require_finite(adapter: Adapter) -> None:
    broken = [
        key
        for key, tensor in sorted(adapter.tensors.items())
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
    ]
    if broken:
        raise CheckpointError(
            "the adapter holds values that are not finite",
            where=f"{adapter.where}, {len(broken)} tensors, first '{broken[0]}'",
            got="NaN or infinity",
            expected="finite numbers",
            hint="the training that wrote it diverged; take an earlier checkpoint.",
        )


def attention_of(update: Update) -> str | None:
    """The attention whose output projection this is; PEFT has one rank and one alpha for both of its projections.

    Args:
        update: any update.

    Returns:
        The attention's path, or None.
    """
    return update.stem.removesuffix(INNER) if update.stem.endswith(INNER) else None


def together(updates: Mapping[str, Update], twins: Mapping[str, str]) -> list[list[str]]:
    """Modules that must keep one rank: an attention's two projections, and the users of one tied update.

    Args:
        updates: path -> update.
        twins: path -> the path whose update it shares, from the file's metadata.

    Returns:
        Groups of paths, each group sorted, in the order of their first paths.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(updates):
        owner = attention_of(updates[path]) or path
        groups.setdefault(twins.get(owner, owner), []).append(path)
    return list(groups.values())
