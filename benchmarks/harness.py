"""What every benchmark shares: taking turns, ratios with spread, processes with their own bill, and result files.

A result is two files in results/: `theme_cpu_date.md` for readers, and beside it `.json`, whose rows `table.py` puts
into the table of benchmarks/README.md, so that no figure there is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
ROUNDS, WARM_UPS = 7, 2

Times = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median of some rounds and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    def __str__(self) -> str:
        # an exact figure has no spread
        if self.low == self.high:
            return f"{self.median:.3g}"
        return f"{self.median:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the main table: a piece of work, deltaw's figure beside a competitor's.

    Args:
        work: what was done.
        against: the competitor.
        ours: deltaw's figure, with its unit.
        theirs: the competitor's.
        ratio: ours / theirs, round by round.
        limit: the ratio to reach, at most; None where none is set.
    """

    work: str
    against: str
    ours: str
    theirs: str
    ratio: Spread
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a process cost: seconds on the processor (user and system), by the clock, highest resident bytes, output."""

    cpu: float
    wall: float
    peak: int
    out: str


def parser(text: str | None, rounds: int = ROUNDS) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="rounds that count")
    made.add_argument("--date", default=datetime.date.today().isoformat(), help="for the name of the result")
    made.add_argument("--part", default="", help="name of a part of the whole, whose result stands beside the others")
    made.add_argument("--dry", action="store_true", help="print the result and write no file")
    return made


def one_thread() -> None:
    """Keep torch on one thread: CPU seconds of several include their waiting for each other."""
    import torch

    torch.set_num_threads(1)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(measures: Mapping[str, Callable[[], float]], rounds: int = ROUNDS, warm_ups: int = WARM_UPS) -> Times:
    """Every measure once a round, so that a busy machine hits all alike; the first rounds do not count.

    The order turns by one each round: what a measure leaves in the caches is not always the same neighbour's.
    """
    names = list(measures)
    taken: Times = {name: [] for name in names}
    for turn in range(warm_ups + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            value = measures[name]()
            if turn >= warm_ups:
                taken[name].append(value)
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ratios round by round."""
    return Spread.of([mine / his for mine, his in zip(ours, theirs, strict=True)])


def bill(command: Sequence[str], **environment: str) -> Bill:
    """Run a command in a process of its own and say what it cost.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    # modules load from bytecode, as installed ones do
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    made = subprocess.Popen(
        command, env={**kept, "OMP_NUM_THREADS": "1", **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert made.stdout is not None
    out = made.stdout.read().decode(errors="replace")
    _, status, used = os.wait4(made.pid, 0)
    wall, made.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {made.returncode}:\n{out[-3000:]}")
    return Bill(cpu=used.ru_utime + used.ru_stime, wall=wall, peak=used.ru_maxrss * 1024, out=out)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def hardware() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions(*names: str) -> str:
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", *names, "deltaw"))
    return f"Python {platform.python_version()}, {found}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """A table; the first columns hold words, the others numbers."""
    rule = ["---" if column < words else "---:" for column in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def conditions(options: argparse.Namespace, *packages: str) -> list[str]:
    """Date, hardware, versions and load of a run."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [f"{options.date}. {hardware()}. {versions(*packages)}. Load average after the run: {load}."]


def write(
    theme: str, options: argparse.Namespace, title: str, lines: Sequence[str], rows: Sequence[Row],
    packages: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print a result and put it into results/, with the rows of the main table beside it.

    Args:
        theme: first part of the files' names, and the script's.
        options: from ``parser``.
        title: heading.
        lines: text under the conditions.
        rows: for the main table.
        packages: whose versions matter beside the usual ones.
    """
    text = "\n".join([f"# {title}", "", *conditions(options, *packages), *lines, ""])
    print(text)
    if options.dry:
        return
    name = f"{theme}-{options.part}" if options.part else theme
    target = HERE / "results" / f"{name}_cpu_{options.date}.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    values: dict[str, Any] = {
        "theme": theme, "part": options.part, "date": options.date, "hardware": hardware(),
        "command": f"python benchmarks/{theme}.py",
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip
    target.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target.relative_to(HERE.parent)}")
