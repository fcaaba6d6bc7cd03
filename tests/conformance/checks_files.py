"""F and L: files between libraries, and what loading must never do in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bases import FEATURES, LAYERS, Mlp, made
from checks_merging import worn
from checks_state import state
from drivers import Driver
from oracle import HERE, LOGITS, ask
from rows import bits, case, near, row, told
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltaw as dw

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

row("F1", "files written by PEFT load here: same logits", "1e-6", only="deltaw", slow=True)
row("F2", "files written here load in PEFT with no warning that PEFT's own do not cause: same logits", "1e-6",
    only="deltaw", slow=True)  # fmt: skip
row("F3", "the same keys and shapes as PEFT writes", "exact", only="deltaw", slow=True,
    later={"deltaw": "target_parameters"})  # fmt: skip
row("F4", "two runs in two processes write the same bytes", "exact", slow=True)
row("F5", "PEFT's .bin files load; unknown configuration keys are reported", "-", slow=True)
row(
    "F6", "expert layouts of PEFT 0.18 and of 0.19 or newer load, or are refused", "1e-6", refusable=True, only="deltaw"
)
row("F7", "a portable export, read by a reader that knows r and lora_alpha alone: same update", "1e-5", only="deltaw")
row("L1", "a tensor in the file that fits nothing is reported", "-")
row("L2", "an adapter's parameter without a tensor is reported, wherever files are loaded", "-")
row("L3", "values and the documented dtype survive a round trip; tensors are on their layer's device", "exact")
row("L4", "a load that fails leaves the model as it was", "exact")


def logits(directory: Path) -> Tensor:
    found: Tensor = torch.load(directory / LOGITS)
    (directory / LOGITS).unlink()
    return found


@case("F6", ("0.18", "0.19"))
def expert_layouts(driver: type[Driver], directory: Path, version: str) -> None:
    """Stacks of 2 experts of 8 -> 6, whose halves lie one way round or the other; nothing but the version tells."""
    n_in, n_out = (6, 8) if version == "0.18" else (8, 6)
    stem = "base_model.model.one."
    tensors = {f"{stem}lora_A.weight": torch.ones(4, n_in), f"{stem}lora_B.weight": torch.ones(n_out, 4)}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": None, "target_parameters": ["one.weight"],
           "peft_version": f"{version}.0"}  # fmt: skip
    (directory / CONFIG).write_text(json.dumps(raw))
    model = driver(made(Mlp))
    model.load(directory)
    raise AssertionError("an expert layout was taken for a linear layer's")


@case("F7", ("plain", "rank-stabilized", "patterns"))
@torch.no_grad()
def portable_export(driver: type[Driver], directory: Path, name: str) -> None:
    changes: dict[str, Any] = {"stabilized": name == "rank-stabilized"}
    if name == "patterns":
        changes |= {"rank_pattern": {"two": 5}, "alpha_pattern": {"one": 3.0}, "rank": 3}
    model = worn(driver, replace(LAYERS["linear"], spec=LAYERS["linear"].spec.but(**changes)))
    model.save(directory / "own")
    dw.Adapter.open(directory / "own").portable().save(directory / "portable")
    raw = json.loads((directory / "portable" / CONFIG).read_text())
    tensors = load_file(directory / "portable" / WEIGHTS)
    for key, lora_A in tensors.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            read = raw["lora_alpha"] / raw["r"] * tensors[stem + ".lora_B.weight"] @ lora_A
            near(read, model.delta(stem.removeprefix("base_model.model.")), 1e-5)


@case("F1", FEATURES)
@torch.no_grad()
def theirs_here(driver: type[Driver], directory: Path, feature: str) -> None:
    ask("write", feature, directory)
    want = logits(directory)
    model = driver(FEATURES[feature].base())
    model.load(directory)
    near(model.run(FEATURES[feature].x()), want, 1e-6)


@case("F2", FEATURES)
@torch.no_grad()
def ours_there(driver: type[Driver], directory: Path, feature: str) -> None:
    ours, theirs = directory / "ours", directory / "theirs"
    model = worn(driver, FEATURES[feature])
    model.save(ours)
    said = ask("read", feature, ours)
    near(logits(ours), model.run(FEATURES[feature].x()), 1e-6)
    if said:
        ask("write", feature, theirs)
        said = sorted(set(said) - set(ask("read", feature, theirs)))
    assert not said, f"PEFT warns: {said[0][:80]}" if said else ""


@case("F3", FEATURES)
def same_keys(driver: type[Driver], directory: Path, feature: str) -> str | None:
    worn(driver, FEATURES[feature]).save(directory / "ours")
    ask("write", feature, directory / "theirs")
    ours, theirs = (
        {key: tuple(t.shape) for key, t in load_file(directory / side / WEIGHTS).items()} for side in ("ours", "theirs")
    )
    copied = {key for key in theirs.keys() - ours.keys() if key.endswith("embed_tokens.base_layer.weight")}
    left = sorted(set(ours.items()) ^ {(key, shape) for key, shape in theirs.items() if key not in copied})
    assert not left, f"'{left[0][0]}' {left[0][1]}" if left else ""
    return "all but the frozen table that PEFT writes along" if copied else None


RUN = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import drivers
from bases import FEATURES
from checks_merging import worn
driver = getattr(drivers, {driver!r})
targets = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
worn(driver, FEATURES["llama"], targets=targets).save(Path({out!r}) / "many")
worn(driver, FEATURES["modules-to-save"]).save(Path({out!r}) / "whole")
"""


