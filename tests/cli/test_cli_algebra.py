"""resize, combine, compare, extract, hash on tiny directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw as dw
from deltaw.cli import main
from deltaw.cli.combine import split_weight
from deltaw.errors import ConfigError
from verb_models import adapter_dir, base_dir

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of it."""
    root = tmp_path_factory.mktemp("algebra")
    base_dir(root / "base")
    adapter_dir(root / "base", root / "a", targets=["q_proj", "v_proj"], rank=4)
    adapter_dir(root / "base", root / "b", targets=["q_proj"], rank=2, seed=2)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Any:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return call


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("measure", [("--rank", 2), ("--energy", 0.6), ("--budget", 400)])
def test_resize_writes_what_it_says(measure: tuple[str, object], place: Path, tmp_path: Path, run: Run) -> None:
    text = run("resize", place / "a", *measure, "-o", tmp_path / "out")
    assert "energy kept" in text and f"deltaw compare {place / 'a'} {tmp_path / 'out'}" in text
    found = run("resize", place / "a", *measure, "-o", tmp_path / "two", "--json")
    made = dw.Adapter.open(tmp_path / "two")
    assert found["hash"] == made.hash == dw.Adapter.open(tmp_path / "out").hash
    assert found["parameters"] == made.parameters < found["parameters_before"]
    assert {row["path"]: row["rank"] for row in found["modules"] if row["rank"]} == {
        path: made.factors(path)[0].shape[0] for path in made.modules()
    }
    assert 0 < found["kept"] < 1 and found["error"] > 0
    assert run("resize", place / "a", *measure, "-o", tmp_path / "three", "--quiet") == ""
    assert run("generate", "--model", place / "base", "--adapter", tmp_path / "out", "-p", "x", "--max-tokens", 1)


def test_combine_writes_the_sum(place: Path, tmp_path: Path, run: Run) -> None:
    text = run("combine", f"{place / 'a'}:0.7", f"{place / 'b'}:-0.3", "-o", tmp_path / "out")
    assert "combined by exact" in text and "4 + 2" in text and "deltaw generate" in text
    a, b, made = (dw.Adapter.open(directory) for directory in (place / "a", place / "b", tmp_path / "out"))
    path = next(path for path in b.modules())
    torch.testing.assert_close(made.delta(path), 0.7 * a.delta(path) - 0.3 * b.delta(path), rtol=1e-4, atol=1e-6)
    found = run("combine", place / "a", place / "b", "--method", "concatenate", "-o", tmp_path / "cat", "--json")
    assert found["error"] < 1e-6 and found["heuristic"] is None
    assert [source["weight"] for source in found["sources"]] == [1, 1]


def test_every_option_of_combine_changes_something(place: Path, tmp_path: Path, run: Run) -> None:
    words = ("combine", place / "a", place / "a", "--method")
    options = [
        ("dare",), ("dare", "--seed", 1), ("dare", "--density", 0.8), ("ties",), ("ties", "--density", 0.8), ("exact",),
        ("concatenate",),
    ]  # fmt: skip
    hashes = {
        run(*words, *option, "-o", tmp_path / str(number), "--json")["hash"] for number, option in enumerate(options)
    }
    assert len(hashes) == len(options)
    assert "heuristic:" in run(*words, "ties", "-o", tmp_path / "said")


