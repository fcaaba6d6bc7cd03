"""The base as a tree of names and sizes, without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deltaw.errors import ModelError
from deltaw.ship.formats.tree import Tree

__all__ = ["tree_of_base"]


def tree_of_base(name: str) -> tuple[Tree, Mapping[str, Any]]:
    """Take a base's module tree: from its configuration, or from the headers of its weights.

    Args:
        name: a local directory or hub name. A transformers configuration alone is enough; a directory of diffusers (a
            component or a whole pipeline) needs its safetensors, of which only the headers are read.

    Returns:
        The tree, and the transformers configuration as a dictionary (empty where it is none).

    Raises:
        ModelError: if there is no such model, or nothing in it says what its modules are.
    """
    place = Path(name).expanduser()
    if place.is_dir() and not _is_transformers(place):
        return Tree.read(place), {}
    from deltaw.train.model import base_config

    config = base_config(name)
    return _built(config, name), config.to_dict()


def _is_transformers(place: Path) -> bool:
    try:
        found = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not any(place.glob("*.safetensors")) and not any(place.glob("*/*.safetensors"))
    return isinstance(found, dict) and "model_type" in found


def _built(config: Any, name: str) -> Tree:
    """The model on the meta device: modules and shapes, no memory."""
    import transformers

    named = [getattr(transformers, str(cls), None) for cls in config.architectures or ()]
    known = [cls for cls in named if cls is not None]
    try:
        with torch.device("meta"):
            model = known[0](config) if known else transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            "the base cannot be built from its configuration",
            where=name,
            got=(str(error).splitlines() or [type(error).__name__])[0][:160],
            expected="a configuration whose architecture transformers knows",
            hint="give the names of its modules instead: --tree FILE.",
        ) from error
    return Tree.of_model(model)
