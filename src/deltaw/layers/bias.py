"""Where a bias enters a module's output: what must be known to train a bias beside the base's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deltaw.layers.registry import kind_of

__all__ = ["add_bias", "channel_dim"]

_CHANNEL_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def channel_dim(module: nn.Module) -> int | None:
    """Axis of the output along which a module's bias lies.

    Args:
        module: any module.

    Returns:
        -1 or 1; None where the bias is not simply added to the output.

    Example:
        >>> channel_dim(nn.LayerNorm(4)), channel_dim(nn.Conv1d(1, 1, 1)), channel_dim(nn.Bilinear(1, 1, 1))
        (-1, 1, None)
    """
    if isinstance(module, _CHANNEL_SECOND):
        return 1
    kind = kind_of(module)
    return -1 if isinstance(module, nn.LayerNorm) or (kind is not None and kind.name != "Embedding") else None


def add_bias(module: nn.Module, out: Tensor, bias: Tensor) -> Tensor:
    """Replace the base's bias in an output: out + (bias - base bias).

    Args:
        module: the module that made ``out``, with its own bias inside.
        out: its output.
        bias: the adapter's bias, same shape as the base's.

    Returns:
        Tensor like ``out``.
    """
    base = module.bias
    assert isinstance(base, Tensor)
    shift = (bias - base.detach()).to(out.dtype)
    if channel_dim(module) == 1:
        # an unbatched input of a convolution has one axis less; its channels then come first
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        weight: Any = module.weight
        spatial = weight.dim() - 2 if convolution else out.dim() - 2
        shift = shift.reshape(-1, *([1] * spatial))
    return out + shift
