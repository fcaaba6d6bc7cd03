"""PEFT's tensor keys: what each one says, and how ours are spelled.

Every key is ``base_model.model.`` + module path + a suffix. The adapter's name never appears in a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from deltaw.layers import KINDS

__all__ = ["PREFIX", "Contents", "read_keys"]

PREFIX = "base_model.model."
_SUFFIXES = {
    suffix: (kinds, index) for kinds in {kind.suffixes for kind in KINDS.values()} for index, suffix in enumerate(kinds)
}


@dataclass
class Contents:
    """A file's tensors, sorted by what they mean.

    Args:
        factors: path -> {0: A, 1: B}.
        suffixes: path -> the suffixes its factors had.
        base: "path.parameter" -> a copy of a frozen base parameter that PEFT wrote along, or a trained bias.
        rest: "path.parameter" -> everything else: full copies and biases of modules without factors.
    """

    factors: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    suffixes: dict[str, tuple[str, str]] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)


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
        name = key.removeprefix(PREFIX)
        # with bias="all", PEFT's substring match also writes the biases inside its own wrappers of full copies
        if ".modules_to_save." in name or ".original_module." in name:
            inner = re.sub(r"\.(modules_to_save|original_module)\.", ".", name)
            if PREFIX + inner in tensors:
                continue
            name = inner
        for suffix, (kinds, index) in _SUFFIXES.items():
            if name.endswith(suffix):
                path = name.removesuffix(suffix)
                contents.factors.setdefault(path, {})[index] = tensors[key]
                contents.suffixes[path] = kinds
                break
        else:
            if ".base_layer." in name:
                contents.base[name.replace(".base_layer.", ".")] = tensors[key]
            else:
                contents.rest[name] = tensors[key]
    return contents
