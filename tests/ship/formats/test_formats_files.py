"""Reading files and trees, and choosing a format: nothing is taken for another, nothing runs, nothing is dropped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_for_tests import filled, linears, lines, value, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deltaw.errors import CheckpointError, ConfigError, DeltawError
from deltaw.ship.formats import FORMATS, Ask, Source, Tree, detect, open_any, parse_enable, read_any
from deltaw.ship.formats.source import read_source

PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "peft": ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", {}),
    "loralib": ("h.0.attn.c_attn.lora_A", "h.0.attn.c_attn.lora_B", {}),
    "litgpt": ("transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B", {}),
    "kohya": ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", {}),
    "diffusers": ("unet.q.lora.down.weight", "unet.q.lora.up.weight", {}),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight", {"peft_type": "LORA"}),
    "mlx": ("model.layers.0.q.lora_a", "model.layers.0.q.lora_b", {"fine_tune_type": "lora"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_file_is_of_one_format(name: str) -> None:
    first, second, config = PAIRS[name]
    source = Source(tensors={first: torch.zeros(2, 2), second: torch.zeros(2, 2)}, path=Path("x"), config=config)
    assert list(detect(source)) == [name]


def test_grouped_is_no_plain_peft() -> None:
    key = "base_model.model.q"
    tensors = {f"{key}.lora_A.weight": torch.zeros(4, 2), f"{key}.lora_B.weight": torch.zeros(4, 2, 1)}
    assert list(detect(Source(tensors=tensors, path=Path("x")))) == ["peft-grouped"]


def test_the_registry_says_who_writes_what() -> None:
    assert list(FORMATS) == [form.name for form in FORMATS.values()]
    assert all(form.title for form in FORMATS.values())
    assert list(FORMATS) == ["peft", "peft-grouped", "loralib", "litgpt", "kohya", "diffusers", "torchtune", "mlx"]


def test_from_overrides_detection(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.pt",
        filled({"transformer.h.0.attn.qkv.lora_A": (2, 4), "transformer.h.0.attn.qkv.lora_B": (4, 2)}),
    )
    found = read_any(path, Ask(alpha=2.0), format="loralib")
    assert found.format == "loralib" and found.reason == "asked for"
    with pytest.raises(ConfigError, match="nearest: 'loralib'"):
        read_any(path, Ask(), format="loralb")


def test_a_directory_with_several_files_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write(tmp_path / name, {"q.lora_A": torch.zeros(1, 2), "q.lora_B": torch.zeros(2, 1)})
    with pytest.raises(CheckpointError, match="which file is the adapter's"):
        read_source(tmp_path)
    assert read_source(tmp_path / "a.pt").path.name == "a.pt"


def test_what_stood_beside_the_tensors_is_said(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": filled({"q.lora_A": (1, 2), "q.lora_B": (2, 1)}), "epoch": 3, "loss": 0.1}, tmp_path / "a.pt"
    )
    found = read_any(tmp_path / "a.pt", Ask(alpha=1.0))
    assert any("not read: epoch, loss" in note for note in found.notes)


@pytest.mark.parametrize("shape", [(), (4,), (4, 0), (0, 4)])
@pytest.mark.parametrize("name", PAIRS)
def test_factors_without_a_rank_are_an_error_of_ours(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    first, second, config = PAIRS[name]
    torch.save({first: torch.zeros(shape), second: torch.zeros(shape)}, tmp_path / "adapter_model.bin")
    stated = {**config, "lora_parameters": {"scale": 2.0, "alpha": 4.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(DeltawError):
        open_any(tmp_path, alpha=2.0)
    with pytest.raises(DeltawError):
        open_any(tmp_path)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "peft-grouped"])
def test_factors_of_two_ranks_are_an_error_of_ours(tmp_path: Path, name: str) -> None:
    first, second, config = PAIRS[name]
    torch.save({first: torch.zeros(2, 5), second: torch.zeros(4, 3)}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_parameters": {"scale": 2.0}}))
    with pytest.raises(DeltawError, match=r"rank|factor|parts"):
        open_any(tmp_path, alpha=2.0)


class Danger:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"q.lora_A": Danger(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_source(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_bytes_of_anything_are_an_error_of_ours(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        open_any(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_cut_files(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", filled({"q.lora_A": (4, 64), "q.lora_B": (64, 4)}))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_any(path, alpha=1)


@pytest.mark.parametrize("form", ["names", "list", "shapes", "safetensors", "directory", "index"])
def test_trees(tmp_path: Path, form: str) -> None:
    model = linears({"unet.a_b.q": (4, 6), "unet.v": (5, 6)})
    state = dict(model.state_dict())
    if form == "names":
        (tmp_path / "tree.txt").write_text("# modules\n" + lines(["unet.a_b.q.weight", "unet.v"]))
    elif form in ("list", "shapes"):
        entries = {key: list(tensor.shape) for key, tensor in state.items()}
        (tmp_path / "tree.json").write_text(json.dumps(list(entries) if form == "list" else entries))
    elif form == "directory":
        write(tmp_path / "pipe" / "unet" / "w.safetensors", {k.removeprefix("unet."): t for k, t in state.items()})
    else:
        write(tmp_path / "w.safetensors", state)
        (tmp_path / "w.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "w.safetensors")}))
    name = {"names": "tree.txt", "list": "tree.json", "shapes": "tree.json", "safetensors": "w.safetensors",
            "directory": "pipe", "index": "w.index.json"}[form]  # fmt: skip
    tree = Tree.read(tmp_path / name)
    assert tree.adaptable() == ["unet.a_b.q", "unet.v"]
    sized = form not in ("names", "list")
    assert (tree.nodes["unet.v"].shape == (5, 6)) == sized
    path = write(
        tmp_path / "lora.safetensors",
        filled({"lora_unet_a_b_q.lora_down.weight": (2, 6), "lora_unet_a_b_q.lora_up.weight": (4, 2)}),
    )
    assert open_any(path, model=tree).modules() == ["unet.a_b.q"]
    wrong = write(
        tmp_path / "b.safetensors",
        filled({"lora_unet_v.lora_down.weight": (2, 6), "lora_unet_v.lora_up.weight": (4, 2)}),
    )
    if sized:
        with pytest.raises(CheckpointError, match="do not fit"):
            open_any(wrong, model=tree)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": "b"}', "3"])
def test_bad_trees(tmp_path: Path, content: str) -> None:
    (tmp_path / "tree.json").write_text(content)
    with pytest.raises(ConfigError, match="module tree cannot be read"):
        Tree.read(tmp_path / "tree.json")
    with pytest.raises(ConfigError, match="no such file"):
        Tree.read(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "q,x", "0,0", "q,q", "2", ","])
def test_bad_parts(text: str) -> None:
    with pytest.raises(ConfigError, match="--enable"):
        parse_enable(text)


def test_target_names_mean_these_modules_alone(tmp_path: Path) -> None:
    """``0`` would reach every list's first entry in PEFT; the ending is lengthened, or the paths are listed."""
    keys = {"unet.a.0.to_out.0.lora.down.weight": (1, 4), "unet.a.0.to_out.0.lora.up.weight": (4, 1)}
    path = write(tmp_path / "a.safetensors", filled(keys))
    assert open_any(path, model=linears({"a.0.to_out.0": (4, 4)})).raw["target_modules"] == ["to_out.0"]
    more = linears({"a.0.to_out.0": (4, 4), "a.1.to_out.0": (4, 4)})
    assert open_any(path, model=more).raw["target_modules"] == ["a.0.to_out.0"]


