"""Adapters: a small network with a bottleneck behind a sub-layer, y + up(act(down(y))).

Shapes: N rows, D width of the residual stream, R size of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import Method, Piece, device_dtype, uniform, whole
from deltaw.errors import ConfigError

__all__ = ["ACTIVATIONS", "AdapterMethod", "Bottleneck", "behind_both"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Bottleneck(Piece):
    """One adapter: 2 D R + R + D values, and 2 D more with a LayerNorm of its own.

    The up projection and its bias start at zero: the adapter adds nothing until it is trained. Its tensors are float32
    and are cast to the activation's dtype, which is never cast up.

    Args:
        width: D.
        size: R.
        activation: a name of ``ACTIVATIONS``.
        norm: normalize what the adapter reads, with a trained gain and bias.
        seed: of the down projection.
        path: of the module it stands behind.
        device: where it goes.
    """

    def __init__(
        self, width: int, size: int, *, activation: str, norm: bool, seed: int, path: str, device: torch.device
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Parameter(uniform(size, width, seed=seed, path=path, device=device))
        self.down_bias = nn.Parameter(torch.zeros(size, device=device))
        self.up = nn.Parameter(torch.zeros(width, size, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.gain = nn.Parameter(torch.ones(width, device=device)) if norm else None
        self.shift = nn.Parameter(torch.zeros(width, device=device)) if norm else None

    def hook(self, module: nn.Module, root: nn.Module) -> None:
        """Stand behind the module.

        Args:
            module: the sub-layer.
            root: the model.
        """
        del root
        module.register_forward_hook(self.behind)

    def behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook.

        Args:
            module: the sub-layer.
            args: of its call.
            output: a tensor (N, ..., D), or a tuple that begins with one.

        Returns:
            The output with the adapter's term; None leaves it as it is.
        """
        del module, args
        if self.off:
            return None
        if isinstance(output, tuple):
            return (self.forward(output[0]), *output[1:])
        return self.forward(output)

    def forward(self, y: Tensor) -> Tensor:
        """The adapter's equation.

        Args:
            y: shape (..., D).

        Returns:
            y + up(act(down(norm(y)))), shape (..., D), in y's dtype.
        """
        read = y
        if self.gain is not None and self.shift is not None:
            read = F.layer_norm(y, y.shape[-1:], self.gain.to(y.dtype), self.shift.to(y.dtype))
        inner = ACTIVATIONS[self.activation](F.linear(read, self.down.to(y.dtype), self.down_bias.to(y.dtype)))
        return y + F.linear(inner, self.up.to(y.dtype), self.up_bias.to(y.dtype))


def behind_both(anatomy: Anatomy) -> tuple[str, ...]:
    """Name the two modules of every block that Houlsby's adapters stand behind.

    Args:
        anatomy: the model's parts.

    Returns:
        Two paths for each block: attention's and the MLP's.
    """
    parts = (anatomy.family.attention, anatomy.family.mlp)
    return tuple(f"{block}.{part}" for block in anatomy.blocks for part in parts)


@dataclass(frozen=True, kw_only=True)
class AdapterMethod(Method):
    """What the adapter baselines share.

    Args:
        bottleneck: R, the size of the bottleneck.
        activation: relu, gelu or silu.
    """

    bottleneck: int = 64
    activation: str = "relu"

    unmergeable: ClassVar[str] = "an adapter is not linear in what it reads: no weight of the base computes it"
    norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "bottleneck", 1)
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                "this activation is not known",
                where=f"{type(self).__name__}(..., activation=...)",
                got=repr(self.activation),
                expected=", ".join(ACTIVATIONS),
                hint="use activation='relu'.",
            )

    def sites(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the modules that an adapter stands behind.

        Args:
            anatomy: the model's parts.

        Returns:
            Paths; here behind every MLP.
        """
        return tuple(f"{block}.{anatomy.family.mlp}" for block in anatomy.blocks)

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Make one adapter for each site.

        Args:
            anatomy: the model's parts.

        Returns:
            Module path -> adapter.
        """
        found: dict[str, Piece] = {}
        for path in self.sites(anatomy):
            device, _ = device_dtype(anatomy.model.get_submodule(path), anatomy.model)
            found[path] = Bottleneck(
                anatomy.width, self.bottleneck, activation=self.activation, norm=self.norm, seed=self.seed, path=path,
                device=device,
            )  # fmt: skip
        return found

    def notes(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Say how it starts and how it is counted.

        Args:
            anatomy: the model's parts.

        Returns:
            Two lines; the second is the paper's formula with its numbers.

        Source:
            Hu et al. 2021, arXiv:2106.09685, section 5.1: L_adpt (2 d r + r + d) + 2 L_LN d.
        """
        count, width, size = len(self.sites(anatomy)), anatomy.width, self.bottleneck
        norms = f" + 2 x {count} x {width}" if self.norm else ""
        return (*super().notes(anatomy), f"counted as {count} x (2 x {width} x {size} + {size} + {width}){norms}")
