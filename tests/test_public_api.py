"""The public face: its names, what importing it costs, and what it never imports."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deltaw as dw

SOURCE = Path(dw.__file__).parent


def run(code: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return done.stdout


def test_all_is_sorted_and_complete() -> None:
    assert dw.__all__ == sorted(dw.__all__) and len(set(dw.__all__)) == len(dw.__all__)
    for name in dw.__all__:
        assert getattr(dw, name) is not None
    assert set(dw.__all__) == set(dw._HOME) | {"__version__"}
    assert dir(dw) == dw.__all__
    verbs = {
        "activate", "active", "attach", "attached", "check", "combine", "detach", "disabled", "draws", "eva_ranks",
        "extract", "freeze", "linear_cross_entropy", "load", "merge", "param_groups", "plan", "route", "save",
        "set_draws", "trainable", "unfreeze", "unmerge",
    }  # fmt: skip
    assert {name for name in dw.__all__ if name[0].islower()} == verbs


def test_static_names_are_the_lazy_ones() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    static = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert static == {name: f"deltaw.{home}" for name, home in dw._HOME.items()}


def test_verbs_stay_verbs_when_their_modules_are_imported() -> None:
    out = run(
        "import deltaw, deltaw.attach, deltaw.merge, deltaw.check\n"
        "from deltaw.merge import merge\n"
        "print(callable(deltaw.attach), deltaw.merge is merge, callable(deltaw.check), deltaw.LoRAConfig.__name__)"
    )
    assert out.split() == ["True", "True", "True", "LoRAConfig"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = dw.atach


def test_importing_the_package_does_not_import_torch() -> None:
    assert run("import sys, deltaw; deltaw.__version__; print('torch' in sys.modules)").strip() == "False"


def test_the_core_imports_nothing_optional() -> None:
    """Compared with torch alone, so that what torch brings itself does not count."""
    code = "import sys, json, torch\n{}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    plain = set(json.loads(run(code.format(""))))
    every = "import deltaw\nfor name in deltaw.__all__: getattr(deltaw, name)"
    added = set(json.loads(run(code.format(every)))) - plain
    allowed = set(sys.stdlib_module_names) | {"deltaw", "safetensors"}
    assert added - allowed - {name for name in added if name.startswith("_")} == set()


def test_using_the_core_imports_nothing_optional(tmp_path: Path) -> None:
    code = f"""
import sys, torch, deltaw as dw
net = torch.nn.Sequential(torch.nn.Linear(4, 4))
dw.attach(net, dw.LoRAConfig(rank=2)); net(torch.ones(1, 4)).sum().backward()
dw.check(net); dw.save(net, {str(tmp_path)!r}); dw.merge(net); dw.unmerge(net); dw.detach(net)
dw.load(net, {str(tmp_path)!r})
optional = ("transformers", "accelerate", "peft", "rich", "click", "datasets", "pyarrow")
print([name for name in optional if name in sys.modules])
"""
    assert run(code).strip() == "[]"


@pytest.mark.slow
def test_what_importing_costs(capsys: pytest.CaptureFixture[str]) -> None:
    def cpu(code: str) -> float:
        timed = f"import time; {code}; print(time.process_time())"
        return min(float(run(timed)) for _ in range(2))

    torch_alone, ours, lazy = cpu("import torch"), cpu("import deltaw; deltaw.attach"), cpu("import deltaw")
    with capsys.disabled():
        print(
            f"\n  CPU seconds: import torch {torch_alone:.2f}; with deltaw.attach {ours:.2f}"
            f" (+{ours - torch_alone:.3f}); import deltaw alone {lazy:.3f}"
        )
