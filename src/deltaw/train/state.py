"""The state a run resumes from: one directory ``checkpoint-N``, whole or not there at all.

It holds ``state.safetensors`` (the adapter's tensors, optimizer moments, random generators, the best parameters so far)
and ``state.json`` (position, configuration, versions, and the digest of the former); beside them the adapter of that
step in PEFT's layout, so that every state is also a usable adapter. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltaw.errors import CheckpointError, ResumeError
from deltaw.train.files import remove_tree, replace_directory

__all__ = ["State", "drop_later", "find_state", "list_states", "read_state", "read_values", "write_state"]

VERSION = 2
PREFIX = "checkpoint-"
TENSORS, VALUES = "state.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """A moment of a run.

    Args:
        tensors: by key: ``param.*``, ``buffer.*``, ``exp_avg.*``, ``exp_avg_sq.*``, ``step.*``, ``rng.*``, ``best.*``.
        values: everything that JSON can hold.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Select tensors by the first part of their key.

        Args:
            prefix: as in ``param``.

        Returns:
            The tensors under their names, the prefix taken off.
        """
        head = prefix + "."
        return {key.removeprefix(head): tensor for key, tensor in self.tensors.items() if key.startswith(head)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def list_states(output: Path) -> list[tuple[int, Path]]:
    """List the states of an output directory.

    Args:
        output: the directory; it need not exist.

    Returns:
        (step, path) by ascending step.
    """
    if not output.is_dir():
        return []
    found = []
    for entry in output.iterdir():
        number = entry.name.removeprefix(PREFIX)
        if entry.name.startswith(PREFIX) and number.isdecimal() and entry.is_dir():
            found.append((int(number), entry))
    return sorted(found)


def write_state(output: Path, step: int, state: State, fill: Callable[[Path], None], keep: int) -> Path:
    """Save a state atomically, then delete the oldest ones.

    Args:
        output: the run's output directory.
        step: optimizer steps done.
        state: what to save.
        fill: writes further files (the adapter) into the directory it is given.
        keep: how many states stay, this one included.

    Returns:
        The state's directory.

    Raises:
        CheckpointError: if it cannot be written, a full disk for example; earlier states are untouched.
    """
    path = output / f"{PREFIX}{step}"

    def write(directory: Path) -> None:
        fill(directory)
        save_file(state.tensors, str(directory / TENSORS))
        values = {**state.values, "version": VERSION, "step": step, "sha256": _digest(directory / TENSORS)}
        (directory / VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")

    try:
        replace_directory(path, write)
    except (OSError, SafetensorError, CheckpointError) as error:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        raise unsaved(path, cause, [old for _, old in list_states(output)]) from None
    for _, old in list_states(output)[:-keep]:
        remove_tree(old)
    return path


def unsaved(path: Path, error: Exception, states: list[Path]) -> CheckpointError:
    """Word the failure of a write, and what is still there.

    Args:
        path: what was to be written.
        error: what the system said.
        states: the states that exist.

    Returns:
        The error to raise.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    last = f"resume with --resume {states[-1]}, which is intact" if states else "then start again"
    return CheckpointError(
        "the training state cannot be saved",
        where=str(path),
        got=reason,
        expected="a writable place with enough free space",
        hint=f"free some space (or choose another --output), {last}",
    )


def find_state(wanted: str, output: Path) -> Path | None:
    """Find the state that ``--resume`` means.

    Args:
        wanted: a state's directory, an output directory (its newest state), or ``auto``.
        output: the output directory ``auto`` looks into.

    Returns:
        The state's directory; None only where ``auto`` finds none.

    Raises:
        ResumeError: if a path was given and holds no state.
    """
    place = output if wanted == "auto" else Path(wanted).expanduser()
    if (place / VALUES).is_file():
        return place
    states = list_states(place)
    whole = [path for _, path in states if (path / VALUES).is_file() and (path / TENSORS).is_file()]
    if whole:
        return whole[-1]
    if wanted == "auto" and not states:
        return None
    raise ResumeError(
        "there is nothing to resume from",
        where=str(place),
        got=_contents(place),
        expected=f"a directory {PREFIX}N with {TENSORS} and {VALUES}, or an output directory that holds one",
        hint="check the path; a run saves its first state after --save-every steps",
    )


def _contents(place: Path) -> str:
    """What is there, for an error message."""
    if not place.exists():
        return "no such directory"
    if not place.is_dir():
        return "a file"
    names = sorted(entry.name for entry in place.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "an empty directory"


def read_values(path: Path) -> dict[str, Any]:
    """Read the small part of a state.

    Args:
        path: the state's directory.

    Returns:
        Everything but the tensors.

    Raises:
        ResumeError: if the file is broken or of another version.
    """
    file = path / VALUES
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(file, str(error)) from None
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise _broken(file, f"version {values.get('version') if isinstance(values, dict) else '?'}")
    return values


def read_state(path: Path) -> State:
    """Read a state and check that it is what was written.

    Args:
        path: the state's directory.

    Returns:
        The state.

    Raises:
        ResumeError: if a file is missing, cut short or changed.
    """
    values, file = read_values(path), path / TENSORS
    try:
        digest = _digest(file)
        if digest != values["sha256"]:
            raise _broken(file, f"sha256 {digest[:12]}..., not {values['sha256'][:12]}...")
        return State(tensors=load_file(str(file)), values=values)
    except (OSError, SafetensorError) as error:
        raise _broken(file, str(error)) from None


def _broken(file: Path, got: str) -> ResumeError:
    return ResumeError(
        "the training state is broken",
        where=str(file),
        got=got,
        expected=f"the file as it was written (version {VERSION})",
        hint="resume from an earlier state of the same output directory",
    )


def drop_later(output: Path, step: int) -> list[str]:
    """Delete the states after the one a run resumes from: that future is about to be written anew.

    Args:
        output: the output directory.
        step: the step resumed from.

    Returns:
        Names of the states deleted.
    """
    later = [path for number, path in list_states(output) if number > step]
    for path in later:
        remove_tree(path)
    return [path.name for path in later]
