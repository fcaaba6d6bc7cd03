"""Peak memory of a training step beyond the floor's: `python benchmarks/peak.py`, about 50 minutes.

Each competitor takes its first step in a process of its own. Measured is the highest resident set of the step less what
was resident before it (the kernel's mark is set back just before), so that neither imports nor the making of the model
count; then the same of the floor is taken away. The allocator is the same for all: one arena, blocks over 128 KiB from
the kernel and back to it at once (MALLOC_ARENA_MAX=1, MALLOC_MMAP_THRESHOLD_=131072, MALLOC_TRIM_THRESHOLD_=0).

    python benchmarks/peak.py                                    # 8 x 256, all linear
    python benchmarks/peak.py --models gpt2 --shape 2x128        # a part
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from harness import Row, bill, markdown, parser, python, ratio, write

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0"}
ADAPTED = "all linear, r 16"
MODELS = ("llama", "gpt2", "roberta")
LIMIT = 0.4
DRESSES = ("floor", "deltaw", "PEFT", "loralib", "full")
MB = 1e6


def status(name: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def child(options: argparse.Namespace) -> None:
    """One step; prints how far the resident set rose."""
    import torch
    from dress import batch, build, put_on, step, targets_of

    torch.set_num_threads(1)
    targets, rank = targets_of(options.child[1], options.adapted)
    model = put_on(options.child[0], build(options.child[1]), targets, rank, float(options.child[2])).train()
    inputs = batch(options.child[1], *map(int, options.shape.split("x")))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step(model, inputs)
    print(status("VmHWM") - before)


def rise(options: argparse.Namespace, dress: str, name: str, dropout: float) -> int:
    command = python(__file__, "--shape", options.shape, "--adapted", options.adapted)
    found = bill([*command, "--child", dress, name, f"{dropout}"], **ALLOCATOR)
    return int(found.out.strip().splitlines()[-1])


def measure(options: argparse.Namespace, name: str, dropout: float, known: dict[str, list[float]]) -> None:
    """Rises of all, taking turns; floor and full fine-tuning have no dropout and are measured once."""
    todo = [dress for dress in DRESSES if dress not in known]
    for _ in range(options.rounds):
        for dress in todo:
            known.setdefault(dress, []).append(rise(options, dress, name, dropout))


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    made.add_argument("--shape", default="8x256")
    made.add_argument("--adapted", default=ADAPTED)
    made.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    made.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.child:
        child(options)
        return
    lines, rows = [], []
    for name in options.models:
        known: dict[str, list[float]] = {}
        for dropout in options.dropout:
            for dress in ("deltaw", "PEFT", "loralib"):
                known.pop(dress, None)
            measure(options, name, dropout, known)
            base = statistics.median(known["floor"])
            beyond = {dress: [value - base for value in values] for dress, values in known.items() if dress != "floor"}
            middle = {dress: statistics.median(values) / MB for dress, values in beyond.items()}
            beside = ratio(beyond["deltaw"], beyond["PEFT"])
            cells = [f"{middle[dress]:.0f}" for dress in DRESSES if dress in middle]
            lines.append([name, f"{dropout}", f"{base / MB:.0f}", *cells, str(beside)])
            print(lines[-1], flush=True)
            for other, limit in (("PEFT", LIMIT), ("loralib", None), ("full", None)):
                rows.append(Row(
                    work=f"peak memory of a step beyond the floor: {name}, {options.adapted}, {options.shape}, dropout "
                    f"{dropout}", against="full fine-tuning" if other == "full" else other,
                    ours=f"{middle['deltaw']:.0f} MB", theirs=f"{middle[other]:.0f} MB",
                    ratio=ratio(beyond["deltaw"], beyond[other]), limit=limit,
                ))  # fmt: skip
    head = ["model", "dropout", "floor's rise", *(each for each in DRESSES if each != "floor"), "deltaw / PEFT"]
    text = [
        f"MB, {options.adapted}, {options.shape} tokens, fp32, one thread: rise of the resident set in the first step,",
        f"beyond the floor's. Medians of {options.rounds} processes each, taking turns. Made by",
        "`python benchmarks/peak.py`. The allocator: one arena, blocks over 128 KiB from the kernel and back at once",
        f"({', '.join(f'{key}={value}' for key, value in ALLOCATOR.items())}).",
        "",
        *markdown(head, lines, words=2),
    ]
    write("peak", options, "Peak memory of a step beyond the floor's", text, rows, ("loralib",))


if __name__ == "__main__":
    main()
