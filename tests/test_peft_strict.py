"""What does not fit is refused, with model and files as they were; what differs harmlessly is taken."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltaw as dw
from deltaw.errors import CheckpointError
from peft_files import CONFIG, NET, WEIGHTS, Net, Tensors, key, refused, rewrite, state
from peft_judge import (
    compare_models,
    compare_sites,
    inputs,
    peft_load,
    seeded,
    tensors,
    wear,
)

A1, B1, A2 = key("one", "A"), key("one", "B"), key("two", "A")
TENSORS: dict[str, tuple[Callable[[Tensors], Any], tuple[str, ...]]] = {
    "extra": (lambda t: t.update({"base_model.model.three.weight": torch.ones(2)}), ("'three.weight' lands nowhere",)),
    "extra-site": (lambda t: t.update({key("thre", "A"): t[A1], key("thre", "B"): t[B1]}), ("no module 'thre'",)),
    "missing-factor": (lambda t: t.pop(B1), ("'one' has lora_A but no lora_B",)),
    "missing-site": (lambda t: (t.pop(A1), t.pop(B1)), ("'one' is a target but has no tensor",)),
    "misshaped": (lambda t: t.update({A1: torch.ones(3, 9)}), ("(3, 9)", "8 -> 8")),
    "ranks-differ": (lambda t: t.update({A1: torch.ones(2, 8)}), ("'one'", "(2, 8)")),
    "swapped-factors": (lambda t: t.update({A1: t[B1], B1: t[A1].clone()}), ("'one'", "(8, 3)", "(3, 8)")),
    "one-dimension": (lambda t: t.update({A1: torch.ones(24)}), ("'one'",)),
    "nan": (lambda t: t[A2].view(-1).__setitem__(3, float("nan")), (A2, "NaN")),
    "infinity": (lambda t: t[A2].view(-1).__setitem__(0, float("-inf")), (A2,)),
    "embedding-keys": (
        lambda t: t.update(
            {A1.replace("A.weight", "embedding_A"): t.pop(A1), B1.replace("B.weight", "embedding_B"): t.pop(B1)}
        ),
        ("'one' is a Linear",),
    ),
    "prefix-twice": (lambda t: t.update({"base_model.model." + A1: t.pop(A1)}), ("base_model.model.one",)),
    "nothing": (lambda t: t.clear(), ("problem",)),
    "magnitude": (
        lambda t: t.update({"base_model.model.one.lora_magnitude_vector": torch.ones(8)}),
        ("'one' has a magnitude",),
    ),
    "bias-on-b": (lambda t: t.update({"base_model.model.one.lora_B.bias": torch.ones(8)}), ("'one' has a bias_B",)),
    "several": (lambda t: (t.pop(A1), t.update({A2: torch.ones(3, 9)})), ("2 problems", "'one'", "'two'")),
}


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name: str, foreign: bool, tmp_path: Path) -> None:
    wear(NET, tmp_path)
    edit, words = TENSORS[name]
    refused(rewrite(tmp_path, edit, foreign=foreign), *words)


def test_wrong_rank_in_the_configuration(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    rewrite(tmp_path, config={"r": 4}, foreign=True)
    refused(tmp_path, "rank 3 in the tensors, 4 in adapter_config.json")


def test_a_pattern_that_contradicts_the_tensors(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    rewrite(tmp_path, config={"rank_pattern": {"two": 5}}, foreign=True)
    refused(tmp_path, "'two': rank 3 in the tensors, 5")


@pytest.mark.parametrize("length", [0, 4, 40, 300, -1])
def test_truncated_files(length: int, tmp_path: Path) -> None:
    wear(NET, tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:length])
    refused(tmp_path, "cannot be read", "bytes")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        (WEIGHTS, b"not a tensor file at all", "cannot be read"),
        (CONFIG, b"{", "not JSON"),
        (CONFIG, b"[]", "no object"),
        (CONFIG, b"\xff\xfe", "not JSON"),
        (CONFIG, b"{}", "peft_type"),
        (CONFIG, b'{"peft_type": "LOHA"}', "LOHA"),
        (CONFIG, b'{"peft_type": "LORA", "r": "8"}', "r cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "r": 2.5}', "r cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "lora_alpha": NaN}', "lora_alpha cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "rank_pattern": [1]}', "rank_pattern cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "bias": "some"}', "cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "target_modules": 3}', "target_modules cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "target_modules": "("}', "a regular expression"),
        (CONFIG, b'{"peft_type": "LORA", "rank_pattern": {"(": 3}}', "regular expressions"),
        (CONFIG, b'{"peft_type": "LORA", "alpha_pattern": {"one": "x"}}', "cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "layers_to_transform": "all"}', "layers_to_transform cannot be used"),
        (CONFIG, b'{"peft_type": "LORA", "modules_to_save": [3]}', "modules_to_save cannot be used"),
    ],
)
def test_damaged_files(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    wear(NET, tmp_path)
    rewrite(tmp_path, foreign=True)
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, word)


def test_absent_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such directory")
    refused(tmp_path, "an empty directory")
    wear(NET, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    refused(tmp_path, WEIGHTS)


def test_a_pickle_may_hold_nothing_but_tensors(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    for content in ({"a": Path("x")}, {"a": 3}, [torch.ones(1)]):
        torch.save(content, tmp_path / "adapter_model.bin")
        refused(tmp_path, "adapter_model.bin", "cannot be read")


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "target_parameters": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "raw parameters"),
    "alora": ({"alora_invocation_tokens": [5]}, "activated"),
    "qalora": ({"use_qalora": True}, "QALoRA"),
    "layer_replication": ({"layer_replication": [[0, 4], [2, 5]]}, "replicated"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "Arrow"),
    "velora": ({"velora_config": {"rank": 1}}, "VeLoRA"),
    "monteclora": ({"monteclora_config": {"n": 2}}, "MonteCLoRA"),
    "kasa": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "megatron": ({"megatron_config": {"tp": 2}}, "Megatron"),
    "enable_lora": ({"enable_lora": [True, False, True]}, "enable_lora"),
    **{
        f"init_{n}": ({"init_lora_weights": n}, n)
        for n in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
    },
}


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_applied_is_refused_by_name(name: str, tmp_path: Path) -> None:
    wear(NET, tmp_path)
    fields, word = NAMED[name]
    rewrite(tmp_path, config=fields, foreign=True)
    assert next(iter(fields)) in refused(tmp_path, word)


def test_every_field_of_peft_is_known() -> None:
    """A field that a newer PEFT adds must be sorted into read, refused or neutral; till then loading names it."""
    import peft

    from deltaw.peft_config import unknown_fields

    raw = dict.fromkeys(peft.LoraConfig().to_dict(), "set")
    assert unknown_fields({**raw, "runtime_config": None}) == []


def test_an_unknown_field_is_named_and_kept(tmp_path: Path) -> None:
    wear(NET, tmp_path / "a")
    rewrite(tmp_path / "a", config={"use_future": True})
    model = seeded(Net)
    report = dw.load(model, tmp_path / "a")
    assert any("use_future" in note for note in report.notes)
    dw.save(model, tmp_path / "b")
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["use_future"] is True


# The base


def test_another_base_is_refused_and_allowed_by_flag(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    other = seeded(Net, seed=1)
    refused(tmp_path, "another base", "'one'", "allow-other-base", model=other)
    report = dw.load(other, tmp_path, allow_other_base=True)
    assert any("another base" in note for note in report.notes)


def test_a_file_without_a_fingerprint_is_taken_with_a_note(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    rewrite(tmp_path, foreign=True)
    assert any("not checked" in note for note in dw.load(seeded(Net, seed=1), tmp_path).notes)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def small() -> nn.Module:
    """A checkpoint with many weights in fp16's subnormal range, as initialized ones have."""
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e-4)
    return net


