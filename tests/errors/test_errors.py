"""Every kind of bad input against its golden text, and the four parts of every text.

A module ``*_cases.py`` beside this file offers ``CASES``: kind -> callable that gets an empty directory and must raise
an error of deltaw. The text stands in ``<kind>.txt``; set DELTAW_UPDATE_GOLDEN=1 to write the texts anew.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deltaw.errors import DeltawError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
UPDATE = os.environ.get("DELTAW_UPDATE_GOLDEN") == "1"
CODES = {
    "ConfigError": 2,
    "DataError": 3,
    "ModelError": 4,
    "TargetError": 4,
    "TieError": 4,
    "StateError": 4,
    "CheckpointError": 5,
    "ResumeError": 5,
    "FaithError": 6,
}
"""The documented exit code of every class; the classes above these are never raised themselves."""


def module_of(path: Path) -> ModuleType:
    name = f"error_cases_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MODULES = sorted(HERE.glob("*_cases.py"))
CASES: dict[str, Callable[[Path], Any]] = {}
for _path in MODULES:
    _new = module_of(_path).CASES
    assert not set(_new) & set(CASES), f"kinds that stand in two modules: {set(_new) & set(CASES)}"
    CASES.update(_new)


def raised(kind: str, directory: Path) -> DeltawError:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DeltawError) as caught:
            CASES[kind](directory)
    return caught.value


def plain(error: DeltawError, directory: Path) -> str:
    """The text without places of this machine."""
    text = f"{type(error).__name__}: {error}\n"
    for place, name in ((directory, "<tmp>"), (ROOT, "<root>")):
        for spelled in {str(place.resolve()), str(place)}:
            text = text.replace(spelled, name)
    return text


def parse(text: str) -> dict[str, str]:
    """The parts of an error's text; raises AssertionError where the form is broken."""
    lines = text.rstrip("\n").split("\n")
    parts: dict[str, list[str]] = {"what": [lines[0]]}
    order = ["what", "where", "got", "expected", "hint"]
    for line in lines[1:]:
        following = order[len(parts)] if len(parts) < len(order) else None
        mark = None if following is None else ("hint:" if following == "hint" else f"  {following}:")
        if mark is not None and line.startswith(mark):
            parts[following] = [line.removeprefix(mark)]  # type: ignore[index]
        else:
            parts[list(parts)[-1]].append(line)
    assert list(parts) == order, f"parts found: {list(parts)}"
    assert len(parts["what"]) == 1 and len(parts["hint"]) == 1, "what failed and the hint take one line each"
    found = {name: "\n".join(part).strip() for name, part in parts.items()}
    assert all(found.values()), f"empty parts: {[name for name, part in found.items() if not part]}"
    return found


@pytest.mark.parametrize("kind", sorted(CASES))
def test_kind(kind: str, tmp_path: Path) -> None:
    error = raised(kind, tmp_path)
    text = plain(error, tmp_path)
    golden = HERE / f"{kind}.txt"
    if UPDATE:
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"no golden text for {kind}; set DELTAW_UPDATE_GOLDEN=1"
    assert text == golden.read_text(encoding="utf-8")
    assert error.exit_code == CODES[type(error).__name__]
    parse(text)
    assert "/tmp" not in text and not re.search(r"0x[0-9a-f]{6,}", text), "a place or an address of this machine"


def test_every_golden_text_has_a_case() -> None:
    left = sorted({path.stem for path in HERE.glob("*.txt")} - set(CASES))
    if UPDATE:
        for name in left:
            (HERE / f"{name}.txt").unlink()
        left = []
    assert not left, f"golden texts without a case: {left}"


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 30 and len(MODULES) >= 2


def test_the_parser_sees_a_broken_form() -> None:
    good = "TargetError: a\n  where: b\n  got: \n    - c\n    - d\n  expected: e\nhint: f\n"
    assert parse(good)["got"] == "- c\n    - d"
    broken = (
        good.replace("hint: f\n", ""),
        good.replace("hint: f", "hint: "),
        good.replace("  where: b\n", ""),
        good.replace("  expected: e\n", "  expected: \n"),
        good + "more\n",
        good.replace("  where", "\n  where"),
    )
    for text in broken:
        with pytest.raises(AssertionError):
            parse(text)
