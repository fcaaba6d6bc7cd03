"""Every way to import a name of the original, and whole programs that do so: only the import line is changed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import deltaw.loralib as ours

theirs = pytest.importorskip("loralib")
MODULES = ("loralib", "loralib.layers", "loralib.utils")

NEW = {"AttachReport", "DetachReport", "LoadReport", "SaveReport", "attach", "detach", "load", "save"}
"""What the face has beside the original's names."""


def own_names(module: ModuleType) -> set[str]:
    """Public names that a module of the original offers, without torch and typing, which it merely imports."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and _home(value).split(".")[0] not in {"torch", "typing", "math"}
    } - {"test"}


def _home(value: Any) -> str:
    own = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(own)


def test_what_the_registry_of_names_finds() -> None:
    classes = {"Conv1d", "Conv2d", "Conv3d", "ConvLoRA", "Embedding", "Linear", "LoRALayer", "MergedLinear"}
    functions = {"lora_state_dict", "mark_only_lora_as_trainable"}
    found = [own_names(importlib.import_module(name)) for name in MODULES]
    assert found == [classes | functions | {"layers", "utils", "name"}, classes, functions | {"LoRALayer"}]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_is_where_the_original_has_it(module: str) -> None:
    judge, mine = importlib.import_module(module), importlib.import_module(f"deltaw.{module}")
    names = own_names(judge)
    assert set(mine.__all__) == names | (NEW if module == "loralib" else set())
    space: dict[str, Any] = {}
    exec(f"from deltaw.{module} import *", space)
    assert names <= set(space)
    for name in names - {"layers", "utils", "name"}:
        assert getattr(mine, name) is getattr(ours, name), "one object under all of its names"
    assert ours.name == theirs.name


PROGRAMS = [
    "import loralib as lora; made = lora.Linear(2, 3)",
    "import loralib.layers as L; made = L.Linear(2, 3)",
    "import loralib as lora; made = lora.layers.Linear(2, 3); lora.utils.mark_only_lora_as_trainable",
    "from loralib import layers; made = layers.Linear(2, 3)",
    "from loralib.layers import Linear, LoRALayer; made = Linear(2, 3)",
    "from loralib.layers import *; made = Linear(2, 3)",
    "from loralib import *; made = Linear(2, 3, r=1); mark_only_lora_as_trainable(made)",
    "from loralib.layers import Linear\nfrom loralib.utils import mark_only_lora_as_trainable, lora_state_dict\n"
    "made = Linear(2, 3, r=1)\nmark_only_lora_as_trainable(made)\nassert list(lora_state_dict(made)) == "
    "['lora_A', 'lora_B']",
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_import_line(program: str) -> None:
    for text, lib in ((program, theirs), (program.replace("loralib", "deltaw.loralib"), ours)):
        space: dict[str, Any] = {}
        exec(text, space)
        assert type(space["made"]) is lib.Linear


def test_the_script_that_comes_with_the_original() -> None:
    """Its own ``test.py``, on fewer channels."""
    script = (Path(theirs.__file__).parent / "test.py").read_text().replace("256", "16")
    for text in (script, script.replace("import loralib", "import deltaw.loralib")):
        space: dict[str, Any] = {}
        exec(text, space)
        out = space["grouped_conv"](space["input_tensor"])
        assert out.shape == (8, 16, 30, 30)
