"""How many modules learned something: whether each update is still the nothing it started as."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deltaw.factors import Pair
from deltaw.layer import container_of
from deltaw.layers import Kind, kind_of
from deltaw.record import record_of
from deltaw.sites import BaseView
from deltaw.worn import Twin

__all__ = ["applied"]

# Of the weight's largest value: a norm that is computed twice may differ by rounding, a trained one by more.
ROUNDING = 1e-5


@torch.no_grad()
def applied(model: nn.Module, name: str) -> str:
    """Count the modules whose update is not zero.

    Args:
        model: with its adapter.
        name: which adapter.

    Returns:
        One line.
    """
    found = []
    for module in record_of(model, "count updates").modules.values():
        entry: Any = container_of(module)._modules.get(name)
        kind = kind_of(module)
        if kind is not None and not isinstance(entry, Twin) and hasattr(entry, "parts"):
            found.append(any(_moved(kind, module, pair) for pair in entry.parts()))
    if not found:
        return "no low-rank update: only modules, biases or rows are saved"
    moved, sites = sum(found), len(found)
    line = f"applied to {moved}/{sites} modules"
    if moved == sites:
        return line
    return f"{line}: the update of {'the others' if moved else 'every module'} is still zero"


def _moved(kind: Kind, module: nn.Module, pair: Pair) -> bool:
    update, tensors = pair.part.update, pair.tensors
    lora_A, lora_B = update.factors(tensors)
    if "start_A" in tensors:
        product = not (torch.equal(lora_A, tensors["start_A"]) and torch.equal(lora_B, tensors["start_B"]))
    else:
        product = bool(lora_A.any()) and bool(lora_B.any())
    if product or (update.shift is not None and bool(update.shift(tensors).any())):
        return True
    if not update.reads:
        return False
    # the product is nothing, but a variant that reads the weight may have changed it by itself
    view = BaseView(kind, module, pair.rows)
    weight = view.matrix()
    delta = update.delta(tensors, pair.factors, pair.part.scaling, view)
    return float(delta.abs().max()) > ROUNDING * float(weight.abs().max())
