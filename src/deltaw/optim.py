"""Parameter groups for any optimizer: LoRA+ learning rates, and weight decay on matrices alone."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from deltaw.attach import trainable
from deltaw.errors import ConfigError

__all__ = ["param_groups"]


def _check(name: str, value: float, least: float, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ConfigError(
            f"{name} cannot be used",
            where=f"param_groups(..., {name}=...)",
            got=repr(value),
            expected=f"a finite number of at least {least:g}",
            hint=hint,
        )


def param_groups(
    model: nn.Module, *, lr: float, lora_plus: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Everything that is trained, in groups for a torch optimizer.

    LoRA+ gives B a higher learning rate than A: A's updates grow with the layer's width, B's do not. Embeddings, whose
    A is looked up and not multiplied, keep one rate, as do vectors (magnitudes, biases) and modules trained in full.

    Args:
        model: an attached model, or a plain one that is trained in full.
        lr: learning rate.
        lora_plus: B's learning rate over A's; the paper recommends 16, 1 is plain LoRA.
        weight_decay: of matrices; vectors get none.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``; empty ones are left out.

    Raises:
        ConfigError: if a value is out of range, or LoRA+ finds no B to work on.
        StateError: if the model is merged.

    Source:
        Hayou et al. 2024, arXiv:2402.12354, section 4.

    Example:
        >>> import deltaw as dw
        >>> net = nn.Sequential(nn.Linear(4, 4)); _ = dw.attach(net)
        >>> [(group["name"], group["lr"]) for group in param_groups(net, lr=0.5, lora_plus=16)]
        [('plain', 0.5), ('lora_B', 8.0)]
    """
    _check("lr", lr, 0.0, "common rates for LoRA are 1e-4 to 1e-3.")
    _check("lora_plus", lora_plus, 1e-3, "use 1 for plain LoRA, 16 for LoRA+.")
    _check("weight_decay", weight_decay, 0.0, "use 0 for none.")
    lookups = {f"{path}." for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"plain": [], "vectors": [], "lora_B": []}
    for name, parameter in trainable(model):
        second = name.endswith(".lora_B") and not any(name.startswith(path) for path in lookups)
        kind = "vectors" if parameter.dim() < 2 else "lora_B" if second and lora_plus != 1 else "plain"
        groups[kind].append(parameter)
    if lora_plus != 1 and not groups["lora_B"]:
        raise ConfigError(
            "LoRA+ has nothing to work on",
            where="param_groups(..., lora_plus=...)",
            got=f"{lora_plus:g}, and no trained B of a linear map",
            expected="an adapter with a trained B",
            hint="leave lora_plus out.",
        )
    rates = {"plain": lr, "vectors": lr, "lora_B": lr * lora_plus}
    decays = {"plain": weight_decay, "vectors": 0.0, "lora_B": weight_decay}
    return [
        {"name": name, "params": params, "lr": rates[name], "weight_decay": decays[name]}
        for name, params in groups.items()
        if params
    ]
