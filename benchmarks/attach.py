"""CPU cost of importing and attaching: `python benchmarks/attach.py` prints a table and writes it to results/.

Every figure is the median of seven runs after two that are not counted; runs that are compared alternate.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

RUNS, WARM_UPS = 7, 2
HERE = Path(__file__).parent
IMPORTS = """
import time
start = time.process_time()
import deltaw
own = time.process_time()
import torch
torch_done = time.process_time()
import deltaw.attach, deltaw.merge, deltaw.checkpoint, deltaw.check
print(own - start, torch_done - own, time.process_time() - torch_done)
"""
ENVIRONMENT = {
    # modules load from bytecode, as installed ones do; the warm-ups write it
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "OMP_NUM_THREADS": "1",
}
LAYERS = 32
"""Times seven linears: the shape of Llama 2 7B."""


def alternating(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median of every measure, the measures taking turns so that a busy machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(WARM_UPS + RUNS):
        for name, measure in measures.items():
            value = measure()
            if turn >= WARM_UPS:
                taken[name].append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def child(command: list[str]) -> tuple[float, str]:
    """Wall time and output of a command."""
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return time.perf_counter() - start, done.stdout


def imports() -> tuple[float, float, float]:
    """CPU seconds of `import deltaw`, then torch, then all of deltaw's core, in fresh processes."""
    taken = [
        [float(value) for value in child([sys.executable, "-c", IMPORTS])[1].split()] for _ in range(RUNS + WARM_UPS)
    ]
    own, torch, core = (statistics.median(column) for column in zip(*taken[WARM_UPS:], strict=True))
    return own, torch, core


def meta_7b() -> Any:
    """A model of Llama 2 7B's shape without memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS))


def ours(clock: Callable[[], float]) -> float:
    import deltaw as dw

    model = meta_7b()
    config = dw.LoRAConfig(targets="all-linear", rank=8, alpha=16)
    start = clock()
    made = dw.plan(model, config)
    report = dw.attach(model, config)
    text = f"{made}\n{report}"
    spent = clock() - start
    assert len(report.sites) == 7 * LAYERS and "224" in text
    return spent


def theirs(clock: Callable[[], float]) -> float:
    import peft

    model = meta_7b()
    config = peft.LoraConfig(target_modules="all-linear", r=8, lora_alpha=16)
    start = clock()
    made = peft.get_peft_model(model, config)
    trainable, _ = made.get_nb_trainable_parameters()
    spent = clock() - start
    assert trainable == 19_988_480
    return spent


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions() -> str:
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "deltaw")
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)


def profile() -> None:
    """Where the time of one plan and attach goes."""
    import cProfile
    import pstats

    ours(time.process_time)
    with cProfile.Profile() as found:
        ours(time.process_time)
    pstats.Stats(found).sort_stats("cumulative").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="for the name of the file")
    options = parser.parse_args()
    if options.profile:
        profile()
        return
    import torch

    torch.set_num_threads(1)
    attach = alternating(
        {
            "ours": lambda: ours(time.process_time),
            "theirs": lambda: theirs(time.process_time),
            "ours, wall": lambda: ours(time.perf_counter),
            "theirs, wall": lambda: theirs(time.perf_counter),
        }
    )
    own, import_torch, core = imports()
    command = [str(Path(sys.executable).parent / "deltaw"), "--help"]
    help_wall = alternating({"help": lambda: child(command)[0]})["help"]
    rows = [
        ("import torch", "CPU", import_torch, ""),
        ("import deltaw", "CPU", own, "0.1"),
        ("all of deltaw's core after torch", "CPU", core, "0.1"),
        ("deltaw --help, warm", "wall", help_wall, "0.3"),
        ("plan, tie scan, attach, report: 224 linears of a 7B meta model", "CPU", attach["ours"], "0.15"),
        ("the same", "wall", attach["ours, wall"], "0.15"),
        ("PEFT's get_peft_model and its parameter count on the same model", "CPU", attach["theirs"], ""),
        ("the same", "wall", attach["theirs, wall"], ""),
    ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        "# CPU cost of importing and attaching",
        "",
        f"{options.date}. {hardware()}. {versions()}. Load average during the run: {load}.",
        f"Median of {RUNS} runs after {WARM_UPS} that are not counted; one thread; runs that are compared alternate.",
        "Made by `python benchmarks/attach.py`. Wall time counts waiting for other work: read it on an idle machine.",
        "",
        "| what | time | seconds | at most |",
        "|---|---|---:|---:|",
        *(f"| {what} | {kind} | {value:.3f} | {limit} |" for what, kind, value, limit in rows),
        "",
        f"Attaching takes {attach['theirs'] / attach['ours']:.1f} times less CPU time than PEFT's.",
        "",
    ]
    print("\n".join(text))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"attach_cpu_{options.date}.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
