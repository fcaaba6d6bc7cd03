"""AdamW in the order of the LoRA paper's scripts, for runs that follow them to the letter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ReferenceAdamW"]


class ReferenceAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, as transformers had it before it took torch's.

    Two things differ from ``torch.optim.AdamW``: epsilon is added before the bias correction, so that it weighs
    1 / sqrt(1 - beta2^t) times as much in the first steps; and the decay comes after the step, so that it shrinks the
    new value. Per parameter, with gradient g at step t::

        m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
        p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
        p <- p - lr decay p

    Args:
        params: parameters, or groups of them with ``lr`` and ``weight_decay`` of their own.
        lr: learning rate.
        betas: of the two averages.
        eps: epsilon; the scripts for GPT-2 use 1e-6.
        weight_decay: share of a parameter taken off per unit of learning rate.
        correct_bias: whether the averages are corrected for starting at zero; without it the two factors of the second
            line are left out.

    Source:
        microsoft/LoRA at c4593f0, examples/NLG/src/optimizer.py; transformers 4.4.2, optimization.py.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = ReferenceAdamW([weight], lr=0.1, weight_decay=0.5)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> round(float(weight.detach()), 4)
        0.855
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient are left alone.

        Args:
            closure: not taken: a second forward would draw other dropout masks.
        """
        assert closure is None
        for group in self.param_groups:
            chosen = [parameter for parameter in group["params"] if parameter.grad is not None]
            if chosen:
                self._step(group, chosen)

    def _step(self, group: dict[str, Any], chosen: list[Tensor]) -> None:
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        states = [self._started(parameter) for parameter in chosen]
        gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        sizes = []
        for state in states:
            state["step"] += 1
            count = int(state["step"])
            factor = math.sqrt(1 - beta2**count) / (1 - beta1**count) if group["correct_bias"] else 1.0
            sizes.append(-lr * factor)
        torch._foreach_addcdiv_(chosen, means, roots, sizes)
        if group["weight_decay"]:
            torch._foreach_mul_(chosen, 1 - lr * group["weight_decay"])

    def _started(self, parameter: Tensor) -> dict[str, Tensor]:
        """The entries of a parameter, named and kept as torch's AdamW does, so that one kind of state fits both."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
