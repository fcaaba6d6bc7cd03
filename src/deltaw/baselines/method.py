"""What a baseline is: which of the base's parameters it trains a copy of, and which pieces it puts beside modules."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.baselines.anatomy import Anatomy
from deltaw.config import LoRAConfig
from deltaw.errors import ConfigError
from deltaw.initialize import seed_for
from deltaw.tree import BASELINE

__all__ = ["NAME", "Method", "Piece", "device_dtype", "uniform", "whole"]

NAME = BASELINE


class Piece(nn.Module):
    """Trained tensors that a baseline puts beside one module, and the hooks through which they act.

    A piece is a child of the module, so optimizers, casts, copies and state dicts see its tensors; the module keeps its
    class, its path and its own keys. Hooks are bound methods of the piece: a copied model has hooks of its own piece.
    """

    # walks over the base leave such children out
    _deltaw_container = True
    off = False

    def hook(self, module: nn.Module, root: nn.Module) -> None:
        """Register the hooks.

        Args:
            module: the module that the piece is a child of.
            root: the model.
        """
        raise AssertionError(f"{type(self).__name__} registers no hook on {type(module).__name__} of {type(root)}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A state dict of the base alone says nothing of the piece, which then stays as it is."""
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One baseline and its settings.

    Args:
        train_also: modules that are trained in full beside it, such as a new head: dotted paths or their endings.
        seed: of what starts at random.
    """

    train_also: tuple[str, ...] = ()
    seed: int = 0

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    unmergeable: ClassVar[str] = ""
    """Why there is no plain model that computes the same; empty where there is one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_also", tuple(self.train_also))
        whole(self, "seed", 0)

    @property
    def low_rank(self) -> LoRAConfig | None:
        """The LoRA adapter that is worn beside the pieces, where there is one."""
        return None

    def tuned(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the parameters of the base of which a copy is trained.

        Args:
            anatomy: the model's parts.

        Returns:
            Parameter names; empty where none is.
        """
        del anatomy
        return ()

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make what is put beside modules.

        Args:
            anatomy: the model's parts.

        Returns:
            Module path -> piece, on the module's device.
        """
        del anatomy
        return {}

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say what a user should know of this method on this model.

        Args:
            anatomy: the model's parts.

        Returns:
            Lines; the first says what happens to the model's outputs at the start.
        """
        del anatomy
        return ("at the start the model computes what the base computes, bit for bit",)

    def options(self) -> dict[str, Any]:
        """List the settings as a file holds them.

        Returns:
            Field -> plain value; a LoRA configuration is left out, since its own file holds it.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if not isinstance(value, LoRAConfig)
        }


def whole(method: Method, name: str, least: int) -> None:
    """Refuse a setting that is no whole number, or too small.

    Args:
        method: whose setting.
        name: the field.
        least: the smallest value.

    Raises:
        ConfigError: naming the field.
    """
    value = getattr(method, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{name} cannot be used",
            where=f"{type(method).__name__}(..., {name}=...)",
            got=repr(value),
            expected=f"a whole number of at least {least}",
            hint=f"set {name} to {max(least, 1)} or more.",
        )


def device_dtype(module: nn.Module, fallback: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module computes, and in which dtype.

    Args:
        module: any module.
        fallback: asked where the module has no parameters.

    Returns:
        The device and dtype of its first floating parameter.
    """
    for owner in (module, fallback):
        for parameter in owner.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def uniform(rows: int, columns: int, *, seed: int, path: str, device: torch.device) -> Tensor:
    """A projection's start: uniform within 1 / sqrt(columns), as torch's own linear layers and loralib's A start.

    It is drawn from a generator of its own, so the global random state and the order of modules do not matter.

    Args:
        rows: output size.
        columns: input size.
        seed: the run's.
        path: of the module, which makes each one's numbers its own.
        device: where it goes; on the meta device nothing is drawn.

    Returns:
        float32, shape (rows, columns).

    Example:
        >>> W = uniform(2, 4, seed=0, path="h.0.mlp", device=torch.device("cpu")); bool(W.abs().max() <= 0.5)
        True
    """
    if device.type == "meta":
        return torch.empty(rows, columns, device=device)
    generator = torch.Generator().manual_seed(seed_for(seed, NAME, path))
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator).to(device)
