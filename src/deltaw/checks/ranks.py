"""Several processes: gradients that nobody averages, and adapters that have drifted apart."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from deltaw.checks.finding import Problem, View
from deltaw.refuse import is_sharded

__all__ = ["drifted", "unwrapped"]

_ORDER = "order: load, attach (or load the adapter), unfreeze, then wrap the model and make the optimizer."


def _data_parallel(given: nn.Module) -> Any:
    """The DistributedDataParallel among a model's wrappers, or None."""
    module: nn.Module | None = given
    while module is not None:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module
        inside = module._modules
        module = inside.get("_orig_mod") or inside.get("_forward_module")
    return None


def unwrapped(view: View) -> Iterator[Problem]:
    """Adapter parameters that the wrapper does not know, so that their gradients stay on their process.

    Args:
        view: what to look at; DistributedDataParallel is seen only where the wrapper itself was passed.

    Yields:
        A finding for each parameter, or one where a wrapper averages fewer parameters than are trained.
    """
    if is_sharded(view.root):
        tensor_module: Any = sys.modules.get("torch.distributed.tensor")
        for where, _, parameter in view.trained():
            if tensor_module is None or not isinstance(parameter, tensor_module.DTensor):
                yield Problem("unsynchronized", where, "fully_shard does not hold it", _ORDER)
        return
    wrapper = _data_parallel(view.given)
    if wrapper is None:
        return
    known = {id(parameter) for parameter in wrapper._module_parameters}
    found = False
    for where, _, parameter in view.trained():
        if id(parameter) not in known:
            found = True
            yield Problem("unsynchronized", where, "DistributedDataParallel does not hold it", _ORDER)
    averaged = int(wrapper._get_ddp_logging_data().get("num_parameter_tensors", -1))
    trained = sum(parameter.requires_grad for parameter in wrapper._module_parameters)
    if not found and 0 <= averaged < trained:
        what = f"DistributedDataParallel averages {averaged} gradients of {trained}: some were frozen when it was made"
        yield Problem("unsynchronized", type(view.root).__name__, what, _ORDER)


def drifted(view: View) -> Iterator[Problem]:
    """Adapters, or their gradients, that are not the same on every process.

    Args:
        view: what to look at; every process of the default group must search at the same time.

    Yields:
        A finding for each parameter, on every process.
    """
    if not (view.across_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    mine = {where: (_digest(parameter), _digest(parameter.grad)) for where, _, parameter in view.trained()}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for where in sorted(set().union(*everyone)):
        seen = [one.get(where) for one in everyone]
        if len(set(seen)) == 1:
            continue
        what = "its gradient" if None not in seen and len({one[0] for one in seen}) == 1 else "it"
        yield Problem("unsynchronized", where, f"{what} differs between processes", _ORDER)


def _digest(tensor: Tensor | None) -> str:
    """Content of a tensor; a part of a sharded one is each process's own and says nothing."""
    if tensor is None or hasattr(tensor, "full_tensor") or tensor.is_meta:
        return ""
    flat = tensor.detach().to("cpu").contiguous()
    return hashlib.sha256(ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size())).hexdigest()
