"""Tokenized data on disk: flat arrays, memory-mapped, so that data larger than memory streams.

One directory per data set, named by a key over everything that decides the tokens: the rows' content, the tokenizer,
the options, and this package's own code. It is written beside its place and renamed into it, so it is whole or absent;
a damaged one is found by its hashes and written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.train.data.report import DataReport
from deltaw.train.data.sources.place import content_hash

__all__ = ["Store", "Writer", "key_of", "open_store"]

_META = "meta.json"


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash this package's sources: other code may make other tokens of the same rows."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(parts: dict[str, Any]) -> str:
    """Name tokenized data.

    Args:
        parts: everything that decides them, as plain values.

    Returns:
        32 hexadecimal digits.
    """
    text = json.dumps({**parts, "code": _code()}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """The arrays of one data set, n examples and t tokens.

    Args:
        ids: shape (t,), int32, memory-mapped.
        weights: shape (t,), float32, memory-mapped; None where all are 0.
        types: shape (t,), uint8, memory-mapped; None where all are 0.
        offsets: shape (n + 1,), int64: example i is ``ids[offsets[i] : offsets[i + 1]]``.
        rows: shape (n,), int64: source row of each example.
        hashes: shape (n,), uint64: content of each example, for finding duplicates.
        labels: shape (n,), float64 or int64; None without labels.
        report: what became of the rows.
        names: class names by position; empty without classes.
        trained: shape (n,), int32: tokens with a weight per example.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    labels: NDArray[Any] | None
    report: DataReport
    names: tuple[str, ...]
    trained: NDArray[np.int32]


class Writer:
    """Writes the arrays example by example; only 28 bytes per example are held.

    Args:
        root: the cache directory.
        key: name of the data set.
        labelled: whether examples carry labels instead of weights.
    """

    def __init__(self, root: Path, key: str, labelled: bool) -> None:
        self.root, self.key, self.labelled = root, key, labelled
        tokens = root / "tokens"
        tokens.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=tokens))
        self._ids = (self.folder / "ids.bin").open("wb")
        self._second = (self.folder / ("types.bin" if labelled else "weights.bin")).open("wb")
        self._offsets, self._rows, self._hashes = array("q", [0]), array("q"), array("Q")
        self._labels, self._trained = array("d"), array("i")
        self._typed = False

    def __len__(self) -> int:
        """Count the examples so far."""
        return len(self._rows)

    def add(
        self,
        ids: list[int],
        row: int,
        *,
        weights: list[float] | None = None,
        types: list[int] | None = None,
        label: float | None = None,
    ) -> None:
        """Append one example.

        Args:
            ids: tokens.
            row: source row.
            weights: loss weight per token; None with a label.
            types: token type per token, or None for zeros.
            label: class position or score.
        """
        flat = np.asarray(ids, dtype=np.int32).tobytes()
        extra = np.asarray(weights if not self.labelled else types or [0] * len(ids))
        second = extra.astype(np.uint8 if self.labelled else np.float32).tobytes()
        self._typed |= bool(types)
        self._ids.write(flat)
        self._second.write(second)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._rows.append(row)
        digest = hashlib.blake2b(flat + second + repr(label).encode(), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))
        self._trained.append(0 if self.labelled else int(np.count_nonzero(extra)))
        if label is not None:
            self._labels.append(label)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give what is held in memory.

        Returns:
            The arrays per example, by name.
        """
        held: dict[str, tuple[array[Any], Any]] = {
            "offsets": (self._offsets, np.int64),
            "rows": (self._rows, np.int64),
            "hashes": (self._hashes, np.uint64),
        }
        held |= {"trained": (self._trained, np.int32)}
        held |= {"labels": (self._labels, np.float64)} if len(self._labels) else {}
        return {name: np.array(values, dtype=kind) for name, (values, kind) in held.items()}

    def relabel(self, positions: list[int]) -> None:
        """Replace provisional class positions, when the names are known and sorted.

        Args:
            positions: new position by provisional one.
        """
        self._labels = array("d", (positions[int(label)] for label in self._labels))

    def finish(self, report: DataReport, names: tuple[str, ...], *, whole_labels: bool) -> Path:
        """Make the data set whole and put it in its place.

        Args:
            report: what became of the rows.
            names: class names by position.
            whole_labels: whether labels are class positions.

        Returns:
            Its directory.
        """
        for file in (self._ids, self._second):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self.labelled and not self._typed:
            (self.folder / "types.bin").unlink()
        for name, values in self.arrays().items():
            with (self.folder / f"{name}.npy").open("wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
        sums = {item.name: [item.stat().st_size, content_hash(item)] for item in sorted(self.folder.iterdir())}
        meta = {"report": dataclasses.asdict(report), "names": names, "whole_labels": whole_labels, "files": sums}
        with (self.folder / _META).open("wb") as file:
            file.write(json.dumps(meta).encode())
            file.flush()
            os.fsync(file.fileno())
        return self._place()

    def _place(self) -> Path:
        target = self.root / "tokens" / self.key
        try:
            self.folder.rename(target)
        except OSError:
            # Either another process has just put the same data set there, or a damaged one is in the way.
            if open_store(self.root, self.key) is not None:
                self.abort()
                return target
            away = Path(tempfile.mkdtemp(prefix=".damaged-", dir=target.parent)) / "it"
            target.rename(away)
            self.folder.rename(target)
            shutil.rmtree(away.parent, ignore_errors=True)
        return target

    def abort(self) -> None:
        """Remove what was written."""
        self._ids.close()
        self._second.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def open_store(root: Path, key: str) -> Store | None:
    """Open a data set from the cache.

    Args:
        root: the cache directory.
        key: name of the data set.

    Returns:
        Its arrays; None where there is none, or a damaged one.
    """
    folder = root / "tokens" / key
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
        for name, (size, digest) in meta["files"].items():
            if (folder / name).stat().st_size != size or content_hash(folder / name) != digest:
                return None
        labels = np.load(folder / "labels.npy") if "labels.npy" in meta["files"] else None
        return Store(
            ids=_mapped(folder / "ids.bin", np.int32),
            weights=_mapped(folder / "weights.bin", np.float32) if "weights.bin" in meta["files"] else None,
            types=_mapped(folder / "types.bin", np.uint8) if "types.bin" in meta["files"] else None,
            offsets=np.load(folder / "offsets.npy"),
            rows=np.load(folder / "rows.npy"),
            hashes=np.load(folder / "hashes.npy"),
            labels=labels.astype(np.int64) if labels is not None and meta["whole_labels"] else labels,
            report=DataReport.from_dict(meta["report"]),
            names=tuple(meta["names"]),
            trained=np.load(folder / "trained.npy"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapped(path: Path, kind: type) -> NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r")
