"""Runs a configuration in this process and kills it, unprepared, at a chosen call: the tests' stand-in for a power cut.

Usage: resume_driver.py FILE [PLACE COUNT]
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import deltaw.train.files as files_module
import deltaw.train.state as state_module
from deltaw.errors import DeltawError
from deltaw.train import from_values, read_toml, run
from deltaw.train.job import Job
from deltaw.train.loop import Loop


def die_at(owner: Any, name: str, count: int, *, after: bool) -> None:
    """Kill this process at the count-th call of ``owner.name``, before or after it does its work."""
    plain, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        fatal = calls[0] == count
        if fatal and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*args, **kwargs)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def limit_after_first_state(output: Path) -> None:
    """Let no file grow beyond a few bytes once a state exists: to the program, a disk that is full."""
    plain = state_module.write_state

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        path = plain(*args, **kwargs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        return path

    import deltaw.train.loop as loop_module

    loop_module.write_state = wrapped


def drive(file: str, place: str = "", count: int = 0) -> int:
    """Run a configuration; the exit code, where the process lives to give one."""
    config = from_values(read_toml(file))
    torch.set_num_threads(1)
    after = count % 2 == 0
    if place in ("fsync", "rename"):
        target = os if place == "fsync" else Path
        # Files are synced many times for each state.
        die_at(target, place, count * (5 if place == "fsync" else 1), after=after)
    elif place == "replace":
        die_at(Path, "replace", count, after=after)
    elif place == "mkdir":
        die_at(Path, "mkdir", count + 1, after=after)
    elif place == "rmtree":
        die_at(shutil, "rmtree", 1, after=after)
        files_module.shutil.rmtree = shutil.rmtree
    elif place == "step":
        die_at(Loop, "_step", count, after=after)
    elif place == "batch":
        # Before the second batch of a step: the middle of an accumulation.
        die_at(Job, "batch", 8 + 2 * count, after=False)
    elif place == "tensors":
        die_at(state_module, "save_file", 1, after=after)
    elif place == "slow":
        plain = Loop._step
        Loop._step = lambda self, window: (time.sleep(0.05), plain(self, window))[1]  # type: ignore[method-assign]
    elif place == "disk":
        limit_after_first_state(Path(config.run.output))
    try:
        run(config)
    except DeltawError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:4])))
