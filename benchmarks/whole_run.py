"""A whole run of deltaw beside TRL's and transformers' trainers with PEFT: `python benchmarks/whole_run.py`.

Same base, rows, trained tokens, rank, learning rate and number of passes; competitors.toml has everybody's settings.
Each run is a process of its own with its own bill, user and system time of all its threads, from start to exit. Runs
take turns, and every round has a seed of its own. The adapters are then judged by one function on the same validation
tokens, read by PEFT whoever wrote them.

Memory: highest resident set of the run, less that of a process that imports torch and transformers and loads the model,
the same for all; and, in the second column, less that of the same program stopped before its first step.

    python benchmarks/whole_run.py                               # both tasks, five rounds: about 40 minutes
    python benchmarks/whole_run.py --tasks instruct --rounds 1   # one
    python benchmarks/whole_run.py --profile                     # where deltaw's own time goes
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import HERE, Bill, Row, Spread, bill, markdown, one_thread, parser, python, ratio, write
from peers import settings
from tasks import MODEL, Task, judge, prepare

NAMES = {
    "deltaw": "deltaw train, as it comes",
    "deltaw_bare": "deltaw train, no validations and states on the way",
    "deltaw_packed": "deltaw train, packed, no validations and states on the way",
    "trl": "TRL + PEFT",
    "trl_packed": "TRL + PEFT, packed",
    "trl_validated": "TRL + PEFT, ten validations and states",
    "trainer": "Trainer + PEFT",
}
PAIRS = (
    ("deltaw", "trl_validated", 0.5), ("deltaw", "trl", None), ("deltaw_bare", "trl", 0.5),
    ("deltaw_packed", "trl_packed", 0.5), ("deltaw_bare", "trainer", 0.5),
)  # fmt: skip
"""Who is set against whom, and the ratio of CPU seconds to reach: the same duties on both sides, packed rows against
packed rows; and one row that puts all of deltaw's duties against none."""
MEMORY = 0.5
MB = 1e6


def command(name: str, task: Task, output: Path, seed: int = 0) -> list[str]:
    run = settings()["run"]
    if not name.startswith("deltaw"):
        return python(
            str(HERE / "peers.py"), name, "--task", task.name, "--model", MODEL, "--data", str(task.folder),
            "--output", str(output), "--seed", str(seed),
        )  # fmt: skip
    size = ("--batch-size", str(run["tasks"][task.name]["batch_size"]))
    if name == "deltaw_packed":
        size = ("--packing", "--batch-tokens", str(run["max_length"]))
    return python(
        "-m", "deltaw", "train", "--model", MODEL, *task.flags, "--cache-dir", str(output.parent / "cache"),
        "--rank", str(run["rank"]), "--alpha", str(run["alpha"]), "--dropout", str(run["dropout"]),
        "--lr", str(run["lr"]), "--schedule", run["schedule"], "--clip", str(run["clip"]), "--seed", str(seed),
        "--weight-decay", str(run["weight_decay"]), "--max-length", str(run["max_length"]), *size,
        "--epochs", "1", "--threads", "1", "--output", str(output),
        *run["deltaw" if name == "deltaw" else "deltaw_bare"]["flags"],
    )  # fmt: skip


def carry_out(name: str, task: Task, scratch: Path, *flags: str, seed: int = 0) -> tuple[Bill, Path]:
    """One run from nothing: no caches of an earlier one."""
    place = scratch / "runs"
    shutil.rmtree(place, ignore_errors=True)
    output = place / "out"
    environment = {"HF_HOME": str(place / "hf"), "HF_DATASETS_CACHE": str(place / "datasets")}
    return bill([*command(name, task, output, seed), *flags], **environment), output


def checked(name: str, found: Bill, task: Task) -> None:
    """A peer has read and trained what deltaw has."""
    if name.startswith("deltaw"):
        return
    said = json.loads(found.out.strip().splitlines()[-1])
    assert (said["tokens"], said["trained"]) == (task.tokens, task.trained), (name, said, task.tokens, task.trained)


