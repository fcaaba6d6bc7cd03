"""CPU cost of importing and attaching: `python benchmarks/attach.py` prints a table and writes it to results/.

Every figure is the median of seven runs after two that are not counted; runs that are compared alternate.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import WARM_UPS, Row, Times, bill, markdown, one_thread, parser, python, ratio, take_turns, write

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
LAYERS = 32
"""Times seven linears: the shape of Llama 2 7B."""


def imports(rounds: int) -> Times:
    """CPU seconds of `import deltaw`, then torch, then all of deltaw's core, in fresh processes."""
    # the first rounds write bytecode, as installed modules have it
    runs = [list(map(float, bill(python("-c", IMPORTS)).out.split())) for _ in range(rounds + WARM_UPS)]
    own, torch, core = (list(column) for column in zip(*runs[WARM_UPS:], strict=True))
    return {"own": own, "torch": torch, "core": core, "all": [sum(run) for run in runs[WARM_UPS:]]}


def meta_7b() -> Any:
    """A model of Llama 2 7B's shape without memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS))


def timed(clock: Callable[[], float], work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returns; models of earlier rounds are cleared before the clock starts."""
    gc.collect()
    start = clock()
    made = work()
    return clock() - start, made


def planned(clock: Callable[[], float]) -> float:
    """Seconds of a plan alone; every attach makes its own."""
    import deltaw as dw

    model, config = meta_7b(), dw.LoRAConfig(targets="all-linear", rank=8, alpha=16)
    spent, made = timed(clock, lambda: dw.plan(model, config))
    assert len(made.sites) == 7 * LAYERS
    return spent


def ours(clock: Callable[[], float]) -> float:
    """Seconds of an attach and of printing its report, which counts the trained values."""
    import deltaw as dw

    model, config = meta_7b(), dw.LoRAConfig(targets="all-linear", rank=8, alpha=16)
    spent, text = timed(clock, lambda: str(dw.attach(model, config)))
    assert "19,988,480" in text and sum(p.numel() for _, p in dw.trainable(model)) == 19_988_480
    return spent


def theirs(clock: Callable[[], float]) -> float:
    """Seconds of PEFT's attach and of its count of the trained values."""
    import peft

    model, config = meta_7b(), peft.LoraConfig(target_modules="all-linear", r=8, lora_alpha=16)
    spent, (trainable, _) = timed(clock, lambda: peft.get_peft_model(model, config).get_nb_trainable_parameters())
    assert trainable == 19_988_480
    return spent


def profile() -> None:
    """Where the time of one attach goes."""
    import cProfile
    import pstats

    ours(time.process_time)
    with cProfile.Profile() as found:
        ours(time.process_time)
    pstats.Stats(found).sort_stats("cumulative").print_stats(45)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--profile", action="store_true", help="show where the time goes instead")
    options = made.parse_args()
    if options.profile:
        profile()
        return
    one_thread()
    attach = take_turns(
        {
            "ours": lambda: ours(time.process_time),
            "theirs": lambda: theirs(time.process_time),
            "ours, wall": lambda: ours(time.perf_counter),
            "theirs, wall": lambda: theirs(time.perf_counter),
            "plan": lambda: planned(time.process_time),
        },
        options.rounds,
    )
    imported = imports(options.rounds)
    command = [str(Path(sys.executable).parent / "deltaw"), "--help"]
    helped = take_turns({"help": lambda: bill(command).wall}, options.rounds)["help"]
    rows = [
        ("import torch", "CPU", imported["torch"], ""),
        ("import deltaw", "CPU", imported["own"], "0.1"),
        ("all of deltaw's core after torch", "CPU", imported["core"], "0.1"),
        ("deltaw --help, warm", "wall", helped, "0.3"),
        ("plan: 224 linears of a 7B meta model", "CPU", attach["plan"], "0.15"),
        ("attach, its own plan included, and its report on the same model", "CPU", attach["ours"], "0.15"),
        ("the same", "wall", attach["ours, wall"], "0.15"),
        ("PEFT's get_peft_model and its parameter count on the same model", "CPU", attach["theirs"], ""),
        ("the same", "wall", attach["theirs, wall"], ""),
    ]
    cells = [[what, kind, f"{statistics.median(values):.3f}", limit] for what, kind, values, limit in rows]
    beside = ratio(attach["ours"], attach["theirs"])
    text = [
        f"Median of {options.rounds} runs after {WARM_UPS} that are not counted; one thread; taking turns.",
        "Made by `python benchmarks/attach.py`. Wall time counts waiting for other work: read it on an idle machine.",
        "",
        *markdown(["what", "time", "seconds", "at most"], cells, words=2),
        "",
        f"Attaching and printing takes {1 / beside.median:.1f} times less CPU time than PEFT's.",
    ]
    write("attach", options, "CPU cost of importing and attaching", text, table_rows(imported, attach))


def table_rows(imported: Times, attach: Times) -> list[Row]:
    """Lines of the main table."""
    import_torch = statistics.median(imported["torch"])
    return [
        Row(work="import, torch and all of deltaw's core", against="torch alone",
            ours=f"{statistics.median(imported['all']):.3f} CPU s", theirs=f"{import_torch:.3f} CPU s",
            ratio=ratio(imported["all"], imported["torch"]), limit=1 + 0.1 / import_torch),
        Row(work="attach with its report, 224 linears of a 7B shape", against="PEFT",
            ours=f"{statistics.median(attach['ours']) * 1e3:.0f} CPU ms",
            theirs=f"{statistics.median(attach['theirs']) * 1e3:.0f} CPU ms",
            ratio=ratio(attach["ours"], attach["theirs"]), limit=0.1),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
