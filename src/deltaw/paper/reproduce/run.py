"""Run a row: its commands one after the other, each in a process of its own, and the record they leave."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deltaw.errors import StateError
from deltaw.paper.reproduce.records import Record, hash_of
from deltaw.paper.reproduce.row import Places, Row

__all__ = ["run_row"]

_PACKAGES = ("torch", "transformers", "sacrebleu", "scipy", "scikit-learn", "deltaw")


def run_row(
    row: Row,
    places: Places,
    output: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Record:
    """Run a row.

    Args:
        row: what to run.
        places: where its inputs are.
        output: a directory for what its commands write; made if absent.
        seed: of the run.
        quick: run the small form, which takes minutes at most and shows that the row works.
        tell: told every command before it runs.

    Returns:
        The record.

    Raises:
        ConfigError: if an input is missing.
        StateError: if a command fails; the end of what it printed is in the message.
    """
    inputs = {name: hash_of(places.path(name)) for name in row.inputs}
    output.mkdir(parents=True, exist_ok=True)
    filled = {"data": places.data, "encoder": places.encoder, "seed": seed, "out": output}
    start, printed, steps = time.perf_counter(), {}, []
    for name, words in row.commands(quick).items():
        steps.append(f"deltaw {shlex.join(_shown(word, seed) for word in words)}")
        tell(steps[-1])
        printed[name] = _run(name, row.name, [word.format(**filled) for word in words])
    return Record(
        row=row.name, title=row.title, table=row.table, on=row.on, seed=seed, quick=quick,
        values={name: float(value) for name, value in row.values(printed, output).items()},
        settings=dict(row.settings),
        command=f"deltaw paper run {row.name} --seed {seed}" + (" --quick" if quick else ""),
        steps=tuple(steps), date=datetime.date.today().isoformat(), hardware=_hardware(), versions=_versions(),
        seconds=round(time.perf_counter() - start, 1), inputs=inputs,
        sheet={} if row.sheet is None else _placed(row.sheet(printed), {"DATA": places.data, "OUT": output}),
    )  # fmt: skip


def _shown(word: str, seed: int) -> str:
    return word.format(data="DATA", encoder="ENCODER", out="OUT", seed=seed)


def _placed(sheet: Mapping[str, Any], places: Mapping[str, Path]) -> dict[str, Any]:
    """A table without the paths of this machine."""
    text = json.dumps(sheet)
    for name, path in places.items():
        text = text.replace(json.dumps(str(path))[1:-1], name)
    found: dict[str, Any] = json.loads(text)
    return found


def _run(step: str, row: str, words: list[str]) -> Any:
    """One command; what it printed as JSON."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    made = subprocess.run(
        [sys.executable, "-m", "deltaw", *words], capture_output=True, text=True, env=environment, check=False
    )
    if made.returncode:
        raise StateError(
            f"a step of the row ended with code {made.returncode}",
            where=f"row {row}, step {step}: deltaw {shlex.join(words)}",
            got=(made.stderr or made.stdout).strip()[-2000:],
            expected="exit code 0",
            hint="run the command by itself to see all that it prints",
        )
    return json.loads(made.stdout) if made.stdout.strip() else {}


def _hardware() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {threads} threads, {platform.system()}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
