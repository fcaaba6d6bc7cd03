"""An adapter as a value: open, save, identity, updates, norms and spectrum, without any model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaw as dw
from deltaw.errors import CheckpointError
from peft_features import FEATURES
from peft_judge import Feature, wear

NAMES = (
    "linear",
    "conv1d",
    "embedding",
    "slices",
    "slice-ranks",
    "patterns",
    "rank-stabilized",
    "head-of-layers",
    "tied",
)
CHOSEN = [feature for feature in FEATURES if feature.name in NAMES]
IDS = [feature.name for feature in CHOSEN]


def opened(feature: Feature, directory: Path) -> dw.Adapter:
    wear(feature, directory)
    return dw.Adapter.open(directory)


def plain(path: str = "fc", rank: int = 3, alpha: float = 7, sizes: tuple[int, int] = (8, 6), **raw: Any) -> dw.Adapter:
    generator = torch.Generator().manual_seed(3)
    n_in, n_out = sizes
    tensors = {
        f"base_model.model.{path}.lora_A.weight": torch.randn(rank, n_in, generator=generator),
        f"base_model.model.{path}.lora_B.weight": torch.randn(n_out, rank, generator=generator),
    }
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": [path], **raw}
    return dw.Adapter(tensors=tensors, raw=fields)


def dense(adapter: dw.Adapter, path: str, scaling: float) -> Tensor:
    found = {key: value for key, value in adapter.tensors.items() if key.startswith(f"base_model.model.{path}.lora_")}
    (lora_A,) = (value for key, value in found.items() if "A" in key.rpartition("lora_")[2])
    (lora_B,) = (value for key, value in found.items() if "B" in key.rpartition("lora_")[2])
    return scaling * (lora_B.double() @ lora_A.double())


@pytest.mark.parametrize("feature", CHOSEN, ids=IDS)
def test_update_norms_and_spectrum_are_those_of_the_dense_matrix(feature: Feature, tmp_path: Path) -> None:
    from peft_judge import expected_scalings

    adapter = opened(feature, tmp_path)
    scalings, norms = expected_scalings(feature, adapter.modules()), adapter.norms()
    assert list(norms) == adapter.modules() == sorted(scalings)
    for path, scaling in scalings.items():
        wanted = dense(adapter, path, scaling)
        torch.testing.assert_close(adapter.delta(path), wanted.float())
        rank = adapter.factors(path)[0].shape[0]
        values = torch.linalg.svdvals(wanted)[:rank]
        torch.testing.assert_close(adapter.spectrum(path), values, rtol=1e-9, atol=1e-9)
        assert adapter.scaling(path) == pytest.approx(scaling, rel=1e-15)
        assert norms[path].frobenius == pytest.approx(float(wanted.norm()), rel=1e-9)
        assert norms[path].spectral == pytest.approx(float(values[0]), rel=1e-9)
        assert norms[path].rank == rank


@pytest.mark.parametrize("sizes", [(8, 6), (2, 9), (9, 2), (1, 1)])
@pytest.mark.parametrize("alpha", [7, -2.5])
def test_spectrum_above_the_full_rank(sizes: tuple[int, int], alpha: float) -> None:
    adapter = plain(rank=4, alpha=alpha, sizes=sizes)
    values = torch.linalg.svdvals(dense(adapter, "fc", alpha / 4))
    found = adapter.spectrum("fc")
    torch.testing.assert_close(found, values[: len(found)])
    assert len(found) == min(4, *sizes)


@pytest.mark.parametrize("feature", CHOSEN, ids=IDS)
def test_saved_again_it_is_the_same_bytes(feature: Feature, tmp_path: Path) -> None:
    adapter = opened(feature, tmp_path / "a")
    written = adapter.save(tmp_path / "b")
    assert written == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert dw.Adapter.open(tmp_path / "b").hash == adapter.hash


def test_identity_is_of_the_content() -> None:
    adapter = plain()
    same = dataclasses.replace(
        adapter,
        tensors=dict(reversed(list(adapter.tensors.items()))),
        metadata={"format": "pt", "deltaw": "{}"},
        raw={**adapter.raw, "lora_dropout": 0.5, "base_model_name_or_path": "elsewhere"},
        where="elsewhere",
    )
    assert same.hash == adapter.hash and len(adapter.hash) == 64
    # the same update said in other words has the same scaling
    assert (
        dataclasses.replace(adapter, raw={**adapter.raw, "alpha_pattern": {"fc": 7}, "lora_alpha": 99}).hash
        == adapter.hash
    )


@pytest.mark.parametrize(
    "change", ["value", "alpha", "stabilized", "dtype", "key", "transposed", "extra", "sign of zero"]
)
def test_identity_changes_with_the_content(change: str) -> None:
    adapter = plain(sizes=(3, 3))
    first, second = adapter.tensors
    a, b = adapter.tensors.values()
    zero = torch.zeros(3)
    others: dict[str, dict[str, Any]] = {
        "value": {"tensors": {first: a.clone().index_fill_(0, torch.tensor([0]), 1.5), second: b}},
        "alpha": {"raw": {**adapter.raw, "lora_alpha": 8}},
        "stabilized": {"raw": {**adapter.raw, "use_rslora": True}},
        "dtype": {"tensors": {first: a.double(), second: b.double()}},
        "key": {"tensors": {first.replace("fc", "fd"): a, second.replace("fc", "fd"): b}},
        "transposed": {"tensors": {first: a.t(), second: b}},
        "extra": {"tensors": {first: a, second: b, "base_model.model.head.bias": zero}},
        "sign of zero": {"tensors": {first: a, second: b, "base_model.model.head.bias": -zero}},
    }
    hashes = {name: dataclasses.replace(adapter, **fields).hash for name, fields in others.items()}
    assert hashes[change] != adapter.hash
    assert len(set(hashes.values())) == len(hashes)


def test_half_precision_and_scalars_have_an_identity() -> None:
    adapter = plain()
    held = {key: value.bfloat16() for key, value in adapter.tensors.items()}
    half = dataclasses.replace(adapter, tensors={**held, "base_model.model.head.step": torch.tensor(3)})
    assert half.hash != adapter.hash
    torch.testing.assert_close(half.delta("fc"), dense(half, "fc", 7 / 3).float())


def test_metadata_of_others_is_kept_and_ours_never_needed(tmp_path: Path) -> None:
    adapter = dataclasses.replace(plain(), metadata={"run": "7"})
    assert adapter.own == {}
    with pytest.raises(CheckpointError, match="noted in the file's metadata is damaged"):
        _ = dataclasses.replace(plain(), metadata={"deltaw": "not json"}).own
    adapter.save(tmp_path)
    again = dw.Adapter.open(tmp_path)
    assert again.metadata["run"] == "7" and again.metadata["format"] == "pt"
    assert again.hash == adapter.hash and again.parameters == adapter.parameters == 3 * 8 + 6 * 3


def test_configuration_in_our_words(tmp_path: Path) -> None:
    raw = {
        "use_rslora": True, "lora_dropout": 0.1, "bias": "lora_only", "exclude_modules": ["x"],
        "modules_to_save": ["h"],
        "rank_pattern": {"k": 5}, "alpha_pattern": {"k": 2}, "layers_to_transform": 3, "init_lora_weights": "gaussian",
    }  # fmt: skip
    config = plain(**raw).config
    assert (config.rank, config.alpha, config.rank_stabilized, config.dropout) == (3, 7, True, 0.1)
    assert (config.targets, config.exclude, config.train_also) == (("fc",), ("x",), ("h",))
    assert (config.bias, config.layers, config.init) == ("lora_only", (3,), "gaussian")
    assert list(config.rank_pattern.values()) == [5] and list(config.alpha_pattern.values()) == [2]


def test_unknown_and_incomplete_modules(tmp_path: Path) -> None:
    adapter = plain()
    with pytest.raises(CheckpointError, match="nearest: 'fc'"):
        adapter.delta("fcc")
    half = dataclasses.replace(adapter, tensors=dict(list(adapter.tensors.items())[:1]))
    with pytest.raises(CheckpointError, match="no complete update"):
        half.norms()


def test_files_are_readable_by_all_and_complete_on_disk(tmp_path: Path) -> None:
    plain().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())
    text = (tmp_path / "adapter_config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_other_files_in_the_directory_stay(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    plain().save(tmp_path)
    plain(alpha=9).save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert dw.Adapter.open(tmp_path).scaling("fc") == 3


def test_what_is_shown_of_an_adapter_is_short() -> None:
    text = repr(plain())
    assert text == "Adapter(LORA, 2 tensors, 42 values, from 'an adapter in memory')"