def measure(task: Task, names: list[str], rounds: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Bills, losses and the memory of the prepared program, by competitor."""
    found: dict[str, dict[str, Any]] = {name: {"bills": [], "losses": []} for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            made, output = carry_out(name, task, scratch, seed=turn)
            checked(name, made, task)
            found[name]["bills"].append(made)
            found[name]["losses"].append(judge(output, task))
            print(f"{task.name}, {name}: {made.cpu:.1f} CPU s, {made.peak / MB:.0f} MB", flush=True)
    for name in names:
        flags = ["--dry-run", *(["--no-probe"] if name == "deltaw" else [])]
        found[name]["ready"] = carry_out(name, task, scratch, *flags)[0].peak
    return found


def loaded(task: Task, scratch: Path) -> int:
    """Highest resident set of a process that loads the model and ends."""
    return statistics.median(carry_out("load", task, scratch)[0].peak for _ in range(3))


def report(task: Task, found: dict[str, dict[str, Any]], base: int) -> tuple[list[str], list[Row]]:
    cpu = {name: [each.cpu for each in values["bills"]] for name, values in found.items()}
    beyond = {name: [each.peak - base for each in values["bills"]] for name, values in found.items()}
    loss = {name: values["losses"] for name, values in found.items()}
    lines = []
    for name, values in found.items():
        wall = statistics.median(each.wall for each in values["bills"])
        peak = statistics.median(beyond[name])
        lines.append(
            [NAMES[name], f"{statistics.median(cpu[name]):.1f}", f"{min(cpu[name]):.1f} to {max(cpu[name]):.1f}",
             f"{wall:.1f}", f"{(base + peak) / MB:.0f}", f"{peak / MB:.0f}",
             f"{(base + peak - values['ready']) / MB:.0f}", f"{statistics.mean(loss[name]):.4f}",
             f"{min(loss[name]):.4f} to {max(loss[name]):.4f}"]
        )  # fmt: skip
    rows = []
    for mine, his, limit in PAIRS:
        if mine not in found or his not in found:
            continue
        against, work = NAMES[his], f"{task.name}, {NAMES[mine]}"
        time = [f"{statistics.median(cpu[name]):.1f} CPU s" for name in (mine, his)]
        rows.append(Row(work=f"whole run: {work}", against=against, ours=time[0], theirs=time[1],
                        ratio=ratio(cpu[mine], cpu[his]), limit=limit))  # fmt: skip
        room = [f"{statistics.median(beyond[name]) / MB:.0f} MB" for name in (mine, his)]
        rows.append(Row(work=f"memory beyond the loaded model: {work}", against=against, ours=room[0], theirs=room[1],
                        ratio=ratio(beyond[mine], beyond[his]), limit=MEMORY))  # fmt: skip
        nats = [f"{statistics.mean(loss[name]):.4f} nats" for name in (mine, his)]
        rows.append(Row(work=f"validation loss: {work}", against=against, ours=nats[0], theirs=nats[1],
                        ratio=no_worse(loss[mine], loss[his]), limit=1.0 + noise(loss[mine], loss[his])))  # fmt: skip
    head = ["run", "CPU s", "spread", "wall s", "peak MB", "beyond the loaded model, MB", "beyond itself ready, MB",
            "validation loss", "of the seeds"]  # fmt: skip
    size = f"{task.tokens:,} tokens, {task.trained:,} of them trained, one pass"
    return ["", f"## {task.name}: {size}; loaded model {base / MB:.0f} MB", "", *markdown(head, lines)], rows


def no_worse(mine: list[float], his: list[float]) -> Spread:
    """The ratio of the means over seeds, and the extremes of the seeds' own ratios."""
    each = [one / other for one, other in zip(mine, his, strict=True)]
    return Spread(median=statistics.mean(mine) / statistics.mean(his), low=min(each), high=max(each))


def noise(mine: list[float], his: list[float]) -> float:
    """Two standard errors of the ratio of the means; 0 with a single seed."""
    if len(mine) < 2:
        return 0.0
    share = [(statistics.stdev(values) / statistics.mean(values)) ** 2 / len(values) for values in (mine, his)]
    return round(2 * sum(share) ** 0.5, 4)


def profile(task: Task, scratch: Path) -> None:
    """Where the time of `deltaw train` goes, by cProfile."""
    whole = command("deltaw", task, scratch / "out")
    place = scratch / "profile"
    bill([whole[0], "-m", "cProfile", "-o", str(place), *whole[1:]])
    import pstats

    pstats.Stats(str(place)).sort_stats("cumulative").print_stats("deltaw|<module>|built-in method torch", 70)


def main() -> None:
    options = arguments()
    one_thread()
    names, lines, rows = options.competitors or list(NAMES), [], []
    with tempfile.TemporaryDirectory() as name:
        for number, label in enumerate(options.tasks):
            task = prepare(label, settings()["run"]["tasks"][label], Path(name) / f"task{number}")
            if options.profile:
                profile(task, Path(name))
                return
            found = measure(task, names, options.rounds, Path(name))
            more, made = report(task, found, loaded(task, Path(name)))
            lines, rows = lines + more, rows + made
    head = [
        f"stories3M (3.1 million parameters), float32, one thread; medians of {options.rounds} rounds, taking turns.",
        "Made by `python benchmarks/whole_run.py`; settings in benchmarks/competitors.toml. All read the same ids and",
        "train the same tokens (checked before), and are judged on the same tokens by one function that reads every",
        "adapter with PEFT. CPU seconds: user and system, the whole process. Memory: highest resident set. A round is",
        "a seed; losses are means over them, and may differ by two standard errors of the seeds.",
    ]
    write("whole_run", options, "A whole run beside TRL and transformers", [*head, *lines], rows, ("trl", "accelerate"))


def arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=5)
    made.add_argument("--tasks", nargs="+", default=["instruct", "e2e"], choices=["instruct", "e2e"])
    made.add_argument("--competitors", nargs="+", choices=list(NAMES))
    made.add_argument("--profile", action="store_true", help="show where deltaw's time goes instead")
    return made.parse_args()


if __name__ == "__main__":
    main()
