"""``deltaw convert`` from the command line: what it prints, writes, refuses, and every option's effect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import deltaw as dw
from deltaw.cli import main
from verb_models import base_dir

sys.path.insert(0, str(Path(__file__).parents[1] / "ship" / "formats"))
from formats_for_tests import filled, write

Captured = pytest.CaptureFixture[str]


def loralib(place: Path) -> Path:
    names = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qv"]
    config = json.loads((place / "base" / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    narrow = hidden // heads * config["num_key_value_heads"]
    shapes = {f"{name}.lora_A": (2, hidden) for name in names}
    shapes |= {f"{name}.lora_B": (hidden if name.endswith("q_proj") else narrow, 2) for name in names}
    return write(place / "lora.pt", filled(shapes))


def test_it_says_what_it_did_and_what_to_do_next(tmp_path: Path, capsys: Captured) -> None:
    base_dir(tmp_path / "base")
    source, out = loralib(tmp_path), tmp_path / "out"
    words = ["convert", str(source), "--model", str(tmp_path / "base"), "--alpha", "6", "--output", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in (
        "format   loralib",
        "keys end in '.lora_A'",
        "model.layers.0.self_attn.q_proj",
        f"wrote    {out} (4 modules",
    ):
        assert part in text
    assert text.rstrip().splitlines()[-3:] == [
        "next:",
        f"  deltaw inspect {out}",
        f"  deltaw generate --model {tmp_path / 'base'} --adapter {out} --prompt 'Once upon a time'",
    ]
    # both commands work
    assert main(["inspect", str(out)]) == 0
    assert (
        main(
            ["generate", "--model", str(tmp_path / "base"), "--adapter", str(out), "-p", "the fox", "--max-tokens", "2"]
        )
        == 0
    )
    assert dw.Adapter.open(out).raw["base_model_name_or_path"] == str(tmp_path / "base")
    capsys.readouterr()
    assert main(words) == 5 and "exists already" in capsys.readouterr().err


def test_json_and_quiet(tmp_path: Path, capsys: Captured) -> None:
    source = write(tmp_path / "lora.pt", filled({"q.lora_A": (2, 6), "q.lora_B": (4, 2), "head.weight": (3, 4)}))
    assert main(["convert", str(source), "--alpha", "6", "-o", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "loralib" and found["modules"][0] == {
        "origin": "q", "path": "q", "rank": 2, "scaling": 3.0, "shape": [6, 4],
    }  # fmt: skip
    assert [item["path"] for item in found["trained_in_full"]] == ["head.weight"] and found["left"] == []
    assert found["adapter_hash"] == dw.Adapter.open(tmp_path / "a").hash
    assert main(["convert", str(source), "--alpha", "6", "-o", str(tmp_path / "b"), "-q", "--lora-only"]) == 0
    assert capsys.readouterr().out == ""
    assert len(dw.Adapter.open(tmp_path / "b").tensors) == 2


def test_what_is_left_aside_is_listed(tmp_path: Path, capsys: Captured) -> None:
    shapes = {f"lora_{c}_q.lora_{x}.weight": s for c in ("unet", "te") for x, s in (("down", (2, 4)), ("up", (4, 2)))}
    source = write(tmp_path / "k.safetensors", filled(shapes), ss_base_model_version="sd_v1")
    (tmp_path / "tree.txt").write_text("q\n")
    words = [
        "convert",
        str(source),
        "--tree",
        str(tmp_path / "tree.txt"),
        "--part",
        "unet",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "left aside, as asked: 1: lora_te_q" in text and "ss_base_model_version = sd_v1" in text
    assert "deltaw generate" not in text


@pytest.mark.parametrize(("count", "every"), [(3, False), (30, False), (30, True)])
def test_the_table_is_short_unless_asked(tmp_path: Path, capsys: Captured, count: int, every: bool) -> None:
    shapes = {f"h.{i}.q.lora_A": (2, 6) for i in range(count)} | {f"h.{i}.q.lora_B": (4, 2) for i in range(count)}
    source = write(tmp_path / "lora.pt", filled(shapes))
    flags = ["--modules"] if every else []
    assert main(["convert", str(source), "--alpha", "1", "-o", str(tmp_path / "out"), *flags]) == 0
    text = capsys.readouterr().out
    assert ("h.2.q" in text) == (every or count == 3) and ("one row per kind" in text) != (every or count == 3)


def test_enable_and_from(tmp_path: Path) -> None:
    source = write(tmp_path / "lora.pt", filled({"h.0.c_attn.lora_A": (4, 6), "h.0.c_attn.lora_B": (8, 2)}))
    made = []
    for parts in ("q,v", "1,1,0"):
        out = tmp_path / parts
        words = ["convert", str(source), "--alpha", "2", "--enable", parts, "--from", "loralib", "-o", str(out)]
        assert main(words) == 0
        made.append(dw.Adapter.open(out).factors("h.0.c_attn")[1])
    assert all(wide.shape == (12, 4) for wide in made)
    assert not torch.equal(made[0], made[1])


def test_a_diffusers_directory_gives_its_names_without_its_weights(tmp_path: Path) -> None:
    write(tmp_path / "pipe" / "unet" / "w.safetensors", filled({"mid.q.weight": (4, 4)}))
    (tmp_path / "pipe" / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    source = write(
        tmp_path / "k.safetensors",
        filled({"lora_unet_mid_q.lora_down.weight": (2, 4), "lora_unet_mid_q.lora_up.weight": (4, 2)}),
    )
    for model, path in (("pipe", "unet.mid.q"), ("pipe/unet", "mid.q")):
        out = tmp_path / path
        assert main(["convert", str(source), "--model", str(tmp_path / model), "-o", str(out)]) == 0
        assert dw.Adapter.open(out).modules() == [path]