@pytest.mark.parametrize("make", [Net, small])
@pytest.mark.parametrize("saved", DTYPES, ids=str)
@pytest.mark.parametrize("loaded", DTYPES, ids=str)
def test_one_checkpoint_in_any_dtype_is_one_base(saved: Any, loaded: Any, make: Any, tmp_path: Path) -> None:
    model = seeded(make).to(saved)
    dw.attach(model, dw.LoRAConfig(**NET.ours))
    dw.save(model, tmp_path)
    assert not dw.load(seeded(make).to(loaded), tmp_path).notes
    refused(tmp_path, "another base", model=seeded(Net, seed=1).to(loaded))


# Edits, crashes, full disks


def test_an_edited_alpha_is_noticed(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    rewrite(tmp_path, config={"lora_alpha": 14})
    refused(tmp_path, "not the one these tensors were written with", "accept_edits")
    adapter = dw.Adapter.open(tmp_path, accept_edits=True)
    assert adapter.scaling("one") == 14 / 3
    adapter.save(tmp_path)
    dw.load(seeded(Net), tmp_path)


def test_a_crash_between_the_two_renames_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wear(NET, tmp_path)
    before = (tmp_path / CONFIG).read_bytes()
    replace, done = Path.replace, []

    def crash(self: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    model = seeded(Net)
    dw.attach(model, dw.LoRAConfig(**{**NET.ours, "alpha": 14}))
    with pytest.raises(KeyboardInterrupt):
        dw.save(model, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / CONFIG).read_bytes() == before and done
    refused(tmp_path, "not the one these tensors were written with")
    assert not list(tmp_path.glob(".*tmp")), "an interrupted save leaves no staged files"


@contextlib.contextmanager
def full_disk(left: int) -> Iterator[None]:
    """A disk on which no file can grow beyond ``left`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    wear(NET, tmp_path)
    model = seeded(Net)
    dw.attach(model, dw.LoRAConfig(**NET.ours))
    before = state(model, tmp_path)
    with pytest.raises(CheckpointError, match="cannot write the adapter") as caught, full_disk(512):
        dw.save(model, tmp_path)
    assert caught.value.exit_code == 5
    assert state(model, tmp_path) == before


SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from torch import nn
import deltaw as dw
from peft_judge import fill, seeded

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(9, 8)
        block = lambda: nn.ModuleDict(dict(q=nn.Linear(8, 8), k=nn.Linear(8, 8), qkv=nn.Linear(8, 24)))
        self.layers = nn.ModuleList(block() for _ in range(3))
        self.pre_head, self.head, self.out = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 9, bias=False)
        self.out.weight = self.emb.weight

for name, fields in dict(
    patterns=dict(targets=["q", "k"], rank_pattern=dict(q=5), alpha_pattern={{"layers.1.k": 3, "layers.0.k": 2}}),
    slices=dict(targets=["qkv[q,v]", "k"], rank_pattern={{"qkv[v]": 2}}),
    heads=dict(targets=["q"], exclude=["layers.2.q"], train_also=["head"], bias="all"),
    tied=dict(targets=["emb", "q"], ties="share"),
    types=dict(targets=[nn.Linear], ties="share"),
).items():
    model = seeded(Net)
    dw.attach(model, dw.LoRAConfig(rank=3, alpha=7, **fields))
    fill(dw.trainable(model))
    dw.save(model, Path({out!r}) / name)
"""


@pytest.mark.slow
def test_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    runs = {}
    for seed in ("0", "1"):
        code = SAVE.format(tests=str(Path(__file__).parent), out=str(tmp_path / seed))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        runs[seed] = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    for done in runs.values():
        _, errors = done.communicate()
        assert done.returncode == 0, errors
    files = [path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*") if path.is_file()]
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "1" / file).read_bytes(), file


# The judge itself: a wrong file must not pass


@pytest.mark.parametrize("mutation", ["scaling", "swap", "sign", "rank-stabilized"])
def test_the_judge_sees_a_wrong_adapter(mutation: str, tmp_path: Path) -> None:
    ours = wear(NET, tmp_path)
    scalings, x = {"one": 7 / 3, "two": 7 / 3}, inputs(ours, tokens=False)
    theirs = peft_load(seeded(Net), tmp_path)
    compare_sites(ours, theirs, tensors(tmp_path), scalings, x)
    compare_models(ours, theirs, x)

    def swap(t: Tensors) -> None:
        for factor in "AB":
            t[key("one", factor)], t[key("two", factor)] = t[key("two", factor)], t[key("one", factor)].clone()

    edits: dict[str, tuple[Any, dict[str, Any]]] = {
        "scaling": (None, {"lora_alpha": 7 * 1.01}),
        "swap": (swap, {}),
        "sign": (lambda t: t.update({A1: -t[A1]}), {}),
        "rank-stabilized": (None, {"use_rslora": True}),
    }
    edit, config = edits[mutation]
    wrong = seeded(Net)
    dw.load(wrong, rewrite(tmp_path, edit, config, foreign=True))
    with pytest.raises(AssertionError, match="off by"):
        compare_sites(wrong, theirs, tensors(tmp_path), scalings, x)
    with pytest.raises(AssertionError, match="off by"):
        compare_models(wrong, theirs, x)


def test_the_judge_sees_a_wrong_scaling_on_both_sides(tmp_path: Path) -> None:
    """Two libraries that agree on a wrong number are caught by the reference."""
    ours = wear(NET, tmp_path)
    theirs = peft_load(seeded(Net), tmp_path)
    with pytest.raises(AssertionError, match="expected another scaling"):
        compare_sites(ours, theirs, tensors(tmp_path), {"one": 7 / 3 * 1.01}, inputs(ours, tokens=False))
