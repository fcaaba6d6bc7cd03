"""The pattern language: what a name, a glob, an expression, a type and a predicate reach; excludes and layers."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import builders
from deltaw.errors import DeltawError, TargetError
from deltaw.layers.slices import split_pattern
from deltaw.patterns import Matcher, block_indices
from named_net import Net, sites

# the pattern language

PATHS = st.lists(
    st.sampled_from(["layers", "0", "1", "12", "q_proj", "my_q_proj", "attn", "c.attn"]), min_size=1, max_size=4
)
ANY = nn.Linear(1, 1)


@given(PATHS, st.integers(1, 4))
def test_a_plain_name_is_a_dotted_suffix(parts: list[str], count: int) -> None:
    path = ".".join(parts)
    suffix = ".".join(path.split(".")[-count:])
    assert Matcher(suffix).matches(path, ANY)
    assert not Matcher(f"x{suffix}").matches(path, ANY)
    if len(suffix) > 1:
        assert not Matcher(suffix[1:]).matches(path, ANY) or suffix[0] == "." or f".{suffix[1:]}" in f".{path}"


@given(PATHS, PATHS)
def test_suffix_matching_has_no_substrings(path: list[str], pattern: list[str]) -> None:
    whole, tail = ".".join(path).split("."), ".".join(pattern).split(".")
    assert Matcher(".".join(tail)).matches(".".join(whole), ANY) == (whole[-len(tail) :] == tail)


@given(PATHS, st.text(alphabet="*?qlproj_.0", min_size=1, max_size=8).filter(lambda text: "*" in text or "?" in text))
def test_a_glob_is_a_dotted_suffix_too(parts: list[str], glob: str) -> None:
    path = ".".join(parts)
    tails = [path] + [path[i + 1 :] for i, c in enumerate(path) if c == "."]
    want = any(fnmatch.fnmatchcase(tail, glob) for tail in tails)
    assert Matcher(glob).matches(path, ANY) == want


@given(PATHS)
def test_a_regular_expression_is_for_the_whole_path(parts: list[str]) -> None:
    path = ".".join(parts)
    assert Matcher(f"re:{re.escape(path)}").matches(path, ANY)
    assert not Matcher(f"re:{re.escape(path)}").matches(f"a.{path}", ANY)
    assert not Matcher(f"re:{re.escape(path[:-1])}").matches(path, ANY)


@given(
    st.text(alphabet="ab_.*", min_size=1),
    st.lists(st.sampled_from(["q", "k", "v", "0:64", "gate"]), min_size=1, max_size=3),
)
def test_slices_are_split_off(head: str, parts: list[str]) -> None:
    assert split_pattern(f"{head}[{','.join(parts)}]") == (head, tuple(parts))
    assert split_pattern(head) == (head, ())


def test_names_globs_expressions_types_predicates() -> None:
    model = Net()
    q = {f"layers.{i}.q_proj" for i in range(4)}
    assert set(sites(model, targets="q_proj")) == q
    assert set(sites(model, targets=["layers.1.q_proj"])) == {"layers.1.q_proj"}
    assert set(sites(model, targets="*q_proj")) == q | {f"layers.{i}.my_q_proj" for i in range(4)}
    assert set(sites(model, targets="layers.?.q_proj")) == q
    assert set(sites(model, targets=r"re:layers\.[02]\.q_proj")) == {"layers.0.q_proj", "layers.2.q_proj"}
    assert set(sites(model, targets=nn.Embedding)) == {"embed"}
    assert set(sites(model, targets=lambda path, module: path.endswith("2.k_proj"))) == {"layers.2.k_proj"}
    assert len(sites(model, targets=nn.Linear)) == len(sites(model, targets="all-linear")) == 17


@pytest.mark.parametrize(
    "pattern", ["q_projj", "proj", "re:q_proj", "layers.9.q_proj", "*.nothing", nn.Conv2d, lambda path, module: False]
)
def test_every_target_must_match(pattern: Any) -> None:
    with pytest.raises(TargetError, match="no module matches target") as caught:
        sites(Net(), targets=["k_proj", pattern])
    assert "nearest: " in caught.value.hint


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(TargetError) as caught:
        sites(Net(), targets="q_porj")
    assert caught.value.hint.startswith("nearest: 'q_proj'")


@pytest.mark.parametrize("field", ["exclude", "train_also"])
def test_every_other_pattern_must_match_too(field: str) -> None:
    with pytest.raises(TargetError, match=f"no module matches {field}"):
        sites(Net(), targets="q_proj", **{field: "nothing"})


def test_a_pattern_that_matches_something_else_is_refused() -> None:
    with pytest.raises(TargetError, match="matches a module that cannot be adapted"):
        sites(Net(), targets="q_proj_norm")
    with pytest.raises(TargetError, match="matches a module that cannot be adapted"):
        sites(Net(), targets=nn.LayerNorm)
    assert set(sites(Net(), targets="layers.0.*")) == {
        f"layers.0.{n}" for n in ("q_proj", "k_proj", "v_proj", "my_q_proj")
    }
    with pytest.raises(TargetError, match="no module matches"):
        sites(Net(), targets="*_norm")


def test_a_malformed_expression_is_refused() -> None:
    with pytest.raises(TargetError, match="malformed"):
        sites(Net(), targets="re:(")


def test_exclude() -> None:
    assert set(sites(Net(), targets="q_proj", exclude=["layers.0.*", r"re:layers\.3\..*"])) == {
        "layers.1.q_proj",
        "layers.2.q_proj",
    }
    with pytest.raises(TargetError, match="no module matches exclude"):
        sites(Net(), targets="q_proj", exclude="k_proj")
    with pytest.raises(TargetError, match="nothing is left"):
        sites(Net(), targets="q_proj", exclude="q_proj")
    assert len(sites(Net(), targets="q_proj", exclude=["layers.0.*", "layers.0.q_proj"])) == 3


@pytest.mark.parametrize(
    ("layers", "want"),
    [([0, 2], {0, 2}), (1, {1}), ("0-1,3", {0, 1, 3}), ("last:2", {2, 3}), (range(3), {0, 1, 2}), (" 2 - 3 ", {2, 3})],
)
def test_layers(layers: Any, want: set[int]) -> None:
    assert set(sites(Net(), targets="q_proj", layers=layers)) == {f"layers.{i}.q_proj" for i in want}


@pytest.mark.parametrize(
    "layers", [[4], [-1], "4", "last:5", "last:0", "first:2", "", "1-9", "a", (), "2-1", ["a"], [True], [0.5]]
)
def test_layers_that_do_not_exist_are_refused(layers: Any) -> None:
    with pytest.raises(DeltawError) as caught:
        sites(Net(), targets="q_proj", layers=layers)
    assert "layers" in caught.value.where


def test_layers_of_a_model_without_blocks_are_refused() -> None:
    with pytest.raises(TargetError, match="no such block"):
        sites(builders.mlp(), targets="fc1", layers=[0])


def test_layers_count_the_longest_outer_list() -> None:
    model = nn.Module()
    model.encoder = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(1, 1) for _ in range(8))}) for _ in range(3)
    )
    model.decoder = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    model.extra = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    assert block_indices(model, "last:1") == ["encoder.2.", "decoder.2."]


@settings(max_examples=30)
@given(st.integers(1, 12), st.data())
def test_layer_forms_agree(count: int, data: st.DataObject) -> None:
    model = nn.Module()
    model.h = nn.ModuleList(nn.Identity() for _ in range(count))
    last = data.draw(st.integers(1, count))
    same = [block_indices(model, f"last:{last}"), block_indices(model, f"{count - last}-{count - 1}"),
            block_indices(model, list(range(count - last, count)))]  # fmt: skip
    assert same[0] == same[1] == same[2]
