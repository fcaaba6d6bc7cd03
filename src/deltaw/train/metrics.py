"""metrics.jsonl: one line per step and per validation, with nothing in it that differs between equal runs.

Times and speeds stay out on purpose: the file of a run that was killed and resumed is byte for byte that of a run
that was not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deltaw.errors import CheckpointError, ResumeError

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """The open file.

    Args:
        path: where it is.
        keep: bytes of an earlier file to keep; what stands after them is cut off.

    Raises:
        ResumeError: if the earlier file is shorter than what the state says it had.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < keep:
            raise ResumeError(
                "the metrics file is shorter than when the state was saved",
                where=str(path),
                got=f"{size} bytes",
                expected=f"at least {keep} bytes",
                hint="restore metrics.jsonl, or resume from an earlier state",
            )
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line.

        Args:
            record: plain values; floats are written so that they read back equal.

        Raises:
            CheckpointError: if the disk is full.
        """
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                "the metrics cannot be written",
                where=str(self.path),
                got=error.strerror or str(error),
                expected="a writable place with enough free space",
                hint="free some space, then continue with --resume " + str(self.path.parent),
            ) from None

    def sync(self) -> int:
        """Force the file to the disk.

        Returns:
            Its size in bytes, for a state.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file; a buffer that a full disk refused is given up, the state knows where the file ends."""
        try:
            self._file.close()
        except OSError:
            self._file.raw.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file back.

    Args:
        path: the file.

    Returns:
        Its records, in order.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
