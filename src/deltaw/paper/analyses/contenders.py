"""What is timed against the base, one entry each: to add a method, add its line to ``CONTENDERS``.

A builder gets a copy of the base, whose weights it shares unless ``own`` says otherwise, and a size (LoRA's rank, an
adapter's bottleneck, a prefix's length), and puts its method on. Its new values are random and not zero: a method that
adds exactly nothing might be computed faster.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import deltaw as dw
from deltaw.errors import ConfigError, nearest
from deltaw.paper.roles import roles_of, targets_for

__all__ = ["BASE", "CONTENDERS", "Contender", "built", "lora_config", "pick", "wear_lora"]

BASE = "base"
"""The plain model, or one that was fine-tuned in full: the same computation."""
_STD = 0.02
_BASELINES = "deltaw.baselines"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One method.

    Args:
        name: as it is printed.
        put_on: puts the method on a model at a size, and returns the number of its values.
        own: it writes to the base's weights, and needs a copy of them.
        same: name of a contender whose output it must reproduce; None where there is none.
        needs: a module that must exist for it.
    """

    name: str
    put_on: Callable[[Any, int], int]
    own: bool = False
    same: str | None = None
    needs: str | None = None

    @property
    def present(self) -> bool:
        """Whether what it needs is installed."""
        if self.needs is None:
            return True
        try:
            importlib.import_module(self.needs)
        except ModuleNotFoundError:
            return False
        return True


def lora_config(model: Any, rank: int, seed: int = 0) -> dw.LoRAConfig:
    """The paper's LoRA: W_q and W_v of every layer.

    Args:
        model: the base.
        rank: r.
        seed: of the start.

    Returns:
        The configuration; alpha is the rank, so that the update is B A itself.

    Raises:
        ModelError: if the model's projections are not known by name.
    """
    return dw.LoRAConfig(rank=rank, alpha=rank, targets=targets_for(roles_of(model), "qv"), seed=seed)


def wear_lora(model: Any, rank: int, *, name: str = "default", seed: int = 0) -> int:
    """Attach LoRA with values as after training: B is drawn at random, too.

    Args:
        model: the base.
        rank: r.
        name: of the adapter.
        seed: of the draws.

    Returns:
        Number of values of the adapter.
    """
    before = {id(parameter) for parameter in model.parameters()}
    dw.attach(model, lora_config(model, rank, seed), name=name)
    generator = torch.Generator().manual_seed(seed)
    new = [(key, parameter) for key, parameter in dw.trainable(model) if id(parameter) not in before]
    with torch.no_grad():
        for key, parameter in new:
            if key.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _STD)
    return sum(parameter.numel() for _, parameter in new)


def _merged(model: Any, rank: int) -> int:
    count = wear_lora(model, rank)
    dw.merge(model, keep=False)
    return count


def _baseline(kind: str, size: str) -> Callable[[Any, int], int]:
    """A baseline of the paper, with what it adds drawn at random."""

    def put_on(model: Any, number: int) -> int:
        baselines = importlib.import_module(_BASELINES)
        before = {id(parameter) for parameter in model.parameters()}
        baselines.attach(model, getattr(baselines, kind)(**{size: number}))
        generator = torch.Generator().manual_seed(0)
        new = [p for p in model.parameters() if id(p) not in before]
        with torch.no_grad():
            for parameter in new:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * _STD)
        return sum(parameter.numel() for parameter in new)

    return put_on


CONTENDERS: tuple[Contender, ...] = (
    Contender(name=BASE, put_on=lambda model, size: 0),
    Contender(name="LoRA", put_on=wear_lora),
    Contender(name="LoRA merged", put_on=_merged, own=True, same="LoRA"),
    Contender(name="Adapter L", put_on=_baseline("AdapterL", "bottleneck"), needs=_BASELINES),
    Contender(name="Adapter H", put_on=_baseline("AdapterH", "bottleneck"), needs=_BASELINES),
    Contender(name="PreEmbed", put_on=_baseline("PrefixEmbedding", "prefix_length"), needs=_BASELINES),
    Contender(name="PreLayer", put_on=_baseline("PrefixLayer", "prefix_length"), needs=_BASELINES),
)


def pick(names: Sequence[str], table: Sequence[Contender] = CONTENDERS) -> tuple[Contender, ...]:
    """Choose contenders; the base is always among them, and so is what another must reproduce.

    Args:
        names: which; empty means all that are installed.
        table: those there are.

    Returns:
        Contenders, in the table's order.

    Raises:
        ConfigError: if there is none of a name, or it is not installed.
    """
    known: Mapping[str, Contender] = {contender.name: contender for contender in table}
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ConfigError(
            f"there is no method {wrong[0]!r} to time",
            where="--method",
            got=repr(wrong[0]),
            expected=", ".join(known),
            hint=f"nearest: {nearest(wrong[0], known)}.",
        )
    absent = [name for name in names if not known[name].present]
    if absent:
        raise ConfigError(
            f"the method {absent[0]!r} is not installed",
            where="--method",
            got=f"no module {known[absent[0]].needs}",
            expected="one of " + ", ".join(name for name, contender in known.items() if contender.present),
            hint="leave it out.",
        )
    wanted = set(names) if names else {name for name, contender in known.items() if contender.present}
    wanted |= {BASE, *(same for name in wanted if (same := known[name].same) is not None)}
    return tuple(contender for contender in table if contender.name in wanted)


def built(contender: Contender, model: Any, size: int) -> tuple[Any, int]:
    """Put a method on a copy of the base.

    Args:
        contender: the method.
        model: the base, frozen; it stays as it is.
        size: rank, bottleneck or length.

    Returns:
        The model, frozen and in eval mode, and the number of values it has beyond the base's.
    """
    from deltaw.paper.analyses.subjects import twin

    worn = twin(model, own=contender.own)
    count = contender.put_on(worn, size)
    return worn.eval().requires_grad_(False), count