@case("F4")
def bytes_are_the_same(driver: type[Driver], directory: Path) -> None:
    found = []
    for seed in ("0", "1"):
        out = directory / seed
        code = RUN.format(paths=[str(HERE), str(HERE.parent)], driver=driver.__name__, out=str(out))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        found.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True))
    for process in found:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.splitlines()[-1]
    files = [path.relative_to(directory / "0") for path in (directory / "0").rglob("*") if path.is_file()]
    other = sorted({f.name for f in files if (directory / "0" / f).read_bytes() != (directory / "1" / f).read_bytes()})
    assert not other, f"{', '.join(other)} differ"


@case("F5")
@torch.no_grad()
def pickles_load(driver: type[Driver], directory: Path) -> None:
    ask("write", "plain", directory, pickled=True)
    want = logits(directory)
    assert (directory / "adapter_model.bin").is_file() and not (directory / WEIGHTS).exists()
    model = driver(made(Mlp))
    model.load(directory)
    near(model.run(LAYERS["linear"].x()), want, 1e-6)


@case("F5")
def unknown_keys_are_told(driver: type[Driver], directory: Path) -> None:
    saved(driver, directory)
    raw = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**raw, "use_future": True}))
    model = driver(made(Mlp))
    assert "use_future" in told(model, lambda: model.load(directory)), "silent"


def saved(driver: type[Driver], directory: Path, edit: Callable[[dict[str, Tensor]], Any] | None = None) -> Path:
    """A plain adapter, its tensors edited as another tool would: without metadata."""
    worn(driver, LAYERS["linear"]).save(directory)
    held = load_file(directory / WEIGHTS)
    if edit is not None:
        edit(held)
    save_file(held, directory / WEIGHTS, {"format": "pt"})
    return directory


ENTRIES = ("as first adapter", "as second adapter")
KEY = "base_model.model.{}.lora_A.weight"


def entry(driver: type[Driver], name: str) -> Driver:
    """A model that a file is loaded on: plain, or with another adapter."""
    return driver(made(Mlp)) if name == ENTRIES[0] else worn(driver, LAYERS["linear"])


@case("L1", ENTRIES)
def left_over(driver: type[Driver], directory: Path, name: str) -> None:
    saved(driver, directory, lambda held: held.update({KEY.format("elsewhere"): torch.ones(4, 8)}))
    model = entry(driver, name)
    assert "elsewhere" in told(model, lambda: model.load(directory, "new")), "silent"


@case("L1")
def one_place_twice(driver: type[Driver], directory: Path) -> None:
    key = KEY.format("two")
    saved(driver, directory, lambda held: held.update({key.removeprefix("base_model.model."): held[key] * 2}))
    model = driver(made(Mlp))
    assert "two" in told(model, lambda: model.load(directory)), "silent"


BESIDE = {
    "a module saved in full": ("modules-to-save", "head"),
    "a trained bias": ("bias-lora-only", "c_attn.base_layer.bias"),
}


@case("L2", BESIDE)
def lacking_beside(driver: type[Driver], directory: Path, name: str) -> None:
    feature, part = BESIDE[name]
    worn(driver, FEATURES[feature]).save(directory)
    held = {key: t for key, t in load_file(directory / WEIGHTS).items() if part not in key}
    save_file(held, directory / WEIGHTS, {"format": "pt"})
    model = driver(FEATURES[feature].base())
    assert part.split(".")[0] in told(model, lambda: model.load(directory)), "silent"


@case("L2", ENTRIES)
def lacking(driver: type[Driver], directory: Path, name: str) -> None:
    saved(driver, directory, lambda held: held.pop(KEY.format("two")))
    model = entry(driver, name)
    assert "two" in told(model, lambda: model.load(directory, "new")), "silent"


@case("L3", (torch.float32, torch.bfloat16))
def round_trip(driver: type[Driver], directory: Path, dtype: torch.dtype) -> str | None:
    saved(driver, directory / "a")
    held = {key: t.to(dtype) for key, t in load_file(directory / "a" / WEIGHTS).items()}
    save_file(held, directory / "a" / WEIGHTS, {"format": "pt"})
    model = driver(made(Mlp).bfloat16())
    model.load(directory / "a")
    assert {p.device for p in model.parameters().values()} == {torch.device("cpu")}
    model.save(directory / "b")
    found = load_file(directory / "b" / WEIGHTS)
    assert bits({k: t.float() for k, t in held.items()}) == bits({k: t.float() for k, t in found.items()}), "values"
    kept = {t.dtype for t in found.values()}
    assert kept == {torch.float32}, f"written as {kept}"
    return "comes back as fp32, the documented dtype, with every value" if dtype != torch.float32 else None


def _cut(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:300])


FAULTS: dict[str, Callable[[type[Driver], Path], Any]] = {
    "misshaped tensor": lambda driver, d: saved(driver, d, lambda h: h.update({KEY.format("two"): torch.ones(4, 9)})),
    "truncated file": lambda driver, d: _cut(saved(driver, d)),
    "damaged configuration": lambda driver, d: (saved(driver, d) / CONFIG).write_text('{"peft_type": "LORA", "r": '),
}


@case("L4", [f"{fault} {name}" for fault in FAULTS for name in ENTRIES])
def failed_load(driver: type[Driver], directory: Path, name: str) -> None:
    fault, place = next((fault, place) for fault in FAULTS for place in ENTRIES if name == f"{fault} {place}")
    FAULTS[fault](driver, directory)
    model = entry(driver, place)
    before = state(model.callable())
    try:
        model.load(directory, "new")
    except driver.errors:
        after = state(model.callable())
        assert before == after, f"{', '.join(word for word in before if before[word] != after[word])} differ afterwards"
        return
    raise AssertionError("nothing fails")
