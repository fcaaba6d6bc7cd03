"""Weights with more than one user: one module under two names, or two modules over one storage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["User", "storage_key", "users_of_weights"]


@dataclass(frozen=True)
class User:
    """One module that reads a weight.

    Args:
        path: module path.
        module: the module.
    """

    path: str
    module: nn.Module


def storage_key(tensor: Tensor) -> tuple[int, ...]:
    """What two tensors have in common when writing to one writes to the other.

    Args:
        tensor: a parameter, on any device, meta included.

    Returns:
        A key that is valid while the tensor lives.

    Example:
        >>> import torch; w = torch.zeros(2, 2)
        >>> storage_key(w) == storage_key(w.t()), storage_key(w) == storage_key(w.clone())
        (True, False)
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        return (id(tensor),)
    # an offset tells apart the views of a flat buffer, which are neighbors and not twins
    return (tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel())


def users_of_weights(modules: Iterable[tuple[str, nn.Module]]) -> dict[tuple[int, ...], list[User]]:
    """Group modules by the storage of their ``weight``.

    Args:
        modules: (path, module), each module once.

    Returns:
        storage key -> the modules that hold it, in the order given.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)); net[1].weight = net[0].weight
        >>> [[user.path for user in users] for users in users_of_weights(net.named_modules()).values()]
        [['0', '1']]
    """
    users: dict[tuple[int, ...], list[User]] = {}
    for path, module in modules:
        weight = module._parameters.get("weight", module._parameters.get("in_proj_weight"))
        if weight is not None and weight.dim() > 1:
            users.setdefault(storage_key(weight), []).append(User(path, module))
    return users
