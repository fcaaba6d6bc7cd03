"""PEFT's tensor keys: what each one says, and how ours are spelled.

Every key is ``base_model.model.`` + module path + a suffix. The adapter's name never appears in a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deltaw.layers import KINDS

__all__ = ["EXTRAS", "INNER", "PREFIX", "ROWS", "SHARED", "TWICE", "VECTORS", "Contents", "factors_meet", "read_keys"]

PREFIX = "base_model.model."
_SUFFIXES = {
    suffix: (kinds, index) for kinds in {kind.suffixes for kind in KINDS.values()} for index, suffix in enumerate(kinds)
}
EXTRAS = {"magnitude": ".lora_magnitude_vector", "bias_B": ".lora_B.bias"}
"""Key endings of what a variant keeps beside A and B."""
VECTORS = {"vera_b": ".vera_lambda_b", "vera_d": ".vera_lambda_d"}
"""Key endings of a VeRA file, whose matrices are shared by all modules."""
SHARED = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}
"""Keys of the shared matrices."""
ROWS = ".token_adapter.trainable_tokens_delta"
"""Key ending of trained token rows; they are the rows themselves."""
INNER = ".base_layer.out_proj"
"""Where PEFT's attention keeps its output projection."""
TWICE = 2.0
"""PEFT (up to 0.21.2 at least) adds this projection's update twice, in its forward and in its merge. A file means what
its writer computed: B is read twice as large there, and written half as large, which is exact."""


@dataclass
class Contents:
    """A file's tensors, sorted by what they mean.

    Args:
        factors: path -> {0: A, 1: B}.
        suffixes: path -> the suffixes its factors had.
        inner: paths of output projections that PEFT keeps inside its attention.
        extras: path -> name -> what a variant keeps beside the factors.
        vectors: path -> name -> what a VeRA file keeps for a module.
        shared: name -> what all modules of a VeRA file share.
        rows: path -> trained rows of a token table.
        base: "path.parameter" -> a copy of a frozen base parameter that PEFT wrote along, or a trained bias.
        rest: "path.parameter" -> everything else: full copies and biases of modules without factors.
        twice: keys whose place another key of the file has too, such as one with the prefix and one without.
    """

    factors: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    suffixes: dict[str, tuple[str, str]] = field(default_factory=dict)
    inner: set[str] = field(default_factory=set)
    extras: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    vectors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def read_keys(tensors: Mapping[str, Tensor]) -> Contents:
    """Sort a file's tensors by what their keys say.

    Args:
        tensors: key -> tensor, as in the file; the prefix is optional.

    Returns:
        The contents.

    Example:
        >>> import torch
        >>> found = read_keys({"base_model.model.h.0.q.lora_A.weight": torch.zeros(1, 2)})
        >>> list(found.factors)
        ['h.0.q']
    """
    contents = Contents()
    for key in sorted(tensors):
        tensor = tensors[key]
        if tensor.is_floating_point() and tensor.itemsize == 1:
            # torch has no arithmetic for one-byte floats; fp32 holds their values exactly
            tensor = tensor.float()
        name = key.removeprefix(PREFIX)
        # with bias="all", PEFT's substring match also writes the biases inside its own wrappers of full copies
        if ".modules_to_save." in name or ".original_module." in name:
            inner = re.sub(r"\.(modules_to_save|original_module)\.", ".", name)
            if PREFIX + inner in tensors:
                continue
            name = inner
        if not _sorted_in(contents, key, name, tensor):
            place = contents.base if ".base_layer." in name else contents.rest
            _put(contents, key, place, name.replace(".base_layer.", "."), tensor)
    return contents


def factors_meet(lora_A: Tensor, lora_B: Tensor) -> bool:
    """Whether B reads A's rank space: all of it, or with convolutions one group's share of it.

    Args:
        lora_A: as in the file, shape (R, ...).
        lora_B: as in the file, shape (O, R, ...).

    Returns:
        True for floating-point factors of one product.

    Example:
        >>> import torch
        >>> factors_meet(torch.ones(2, 8), torch.ones(6, 2)), factors_meet(torch.ones(2, 8), torch.ones(2, 6))
        (True, False)
    """
    if lora_A.dim() < 2 or lora_A.dim() != lora_B.dim() or 0 in (*lora_A.shape, *lora_B.shape):
        return False
    if not (lora_A.is_floating_point() and lora_B.is_floating_point()):
        return False
    rank, own = lora_A.shape[0], lora_B.shape[1]
    if lora_A.dim() == 2:
        return rank == own
    groups = rank // own
    return rank % own == 0 and lora_B.shape[0] % groups == 0 and lora_B[0, 0].numel() == 1


def _put(contents: Contents, key: str, place: dict[Any, Tensor], name: str | int, tensor: Tensor) -> None:
    """Put a tensor in its place, and note where another one has it already."""
    if name in place:
        contents.twice.append(key)
    place[name] = tensor


def _sorted_in(contents: Contents, key: str, name: str, tensor: Tensor) -> bool:
    """Put a tensor where its ending says; False where it is none of an adapter's own."""
    for suffix, (kinds, index) in _SUFFIXES.items():
        if name.endswith(suffix):
            path = _plain(name.removesuffix(suffix))
            _put(contents, key, contents.factors.setdefault(path, {}), index, tensor)
            contents.suffixes[path] = kinds
            contents.inner |= {path} if name.removesuffix(suffix).endswith(INNER) else set()
            return True
    for group, endings in ((contents.extras, EXTRAS), (contents.vectors, VECTORS)):
        for extra, suffix in endings.items():
            # the magnitude was a module of its own in some versions
            if name.endswith((suffix, f"{suffix}.weight")):
                path = _plain(name.removesuffix(".weight").removesuffix(suffix))
                _put(contents, key, group.setdefault(path, {}), extra, tensor)
                return True
    if name.endswith(ROWS):
        _put(contents, key, contents.rows, name.removesuffix(ROWS), tensor)
        return True
    for extra, whole in SHARED.items():
        if key == whole:
            contents.shared[extra] = tensor
            return True
    return False


def _plain(path: str) -> str:
    """The path in the model of what PEFT keeps inside its attention."""
    return path.removesuffix(INNER) + ".out_proj" if path.endswith(INNER) else path
