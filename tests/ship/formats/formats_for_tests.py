"""Files of other tools, written here from their published layouts, with values that follow from the names alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapter import Adapter


def value(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that depends on its name and shape alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {shape}".encode()))
    return torch.randn(shape, generator=generator).to(dtype)


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: value(name, *shape) for name, shape in shapes.items()}


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata or None)
    else:
        torch.save(dict(tensors), path)
    return path


def skeleton(shapes: Mapping[str, nn.Module]) -> nn.Module:
    """A tree of plain modules with the given leaves at the given paths."""
    root = nn.Module()
    for path, leaf in shapes.items():
        *parents, last = path.split(".")
        at = root
        for name in parents:
            if name not in at._modules:
                at.add_module(name, nn.Module())
            at = at._modules[name]  # type: ignore[assignment]
        at.add_module(last, leaf)
    return root


def linears(sizes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """A tree of Linear layers, path -> (O, I)."""
    return skeleton({path: nn.Linear(i, o, bias=False) for path, (o, i) in sizes.items()})


def delta(adapter: Adapter, path: str) -> Tensor:
    """The update of a module from the raw tensors, by PEFT's definition, in float64; conv factors flattened."""
    pair = {key: tensor for key, tensor in adapter.tensors.items() if key.startswith(f"base_model.model.{path}.lora_")}
    ends = {".lora_A.weight": 0, ".lora_B.weight": 1, ".lora_embedding_A": 0, ".lora_embedding_B": 1}
    found: list[Tensor | None] = [None, None]
    for end, index in ends.items():
        if f"base_model.model.{path}{end}" in pair:
            found[index] = pair[f"base_model.model.{path}{end}"].double()
    lora_A, lora_B = found
    assert lora_A is not None and lora_B is not None
    groups = lora_A.shape[0] // lora_B.shape[1]
    blocks = [b.flatten(1) @ a.flatten(1) for a, b in zip(lora_A.chunk(groups), lora_B.chunk(groups), strict=True)]
    return adapter.scaling(path) * torch.cat(blocks)


def close(found: Tensor, expected: Tensor, bound: float = 1e-12) -> bool:
    assert found.shape == expected.shape, (tuple(found.shape), tuple(expected.shape))
    return float((found.double() - expected.double()).abs().max()) <= bound * float(expected.abs().max())


def paths(adapter: Adapter) -> set[str]:
    return set(adapter.modules())


def lines(names: Iterable[str]) -> str:
    return "\n".join(names) + "\n"
