"""The learning rate as a pure function of the step, and the optimizer over the trainable set."""

from __future__ import annotations

import math

import torch
from torch import nn

from deltaw.train.adamw import ReferenceAdamW
from deltaw.train.batches import BatchPlan, walk
from deltaw.train.config import OptimConfig

__all__ = ["learning_rate", "make_optimizer", "set_rate", "token_warmup", "warmup_of", "warmup_steps"]


def warmup_steps(warmup: float, total: int) -> int:
    """Resolve a warm-up given as steps or as a fraction.

    Args:
        warmup: a number of steps, or a fraction of ``total`` where below 1.
        total: steps of the run.

    Returns:
        Number of steps, at most ``total``.
    """
    return min(total, round(warmup * total) if warmup < 1 else int(warmup))


def token_warmup(plan: BatchPlan, total: int, tokens: int) -> tuple[int, int]:
    """Resolve a warm-up given in tokens: the steps in which the run sees that many.

    Args:
        plan: the batches of the run.
        total: steps of the run.
        tokens: tokens that go through the model, padding left out.

    Returns:
        Number of steps, ``total`` where the run sees fewer tokens; and the tokens seen in them.

    Example:
        >>> plan = BatchPlan(lengths=[5] * 8, batch_size=2, batch_tokens=None, accumulate=1, seed=0)
        >>> token_warmup(plan, 8, 25), token_warmup(plan, 8, 999)
        ((3, 30), (8, 80))
    """
    seen = 0
    for step, window in enumerate(walk(plan, epoch=0, index=0, steps=total), 1):
        seen += sum(int(plan.lengths[row]) for rows in window.batches for row in rows)
        if seen >= tokens:
            return step, seen
    return total, seen


def warmup_of(config: OptimConfig, plan: BatchPlan, total: int) -> int:
    """Resolve the warm-up however it is given.

    Args:
        config: a number of steps, a fraction of them, or tokens.
        plan: the batches of the run.
        total: steps of the run.

    Returns:
        Number of steps, at most ``total``.
    """
    if config.warmup_tokens is not None:
        return token_warmup(plan, total, config.warmup_tokens)[0]
    return warmup_steps(config.warmup, total)


def learning_rate(step: int, *, total: int, peak: float, schedule: str, warmup: int) -> float:
    """Rate of one step.

    The warm-up climbs so that its last step has the peak; decay reaches zero one step after the run's end, so that no
    step is wasted.

    Args:
        step: counted from 0.
        total: steps of the run.
        peak: the highest rate.
        schedule: ``constant``, ``linear`` or ``cosine``.
        warmup: number of steps.

    Returns:
        The rate, > 0 within the run.

    Example:
        >>> [learning_rate(s, total=4, peak=1.0, schedule="linear", warmup=0) for s in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """AdamW over exactly the trainable parameters; torch's in one fused kernel where the device has one.

    Args:
        model: with its adapter; something of it is trained.
        config: which AdamW, betas, epsilon, weight decay and what it applies to, and LoRA+'s ratio.
        lr: the first step's rate.

    Returns:
        The optimizer; ``factor`` of each group is its rate over the schedule's.
    """
    from deltaw.optim import param_groups

    groups = param_groups(model, lr=1.0, lora_plus=config.lora_plus, weight_decay=config.weight_decay)
    if config.decay == "all":
        groups = [{**group, "weight_decay": config.weight_decay} for group in groups]
    rated = [{**group, "factor": group["lr"], "lr": lr * group["lr"]} for group in groups]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw_reference":
        return ReferenceAdamW(rated, lr=lr, betas=betas, eps=config.eps, correct_bias=config.correct_bias)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.AdamW(
        rated,
        lr=lr,
        betas=betas,
        eps=config.eps,
        fused=fused,
        foreach=None if fused else True,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate.

    Args:
        optimizer: from ``make_optimizer``.
        lr: the schedule's rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
