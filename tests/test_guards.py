"""The guards hold on this repository, and each of them sees what it is there for."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("guards", ROOT / "scripts" / "guards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guards"] = module
    spec.loader.exec_module(module)
    return module


guards = load()


def found(rule: Callable[[Any], Any], text: str, name: str = "functional.py") -> list[str]:
    module = guards.Module(path=guards.SOURCE / name, text=text, tree=ast.parse(text))
    return list(rule(module))


def function(lines: int, docstring: int = 0) -> str:
    doc = '    """' + "\n    x" * docstring + '\n    """\n' if docstring else ""
    return "def f():\n" + doc + "    pass\n" * (lines - 1)


def test_sizes() -> None:
    assert found(guards.sizes, "x = 1\n" * 500) == []
    assert "501 lines" in found(guards.sizes, "x = 1\n" * 501)[0]
    assert found(guards.sizes, function(60, docstring=80)) == []
    assert "61 lines" in found(guards.sizes, function(61))[0]


def parameters(count: int) -> str:
    return ", ".join(f"p{index}" for index in range(count))


def test_constructors() -> None:
    template = "class C:\n    def __init__(self, {}): pass\n"
    assert found(guards.sizes, template.format(parameters(10))) == []
    assert "11 positional" in found(guards.sizes, template.format(parameters(11)))[0]
    assert found(guards.sizes, template.format("*, " + parameters(11))) == []
    fields = "".join(f"    f{index}: int\n" for index in range(11))
    assert found(guards.sizes, f"@dataclass(frozen=True)\nclass C:\n{fields}")
    assert found(guards.sizes, f"@dataclass(frozen=True, kw_only=True)\nclass C:\n{fields}") == []


def test_logical_lines_leave_out_docstrings_and_comments() -> None:
    text = '"""Top."""\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc."""\n    return x\n'
    module = guards.Module(path=guards.SOURCE / "x.py", text=text, tree=ast.parse(text))
    assert guards.logical_lines(module) == 3


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("attach.py", "from deltaw.train import run", True),
        ("attach.py", "import deltaw.cli", True),
        ("attach.py", "from deltaw import ship", True),
        ("layers/linear.py", "def f():\n    from deltaw.serve.app import x", True),
        ("layers/linear.py", "from ..train import x", True),
        ("attach.py", "from deltaw.layer import x", False),
        ("attach.py", "import transformers", True),
        ("attach.py", "import torch, json\nfrom safetensors import safe_open", False),
        ("train/loop.py", "from deltaw.cli import main", True),
        ("train/loop.py", "from deltaw.ship.merge import x\nimport transformers", False),
        ("cli/train.py", "from deltaw.train import run", False),
    ],
)
def test_dependencies_point_one_way(name: str, text: str, broken: bool) -> None:
    assert bool(found(guards.dependencies, text, name)) is broken


@pytest.mark.parametrize(
    "text",
    [
        "x = 1  # TO" + "DO later",
        "raise NotImplemented" + "Error",
        'if variant == "dora":\n    pass',
        'if "dora" != self.variant:\n    pass',
        "# na\u00efve\nx = 1",
    ],
)
def test_manners(text: str) -> None:
    assert found(guards.manners, text)
    assert found(guards.manners, 'x = registry[variant]\nif name == "a":\n    pass') == []


def test_paths_of_machines() -> None:
    for bad in ("open('/ho" + "me/me/x')", "see /wo" + "rk/x", "/tmp/ve" + "nv/bin"):
        assert guards.MACHINE_PATH.search(bad)
    for good in ("a/home/b", "https://x.org/home/y", "framework/x", "/tmp/out"):
        assert not guards.MACHINE_PATH.search(good)


def test_import_is_lazy() -> None:
    assert list(guards.laziness()) == []