KEYS = st.sampled_from([
    "q.lora_A", "q.lora_B", "lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", "lora_unet_q.alpha",
    "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "unet.q.lora.down.weight", "q.weight",
    "unet.q.lora.up.weight", "layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight", "q.lora_a",
    "q.lora_b", "q.m", "transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B", "", ".", "lora_A",
])  # fmt: skip
SHAPES = st.sampled_from([(), (4,), (2, 4), (4, 2), (0, 4), (4, 0), (4, 4), (2, 4, 1), (4, 2, 1, 1), (12, 2)])
CONFIGS = st.dictionaries(
    st.sampled_from(["peft_type", "r", "lora_alpha", "enable_lora", "lora_parameters", "fine_tune_type", "n_head"]),
    st.one_of(st.none(), st.integers(-3, 9), st.text(max_size=3), st.booleans(), st.lists(st.booleans(), max_size=3),
              st.just({"scale": 2.0}), st.just("LORA")),
    max_size=4,
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.dictionaries(KEYS, SHAPES, max_size=5), config=CONFIGS, alpha=st.sampled_from([None, 2.0]))
def test_whatever_is_in_a_file_ends_in_an_adapter_or_an_error_of_ours(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], config: dict[str, Any], alpha: float | None
) -> None:
    made: dict[str, Tensor] = {key: value(key, *shape) for key, shape in tensors.items()}
    torch.save(made, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for model in (None, nn.ModuleDict({"q": nn.Linear(4, 4)})):
        try:
            adapter = open_any(tmp_path, model=model, alpha=alpha)
        except DeltawError:
            continue
        used = sum(tensor.numel() for tensor in adapter.tensors.values())
        assert used and adapter.parameters == used
