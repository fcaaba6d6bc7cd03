"""A model checkpoint on disk, read one tensor at a time: one safetensors file, or shards with or without an index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltaw.errors import CheckpointError

__all__ = ["Shards", "prefix_between"]

_INDEX = "model.safetensors.index.json"


def _broken(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint cannot be read",
        where=str(path),
        got=got,
        expected="complete safetensors files",
        hint="the file is truncated or damaged; copy it again.",
    )


class Shards:
    """The tensors of a checkpoint, as a context manager.

    Args:
        source: a directory with safetensors files, or one such file.

    Raises:
        CheckpointError: if there is none, or one is damaged or absent.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = Path(source)
        self._stack = ExitStack()
        self._home: dict[str, Any] = {}
        try:
            for file in self._files():
                self._open(file)
        except BaseException:
            self._stack.close()
            raise

    def _files(self) -> list[Path]:
        if self.path.is_file() and self.path.suffix == ".safetensors":
            return [self.path]
        index = self.path / _INDEX
        if index.is_file():
            try:
                named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _broken(index, f"{type(error).__name__}: {error}") from None
            return [self.path / name for name in named]
        found = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else []
        found = [file for file in found if file.name != "adapter_model.safetensors"]
        if not found:
            inside = ", ".join(sorted(entry.name for entry in self.path.iterdir())[:6]) if self.path.is_dir() else ""
            raise CheckpointError(
                "no weights here",
                where=str(self.path),
                got=inside or ("an empty directory" if self.path.is_dir() else "no such directory"),
                expected="safetensors files of a whole model",
                hint="pass the directory of a model; save_pretrained writes such files.",
            )
        return found

    def _open(self, file: Path) -> None:
        try:
            handle = self._stack.enter_context(safe_open(str(file), framework="pt"))
        except (SafetensorError, OSError) as error:
            raise _broken(file, (str(error) or type(error).__name__).splitlines()[0]) from None
        self._home.update(dict.fromkeys(handle.keys(), handle))

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._stack.close()

    def keys(self) -> list[str]:
        """Keys of all tensors.

        Returns:
            Sorted keys.
        """
        return sorted(self._home)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header alone.

        Args:
            key: its key.

        Returns:
            The shape.
        """
        return tuple(self._home[key].get_slice(key).get_shape())

    def tensor(self, key: str) -> Tensor:
        """Read one tensor.

        Args:
            key: its key.

        Returns:
            The tensor, on the CPU.
        """
        read: Tensor = self._home[key].get_tensor(key)
        return read

    def config(self) -> dict[str, Any]:
        """The model's ``config.json``.

        Returns:
            The parsed object; empty where there is none.
        """
        file = (self.path if self.path.is_dir() else self.path.parent) / "config.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def prefix_between(keys: Iterable[str], known: Iterable[str]) -> str:
    """What must stand before the keys of a checkpoint so that they are those of a model.

    A checkpoint of a bare transformer lacks the name under which a model with a head holds it.

    Args:
        keys: keys of the checkpoint.
        known: keys of the model.

    Returns:
        The prefix under which most keys are known; empty where none helps.

    Example:
        >>> prefix_between(["h.0.w", "wte.w"], ["transformer.h.0.w", "transformer.wte.w", "head.w"])
        'transformer.'
    """
    names, own = set(known), list(keys)
    offers = ["", *sorted({f"{name.partition('.')[0]}." for name in names if "." in name})]
    return max(offers, key=lambda offer: sum(offer + key in names for key in own))
