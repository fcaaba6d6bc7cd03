"""The base's module tree as far as it is known: names, and where possible kinds and sizes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltaw.errors import ConfigError
from deltaw.tree import base_modules, require_model

__all__ = ["Node", "Tree"]

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One module.

    Args:
        kind: "linear", "transposed" (stored as (in, out)), "embedding", "conv", "other", or "" where it is not known.
        shape: of its weight, as stored; empty where it is not known.
        groups: of a convolution.
        parameters: names of its own parameters -> shape; empty where they are not known.
    """

    kind: str = ""
    shape: tuple[int, ...] = ()
    groups: int = 1
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The widths O that an update of it may have: one, two where the orientation is not known, or none."""
        if len(self.shape) < 2:
            return ()
        if self.kind in ("transposed", "embedding"):
            return (self.shape[1],)
        if self.kind or len(self.shape) > 2:
            return (self.shape[0],)
        return tuple(dict.fromkeys(self.shape))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel sizes of a convolution; empty for anything else."""
        return self.shape[2:] if self.kind in ("conv", "") else ()

    def admits(self, lora_A: Tensor, lora_B: Tensor) -> bool:
        """Whether an update could be one of this module; True where its size is not known.

        Args:
            lora_A: shape (R, I) or (R, I / groups, *kernel).
            lora_B: shape (O, R) or (O, R / groups, 1...).

        Returns:
            Whether the sizes fit.
        """
        if not self.shape:
            return self.kind != "other"
        if len(self.shape) < 2 or self.kind == "other":
            return False
        inner, outer = math.prod(lora_A.shape[1:]), lora_B.shape[0]
        flat = (math.prod(self.shape[1:]), self.shape[0])
        turned = (self.shape[0], self.shape[1])
        if self.kind in ("transposed", "embedding"):
            return (inner, outer) == turned
        if self.kind or len(self.shape) > 2:
            return (inner, outer) == flat
        return (inner, outer) in (flat, turned)

    def __str__(self) -> str:
        """Kind and size, for messages."""
        return f"{self.kind or 'module'} {'x'.join(map(str, self.shape)) or 'of unknown size'}"


@dataclass(frozen=True)
class Tree:
    """Modules by path.

    Args:
        nodes: path -> module; only those that could be adapted or saved in full.
        where: where the tree came from, for messages.
    """

    nodes: Mapping[str, Node]
    where: str

    def __contains__(self, path: str) -> bool:
        """Whether there is such a module."""
        return path in self.nodes

    def adaptable(self) -> list[str]:
        """Paths of the modules an update could belong to.

        Returns:
            Sorted paths.
        """
        return sorted(p for p, node in self.nodes.items() if node.kind != "other" and len(node.shape) != 1)

    @classmethod
    def of_model(cls, model: nn.Module) -> Tree:
        """Take the tree of a model; on the meta device too.

        Args:
            model: any module.

        Returns:
            The tree.

        Raises:
            ModelError: if it is no module.
        """
        model = require_model(model)
        nodes = {path: _node(module) for path, module in base_modules(model) if path}
        return cls(nodes, type(model).__name__)

    @classmethod
    def of_names(cls, names: Iterable[str], where: str = "a list of names") -> Tree:
        """Take the tree from module paths alone.

        Args:
            names: dotted paths; a final ``.weight`` is taken off.
            where: where they came from, for messages.

        Returns:
            The tree, without sizes.
        """
        return cls({name.removesuffix(".weight"): Node() for name in names}, where)

    @classmethod
    def read(cls, path: str | Path) -> Tree:
        """Read a tree from a file: names a line, JSON, or the header of the base's safetensors.

        Args:
            path: a text file with one module path a line; JSON, a list of paths or an object path -> shape of the
                weight; a ``.safetensors`` file or its index; or a directory with such files, also one level down
                (the components of a pipeline).

        Returns:
            The tree.

        Raises:
            ConfigError: if it is none of these.
        """
        place = Path(path).expanduser()
        try:
            found = _read(place)
        except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise _unreadable(place, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}") from error
        if not found.nodes:
            raise _unreadable(place, "no module in it")
        return found


def _node(module: nn.Module) -> Node:
    shapes = {name: tuple(p.shape) for name, p in module._parameters.items() if p is not None}
    weight = shapes.get("weight", ())
    kind, groups = "other", 1
    if isinstance(module, _CONVOLUTIONS):
        kind, groups = "conv", module.groups
    elif isinstance(module, _TABLES):
        kind = "embedding"
    elif isinstance(module, nn.MultiheadAttention):
        kind, weight = "linear", shapes.get("in_proj_weight", ())
    elif type(module).__name__ == "Conv1D" and len(weight) == 2:
        kind = "transposed"
    else:
        # quantized layers store their weight in shapes of their own
        sizes = (getattr(module, "out_features", None), getattr(module, "in_features", None))
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            kind, weight = "linear", (sizes[0], sizes[1])
    return Node(kind=kind, shape=weight, groups=groups, parameters=shapes)


def _unreadable(place: Path, got: str) -> ConfigError:
    return ConfigError(
        "the module tree cannot be read",
        where=str(place),
        got=got,
        expected="module paths one a line, JSON (a list of paths, or path -> shape), or the base's .safetensors",
        hint="or give the base itself: --model DIR; its configuration alone is enough.",
    )


def _read(place: Path) -> Tree:
    if place.is_dir():
        return _directory(place)
    if not place.is_file():
        raise _unreadable(place, "no such file")
    if place.suffix == ".safetensors":
        return Tree(_grouped(_header(place)), str(place))
    text = place.read_text(encoding="utf-8")
    if place.suffix != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return Tree.of_names(names, str(place))
    found = json.loads(text)
    if isinstance(found, dict) and isinstance(found.get("weight_map"), dict):
        files = sorted({place.parent / str(name) for name in found["weight_map"].values()})
        return Tree(_grouped([entry for file in files for entry in _header(file)]), str(place))
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return Tree.of_names(found, str(place))
    shapes = {str(name).removesuffix(".weight"): tuple(int(n) for n in shape) for name, shape in found.items()}
    return Tree({name: Node(shape=shape) for name, shape in shapes.items()}, str(place))


def _directory(place: Path) -> Tree:
    """The weights of a directory, or of the components below it."""
    entries: list[tuple[str, tuple[int, ...]]] = []
    for file in sorted(place.glob("*.safetensors")):
        entries += _header(file)
    if not entries:
        for file in sorted(place.glob("*/*.safetensors")):
            entries += [(f"{file.parent.name}.{name}", shape) for name, shape in _header(file)]
    return Tree(_grouped(entries), str(place))


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a safetensors file; its tensors are not read."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > 100_000_000:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(handle.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, tuple(entry["shape"])


def _grouped(entries: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Node]:
    """Parameters by the module that owns them."""
    owners: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in entries:
        owner, _, leaf = name.rpartition(".")
        owners.setdefault(owner, {})[leaf] = shape
    return {path: Node(shape=own.get("weight", ()), parameters=own) for path, own in owners.items() if path}
