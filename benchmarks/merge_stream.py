"""Merging into shards on disk beside merging in memory and beside a plain copy: `python benchmarks/merge_stream.py`.

A synthetic checkpoint of a Llama-like model (about 1 GB in bfloat16, five shards) is made in a temporary directory.
Every run is a forked process of its own, so that its peak of resident memory is its own; rounds alternate. The results
of both roads are compared tensor by tensor, bit for bit, before anything is timed. Every road ends with its files
flushed to the disk; none verifies the result, which costs the same on both.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import hardware, versions
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
PREFIX = "base_model.model."
CASES: dict[str, list[str]] = {
    "all linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "all linear, table, head": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head",
    ],
}  # fmt: skip
RANK = 16
SHARDS = 5


def shape(layers: int) -> Any:
    """The model without values."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def make_base(place: Path, layers: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = shape(layers)
    generator = torch.Generator().manual_seed(0)
    place.mkdir()
    model.config.save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(place)
    sizes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    share = sum(torch.Size(size).numel() for size in sizes.values()) / SHARDS
    shards: list[dict[str, torch.Tensor]] = [{}]
    index = {}
    for key, size in sizes.items():
        if sum(tensor.numel() for tensor in shards[-1].values()) > share:
            flush(shards, place)
            shards.append({})
        shards[-1][key] = (torch.randn(size, generator=generator) * 0.02).bfloat16()
        index[key] = f"model-{len(shards):05d}.safetensors"
    flush(shards, place)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def flush(shards: list[dict[str, torch.Tensor]], place: Path) -> None:
    save_file(shards[-1], place / f"model-{len(shards):05d}.safetensors", {"format": "pt"})
    shards[-1].clear()


def make_adapter(place: Path, layers: int, targets: list[str]) -> None:
    import deltaw as dw

    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for site in dw.plan(shape(layers), dw.LoRAConfig(rank=RANK, alpha=2 * RANK, targets=targets)).sites:
        ends = (
            (".lora_embedding_A", ".lora_embedding_B") if "embed" in site.path else (".lora_A.weight", ".lora_B.weight")
        )
        for end, size in zip(ends, ((RANK, site.in_features), (site.out_features, RANK)), strict=True):
            tensors[f"{PREFIX}{site.path}{end}"] = torch.randn(size, generator=generator) * 0.02
    raw = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    dw.Adapter(tensors=tensors, raw=raw).save(place)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(road: str, base: Path, adapter: Path, place: Path) -> None:
    from deltaw.ship import merge as ship
    from deltaw.ship.ondisk import Unstreamable
    from deltaw.ship.opening import ModelChoice
    from deltaw.train.files import replace_directory

    if road == "copy":
        replace_directory(place, lambda there: [shutil.copyfile(f, there / f.name) for f in base.iterdir()] and None)
        return
    if road == "memory":

        def refuse(*args: object) -> None:
            raise Unstreamable("measured on purpose")

        ship.prepare = refuse  # type: ignore[assignment]
    choice = ModelChoice(model=str(base), adapter=str(adapter), device="cpu")
    written = ship.merge_directory(choice, place, verify=False)
    assert written.streamed == (road == "stream")


def forked(task: Callable[[], None]) -> list[float]:
    """Wall seconds, CPU seconds and peak bytes beyond the start's, in a process of its own."""
    # what an earlier run wrote must not be flushed on this one's time
    os.sync()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            before, start, cpu = peak(), time.perf_counter(), time.process_time()
            task()
            found = [time.perf_counter() - start, time.process_time() - cpu, peak() - before]
            os.write(writer, json.dumps(found).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        said = answers.read()
    os.waitpid(child, 0)
    if not said:
        raise RuntimeError("a run failed")
    found: list[float] = json.loads(said)
    return found


def run(road: str, base: Path, adapter: Path, place: Path) -> list[float]:
    return forked(functools.partial(work, road, base, adapter, place))


def same(one: Path, other: Path) -> int:
    """Number of tensors, all alike bit for bit."""
    found: list[dict[str, Any]] = [{}, {}]
    for place, homes in zip((one, other), found, strict=True):
        for file in place.glob("*.safetensors"):
            opened = safe_open(file, "pt")
            homes.update(dict.fromkeys(opened.keys(), opened))
    assert found[0].keys() == found[1].keys()
    for key, home in found[0].items():
        pair = [file.get_tensor(key).view(torch.int16) for file in (home, found[1][key])]
        assert torch.equal(*pair), key
    return len(found[0])


def measure(home: Path, layers: int, rounds: int) -> tuple[dict[tuple[str, str], list[list[float]]], int]:
    base = home / "base"
    for number, targets in enumerate(CASES.values()):
        make_adapter(home / f"adapter{number}", layers, targets)
    tensors = 0
    for number in range(len(CASES)):
        for road in ("stream", "memory"):
            run(road, base, home / f"adapter{number}", home / road)
        tensors = same(home / "stream", home / "memory")
        for road in ("stream", "memory"):
            shutil.rmtree(home / road)
    taken: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(rounds):
        for number, name in enumerate(CASES):
            for road in ("copy", "stream", "memory"):
                if road == "copy" and number:
                    continue
                found = run(road, base, home / f"adapter{number}", home / "out")
                taken.setdefault((road, "" if road == "copy" else name), []).append(found)
                shutil.rmtree(home / "out")
    return taken, tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="for the name of the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # imported once, before anything is forked
    importlib.import_module("deltaw.ship.merge")
    shape(1)
    with tempfile.TemporaryDirectory() as name:
        forked(functools.partial(make_base, Path(name) / "base", options.layers))
        files = sorted((Path(name) / "base").glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        taken, tensors = measure(Path(name), options.layers, options.rounds)
    table = 32_000 * 2048 * 2
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    names = {"copy": "plain copy", "stream": "deltaw, shard by shard", "memory": "deltaw, in memory"}
    rows = []
    for (road, case), found in taken.items():
        seconds, cpu, memory = (statistics.median(values) for values in zip(*found, strict=True))
        spread = f"{min(run[0] for run in found):.2f} to {max(run[0] for run in found):.2f}"
        rows.append(
            f"| {names[road]} | {case} | {seconds:.2f} | {spread} | {cpu:.2f} | {size / seconds / 1e6:.0f} | "
            f"{memory / 1e6:.0f} | {memory / table:.2f} | {memory / size:.2f} |"
        )
    text = [
        f"# Merging into {len(files)} shards, {size / 1e9:.2f} GB in bfloat16, rank {RANK}",
        "",
        f"{options.date}. {hardware()}. {versions()}. Load average after the run: {load}.",
        f"Medians of {options.rounds} rounds, the roads taking turns, each run a process of its own, one thread, the",
        "base's files in the page cache, all files flushed to the disk, nothing verified. Made by",
        f"`python benchmarks/merge_stream.py`. Before that, all {tensors} tensors of both roads were the same bits, in",
        "every case. Memory: highest resident set beyond that of the imports, mapped file pages included; the largest",
        f"tensor is a table of {table / 1e6:.0f} MB.",
        "",
        "| road | targets | seconds | spread | CPU seconds | MB/s | peak MB | / largest tensor | / checkpoint |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    print("\n".join(text))
    (HERE / "results" / f"merge_stream_cpu_{options.date}.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
