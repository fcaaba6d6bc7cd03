"""Settings: one declaration, checked wherever it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltaw.errors import ConfigError
from deltaw.initialize import INITIALIZATIONS
from deltaw.train.config import (
    INITS,
    SECTIONS,
    VARIANTS,
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from deltaw.train.fields import FieldSpec, specs
from deltaw.train.method_config import READS
from deltaw.train.settings import from_values, read_toml, to_toml
from deltaw.variants import VARIANTS as CORE_VARIANTS

BASE: dict[str, dict[str, Any]] = {"model": {"path": "m"}, "data": {"path": "d.jsonl"}}
ALL = [spec for section, group in SECTIONS.items() for spec in specs(group, section)]


def other(spec: FieldSpec) -> Any:
    """A valid value that is not the default."""
    if spec.kind == "bool":
        return not spec.default
    if spec.choices and spec.kind == "strings":
        return (next(choice for choice in spec.choices if choice not in spec.default),)
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.kind in ("int", "float"):
        low = spec.low if spec.low is not None else (spec.above or 0.0) + 0.25
        number = next(
            n for n in (low + 2, low, low + 0.5) if spec.high is None or (n <= spec.high and n != spec.default)
        )
        return int(number) if spec.kind == "int" else float(number)
    return {
        "str": "other", "strings": ("other",), "ints": {"a": 3}, "floats": {"a": 0.5}, "names": {"a": "b"},
        "rows": {"a": (3, 7)},
    }[spec.kind]  # fmt: skip


def with_value(spec: FieldSpec, value: Any) -> TrainConfig:
    beside = {
        "adapter.init_batches": {"init": "eva"},
        "adapter.new_head": {"start": "earlier"},
        "optim.correct_bias": {"optimizer": "adamw_reference"},
        "optim.rdrop_form": {"rdrop": 1.0},
        "optim.cutoff_kind": {"cutoff": 0.1},
    }.get(spec.key, {})
    reader = next((name for name, read in READS.items() if spec.section == "baseline" and spec.name in read), None)
    method = {} if reader is None else {"adapter": {"method": reader}}
    return from_values(BASE, method, {spec.section: {**beside, spec.name: value}})


def test_groups_have_distinct_flags() -> None:
    flags = [spec.flag for spec in ALL]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.key)
def test_every_key_goes_through_toml_and_back(spec: FieldSpec, tmp_path: Path) -> None:
    values = dict(BASE)
    if spec.name in ("start",):
        values["adapter"] = {}
    config = with_value(spec, other(spec))
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    again = from_values(read_toml(file))
    assert again == config
    assert getattr(getattr(again, spec.section), spec.name) == other(spec)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.key)
def test_every_key_refuses_a_wrong_type_and_names_its_flag(spec: FieldSpec) -> None:
    wrong: Any = "seven" if spec.kind not in ("str", "strings") else 7
    with pytest.raises(ConfigError) as error:
        with_value(spec, wrong)
    assert spec.flag in error.value.where
    assert error.value.expected == spec.expected()


def test_numbers_are_not_truth_values() -> None:
    with pytest.raises(ConfigError):
        OptimConfig(accumulate=True)
    with pytest.raises(ConfigError):
        OptimConfig(clip=float("nan"))
    assert OptimConfig(clip=2).clip == 2.0


def test_unknown_names_are_collected_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        from_values(BASE, {"optim": {"learning_rat": 1}, "modell": {}})
    assert "`learning_rat` under [optim]" in error.value.got and "[modell]" in error.value.got
    assert "[model]" in error.value.expected or "'model'" in error.value.expected


def test_a_key_in_the_wrong_section_is_sent_to_its_own() -> None:
    with pytest.raises(ConfigError) as error:
        from_values(BASE, {"run": {"lr": 1e-3}})
    assert "lr under [optim]" in error.value.expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": OptimConfig(epochs=1, steps=2)}, "--epochs and --steps"),
        ({"optim": OptimConfig(batch_size=1, batch_tokens=2)}, "--batch-size and --batch-tokens"),
        ({"optim": OptimConfig(batch_size=1, packing=True)}, "--batch-size and --packing"),
        ({"adapter": AdapterConfig(method="full", rank=4)}, "--rank means nothing with --method full"),
        ({"adapter": AdapterConfig(method="full", start="a")}, "--adapter means nothing"),
        ({"adapter": AdapterConfig(start="a", alpha=2.0)}, "--alpha cannot be changed"),
        ({"adapter": AdapterConfig(start="a", variant=("dora",))}, "--variant cannot be changed"),
        ({"adapter": AdapterConfig(start="a", new_tokens=("<a>",))}, "--new-tokens cannot be changed"),
        ({"adapter": AdapterConfig(init_batches=2)}, "--init-batches means nothing with --init kaiming"),
        ({"adapter": AdapterConfig(method="full"), "optim": OptimConfig(lora_plus=4.0)}, "--lora-plus means nothing"),
        ({"run": RunConfig(resume="auto", overwrite=True)}, "--resume and --overwrite"),
        ({"data": DataConfig(path="d", valid="v", valid_fraction=0.1)}, "--valid and --valid-fraction"),
        ({"data": DataConfig()}, "no data is given"),
        ({"model": ModelConfig()}, "no model is given"),
    ],
)
def test_contradictions(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**{"model": ModelConfig(path="m"), "data": DataConfig(path="d"), **changes})


def test_what_was_given_is_remembered() -> None:
    assert from_values(BASE, {"optim": {"clip": 1.0}}).given == {"model.path", "data.path", "optim.clip"}
    plain = TrainConfig(model=ModelConfig(path="m"), data=DataConfig(path="d"), optim=OptimConfig(clip=2.0))
    assert plain.given == {"model.path", "data.path", "optim.clip"}


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[optim\nlr=1", encoding="utf-8")
    with pytest.raises(ConfigError, match="no TOML"):
        read_toml(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")


def test_the_names_are_those_of_the_core() -> None:
    assert set(VARIANTS) == set(CORE_VARIANTS) and set(INITS) == set(INITIALIZATIONS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"variant": "dora, lora_bias"}, {"variant": ("dora", "lora_bias")}),
        ({"variant": ["dora", "lora_fa"]}, {"variant": ("dora", "lora_fa")}),
        ({"new_tokens": "<a>,</a>"}, {"new_tokens": ("<a>", "</a>")}),
        ({"train_rows": {"wte": "5,10-12"}}, {"train_rows": {"wte": (5, 10, 11, 12)}}),
        ({"train_rows": {"wte": [5, 10]}}, {"train_rows": {"wte": (5, 10)}}),
    ],
)
def test_lists_with_commas_and_token_ids(values: dict[str, Any], expected: dict[str, Any]) -> None:
    config = from_values(BASE, {"adapter": values})
    assert {name: getattr(config.adapter, name) for name in expected} == expected
    assert from_values(config.values()) == config


@pytest.mark.parametrize(
    ("values", "got", "hint"),
    [
        ({"variant": "dorra"}, "'dorra'", "closest: 'dora'"),
        ({"variant": ["lora", "verra"]}, "['lora', 'verra']", "closest: 'vera'"),
        ({"init": "pisa"}, "'pisa'", "closest: 'pissa'"),
        ({"train_rows": {"wte": "5-3"}}, "{'wte': '5-3'}", "--train-rows"),
        ({"train_rows": {"wte": [-1]}}, "{'wte': [-1]}", "--train-rows"),
        ({"train_rows": {"wte": []}}, "{'wte': []}", "--train-rows"),
    ],
)
def test_unknown_names_and_ids_are_refused(values: dict[str, Any], got: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_values(BASE, {"adapter": values})
    assert got in error.value.got and hint in error.value.hint


def test_the_file_of_the_guide_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(text.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    config = from_values(read_toml(tmp_path / "run.toml"))
    assert config.adapter.variant == ("dora", "lora_fa") and config.adapter.new_tokens == ("<tool>", "</tool>")
    assert config.adapter.train_rows == {"embed_tokens": (32000, 32005)} and config.optim.lora_plus == 16.0
