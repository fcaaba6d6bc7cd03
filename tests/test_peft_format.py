"""PEFT judges our files, and ours read PEFT's: every feature, both ways, with no warning and no key left over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaw as dw
from peft_features import FEATURES
from peft_judge import (
    ALLOWED,
    Feature,
    compare_models,
    compare_sites,
    expected_scalings,
    fill,
    inputs,
    output,
    peft_load,
    peft_model,
    quiet,
    seeded,
    site_paths,
    tensors,
    wear,
)

EXPRESSIBLE = [feature for feature in FEATURES if feature.theirs is not None]


def ids(features: Any) -> list[str]:
    return [feature.name for feature in features]


def judge(feature: Feature, ours: Any, theirs: Any, file: Any) -> None:
    x = inputs(ours, feature.tokens)
    compare_sites(ours, theirs, file, expected_scalings(feature, site_paths(file)), x)
    compare_models(ours, theirs, x)


@pytest.mark.parametrize("feature", FEATURES, ids=ids(FEATURES))
def test_ours_loads_in_peft(feature: Feature, tmp_path: Path) -> None:
    ours = wear(feature, tmp_path)
    theirs = peft_load(seeded(feature.model), tmp_path, allowed={**ALLOWED, **feature.allowed})
    judge(feature, ours, theirs, tensors(tmp_path))


@pytest.mark.parametrize("feature", FEATURES, ids=ids(FEATURES))
def test_ours_loads_in_ours(feature: Feature, tmp_path: Path) -> None:
    first = wear(feature, tmp_path / "a")
    again = seeded(feature.model)
    report = dw.load(again, tmp_path / "a", name="other")
    assert report.applied == report.total, report
    assert all("shares its update" in note or "written along" in note for note in report.notes), report
    x = inputs(first, feature.tokens)
    if feature.folded:
        torch.testing.assert_close(output(first, x), output(again, x))
        return
    assert output(first, x).equal(output(again, x))
    dw.save(again, tmp_path / "b", "other")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def peft_writes(feature: Feature, directory: Path, pickled: bool = False) -> Any:
    with quiet({**ALLOWED, **feature.allowed}):
        theirs = peft_model(seeded(feature.model), feature.theirs or {})
        fill([(name, p) for name, p in theirs.named_parameters() if p.requires_grad])
        theirs.save_pretrained(str(directory), safe_serialization=not pickled)
    return theirs


@pytest.mark.parametrize("feature", EXPRESSIBLE, ids=ids(EXPRESSIBLE))
def test_peft_loads_in_ours_and_keys_are_equal(feature: Feature, tmp_path: Path) -> None:
    theirs = peft_writes(feature, tmp_path / "theirs")
    ours = seeded(feature.model)
    report = dw.load(ours, tmp_path / "theirs")
    assert report.applied == report.total
    judge(feature, ours.eval(), theirs, tensors(tmp_path / "theirs"))
    wear(feature, tmp_path / "ours")
    same_files(feature, tmp_path)


def same_files(feature: Feature, where: Path) -> None:
    """The same keys and shapes, and the same words in the configuration."""
    ours, theirs = ({k: tuple(t.shape) for k, t in tensors(where / side).items()} for side in ("ours", "theirs"))
    # the frozen table that PEFT writes along is left out: it is the base's own
    left = {key for key in theirs if key not in ours}
    assert all(key.endswith(feature.extra_keys) for key in left) if feature.extra_keys else not left, left
    assert ours == {key: shape for key, shape in theirs.items() if key not in left}
    ours_raw, theirs_raw = (json.loads((where / s / "adapter_config.json").read_text()) for s in ("ours", "theirs"))
    assert set(ours_raw) <= set(theirs_raw), "a field that PEFT does not know"
    same = {"r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "peft_type", "fan_in_fan_out", "inference_mode"}
    # with both layouts in one model, PEFT's flag is whatever the last layer it visited made of it
    for key in same - {"fan_in_fan_out"} if feature.name == "mixed-layouts" else same:
        assert ours_raw[key] == theirs_raw[key], key


PICKLED = [feature for feature in EXPRESSIBLE if feature.name in ("conv1d", "patterns", "head-of-layers", "bias-all")]


@pytest.mark.parametrize("feature", PICKLED, ids=ids(PICKLED))
def test_peft_pickle_loads_in_ours(feature: Feature, tmp_path: Path) -> None:
    theirs = peft_writes(feature, tmp_path, pickled=True)
    ours = seeded(feature.model)
    dw.load(ours, tmp_path)
    judge(feature, ours.eval(), theirs, dw.Adapter.open(tmp_path).tensors)
