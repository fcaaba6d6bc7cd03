"""A tiny base with a saved adapter, ways to damage it, and what a refusal must leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import deltaw as dw
from deltaw.errors import CheckpointError
from peft_judge import (
    Feature,
    seeded,
    tensors,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Tensors = dict[str, Tensor]


class Net(nn.Module):
    """Two layers of one shape, so that a swap cannot be seen in the shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.wide = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.tanh(self.two(torch.tanh(self.one(x)))))


NET = Feature(
    name="net",
    model=Net,
    ours={"rank": 3, "alpha": 7, "targets": ["one", "two"]},
    theirs={"r": 3, "lora_alpha": 7, "target_modules": ["one", "two"]},
    tokens=False,
)


def key(path: str, factor: str) -> str:
    return f"base_model.model.{path}.lora_{factor}.weight"


def rewrite(
    directory: Path,
    edit: Callable[[Tensors], Any] | None = None,
    config: dict[str, Any] | None = None,
    foreign: bool = False,
) -> Path:
    """Edit a saved adapter; ``foreign`` drops our metadata, as any other writer would."""
    from safetensors import safe_open

    held = tensors(directory)
    if edit is not None:
        edit(held)
    with safe_open(str(directory / WEIGHTS), framework="pt") as file:
        metadata = {"format": "pt"} if foreign else dict(file.metadata())
    save_file({k: t.clone() for k, t in held.items()}, str(directory / WEIGHTS), metadata)
    if config:
        raw = {**json.loads((directory / CONFIG).read_text()), **config}
        (directory / CONFIG).write_text(json.dumps(raw))
    return directory


def state(model: nn.Module, directory: Path) -> tuple[Any, ...]:
    """Everything a refusal must leave alone."""
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())} if directory.is_dir() else {}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()]
    flags = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    return files, {k: v.view(-1).view(torch.uint8).numpy().tobytes() for k, v in values.items()}, classes, flags


def refused(directory: Path, *words: str, model: nn.Module | None = None, **options: Any) -> str:
    """Load must refuse with these words and leave model and files byte for byte as they were."""
    model = seeded(Net) if model is None else model
    before = state(model, directory)
    with pytest.raises(CheckpointError) as caught:
        dw.load(model, directory, **options)
    assert state(model, directory) == before
    text = str(caught.value)
    assert all(word in text for word in words), text
    return text