def test_bases_that_differ_need_the_flag(
    place: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    base_dir(tmp_path / "other", seed=5)
    adapter_dir(tmp_path / "other", tmp_path / "c", targets=["q_proj"])
    words = (place / "a", tmp_path / "c")
    assert "different bases" in refused(capsys, 5, "combine", *words, "-o", tmp_path / "out")
    assert "different bases" in refused(capsys, 5, "compare", *words)
    assert "as allowed" in run("combine", *words, "--allow-other-base", "-o", tmp_path / "out")
    assert "as allowed" in run("compare", *words, "--allow-other-base")


def test_compare_prints_a_table_and_json(place: Path, run: Run) -> None:
    text = run("compare", place / "a", place / "b")
    assert "cosine" in text and "phi A" in text and "only in" in text
    found = run("compare", place / "a", place / "a", "--json")
    assert found["same_content"] and found["cosine"] == pytest.approx(1) and found["phi_A"] == pytest.approx(1)
    assert len(found["modules"]) == 4 and found["a"]["hash"] == dw.Adapter.open(place / "a").hash


def test_hash_is_the_adapters(place: Path, tmp_path: Path, run: Run) -> None:
    digest = dw.Adapter.open(place / "a").hash
    assert run("hash", place / "a").splitlines()[0] == f"{digest}  {place / 'a'}"
    dw.Adapter.open(place / "a").save(tmp_path / "copy")
    assert "all the same content" in run("hash", place / "a", tmp_path / "copy")
    assert "not all" in run("hash", place / "a", place / "b")
    assert run("hash", place / "a", "--json") == {"adapters": [{"path": str(place / "a"), "hash": digest}]}


def test_extract_finds_what_a_merge_added(
    place: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("merge", "--model", place / "base", "--adapter", place / "a", "-o", tmp_path / "tuned", "-q")
    words = ("extract", "--base", place / "base", "--tuned", tmp_path / "tuned")
    text = run(*words, "--rank", 4, "-o", tmp_path / "out")
    assert "extracted 4 modules" in text and "deltaw generate" in text
    assert "no model" not in text, "the shape was built from config.json"
    same = run("compare", place / "a", tmp_path / "out", "--json")
    assert same["cosine"] == pytest.approx(1, abs=1e-9)
    assert run(*words, "--energy", 0.5, "-o", tmp_path / "less", "--json")["kept"] < 1
    file = tmp_path / "tuned" / "model.safetensors"
    held = load_file(file)
    save_file({key: t + 1 if "norm" in key else t for key, t in held.items()}, file, {"format": "pt"})
    assert "no LoRA can hold" in refused(capsys, 5, *words, "--rank", 4, "-o", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    found = run(*words, "--rank", 4, "--allow-rest", "-o", tmp_path / "rest", "--json")
    assert len(found["left_over"]) == 5 and found["modules"]


def test_extract_without_a_known_shape_goes_by_names(place: Path, tmp_path: Path, run: Run) -> None:
    held = load_file(place / "base" / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    for name, tensors in (("plain", held), ("moved", {**held, key: held[key] + 1})):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    words = ("extract", "--base", tmp_path / "plain", "--tuned", tmp_path / "moved", "--rank", 1)
    text = run(*words, "-o", tmp_path / "out")
    assert "told by its name" in text and "no config.json" in text
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "unheard-of"}')
    assert "the shape was not built" in run(*words, "-o", tmp_path / "again")


def test_many_modules_are_grouped_unless_asked(place: Path, tmp_path: Path, run: Run) -> None:
    base_dir(tmp_path / "base", num_hidden_layers=12)
    adapter_dir(tmp_path / "base", tmp_path / "a", targets=["q_proj", "v_proj", "o_proj", "k_proj"], rank=2)
    for words in (("resize", tmp_path / "a", "--rank", 1), ("combine", tmp_path / "a", tmp_path / "a")):
        short = run(*words, "-o", tmp_path / words[0])
        long = run(*words, "--modules", "-o", tmp_path / f"{words[0]}-long")
        assert "count" in short and "model.layers.11.self_attn.q_proj" not in short
        assert "model.layers.11.self_attn.q_proj" in long
    assert "count" in run("compare", tmp_path / "a", tmp_path / "a")
    assert "model.layers.11" in run("compare", tmp_path / "a", tmp_path / "a", "--modules")


def test_weights_are_read_after_the_last_colon(tmp_path: Path) -> None:
    assert split_weight("a:0.7") == ("a", 0.7) and split_weight("b:-.3") == ("b", -0.3)
    assert split_weight("a") == ("a", 1.0) and split_weight("x:y:2") == ("x:y", 2.0)
    named = tmp_path / "run:7"
    named.mkdir()
    assert split_weight(str(named)) == (str(named), 1.0)
    assert split_weight(f"{named}:0.5") == (str(named), 0.5)
    with pytest.raises(ConfigError, match="a weight is a number"):
        split_weight("a:much")


def test_an_output_that_exists_is_refused_before_anything_else(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for words in (
        ("resize", tmp_path / "absent", "--rank", 2),
        ("combine", tmp_path / "absent"),
        ("extract", "--base", tmp_path, "--tuned", tmp_path, "--rank", 1),
    ):
        assert "the output exists already" in refused(capsys, 2, *words, "-o", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
