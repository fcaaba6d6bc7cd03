"""The contract of a variant: pure functions on tensors. A variant never sees a module, a file format or a path.

Variants combine: an adapter's configuration names one or several, and ``combine`` puts their functions together. Where
two of them would say the same thing differently, or one excludes another by name, the combination is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deltaw.errors import ConfigError
from deltaw.functional import add_term, delta_weight
from deltaw.initialize import Request

__all__ = ["Base", "Combined", "Tensors", "Variant", "combine", "joined"]

Tensors = Mapping[str, Tensor]
"""An update's tensors by name: ``lora_A``, ``lora_B`` and what a variant has beside."""
Shape = tuple[int, ...]


class Base(Protocol):
    """What a variant may ask about the weight it updates."""

    def matrix(self) -> Tensor:
        """The frozen weight, shape (O, K), without gradient; only the rows that are adapted."""

    def bias(self) -> Tensor | None:
        """The bias that is in the output already, shape (O), without gradient."""

    def spread(self, vector: Tensor) -> Tensor:
        """A vector of O values, shaped to meet an output."""

    @property
    def groups(self) -> int:
        """Number of blocks on the weight's diagonal."""


def joined(pair: tuple[Tensor, Tensor], tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The factors together with those they started from, which count negative.

    Args:
        pair: A of shape (R, K) and B of shape (O, R).
        tensors: all tensors of the update.

    Returns:
        The pair itself, or A of shape (2 R, K) and B of shape (O, 2 R).
    """
    if "start_A" not in tensors:
        return pair
    return torch.cat([pair[0], tensors["start_A"]]), torch.cat([pair[1], -tensors["start_B"]], dim=1)


def _plain_factors(tensors: Tensors) -> tuple[Tensor, Tensor]:
    return tensors["lora_A"], tensors["lora_B"]


def _plain_apply(
    out: Tensor, term: Tensor, scaling: float, tensors: Tensors, rows: Tensor | None, base: Base
) -> Tensor:
    return add_term(out, term, scaling, rows)


def _plain_delta(tensors: Tensors, pair: tuple[Tensor, Tensor], scaling: float, base: Base) -> Tensor:
    weight = base.matrix()
    return delta_weight(*pair, scaling, weight.dtype, base.groups)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Variant:
    """A way to parametrize the update of one weight, or a trait that is added to one.

    Args:
        name: name in configurations and messages.
        shapes: (request, shapes so far) -> shapes of the tensors this variant adds; names of what it takes over may
            be dropped from what came before.
        init: (request, name of the initialization, tensors so far) -> values of the tensors it adds.
        factors: tensors -> (A, B) of the update; None leaves them to another variant.
        apply: (output, term, scaling, tensors, rows, base) -> output; None adds the scaled term.
        delta: (tensors, (A, B), scaling, base) -> the update of W in the dtype of ``base.matrix()``, shape (O, K);
            None means scaling * B A.
        shift: tensors -> what is added to the output, times the scaling, shape (O); None for nothing.
        frozen: names of tensors that are not trained.
        shared: (in_features, out_features, rank, seed), the largest of all sites -> tensors that all sites of an
            adapter read, or None.
        cut: (shared tensors, request) -> this site's cut of them.
        reads: its first values come from the weight.
        linear: updates may be weighted and mixed.
        scaled: alpha / rank applies; otherwise the scaling is 1.
        kinds: kinds of site it applies to; None means all.
        excludes: names of variants it does not combine with.
    """

    name: str
    shapes: Callable[[Request, dict[str, Shape]], dict[str, Shape]] | None = None
    init: Callable[[Request, str, dict[str, Tensor]], dict[str, Tensor]] | None = None
    factors: Callable[[Tensors], tuple[Tensor, Tensor]] | None = None
    apply: Callable[[Tensor, Tensor, float, Tensors, Tensor | None, Base], Tensor] | None = None
    delta: Callable[[Tensors, tuple[Tensor, Tensor], float, Base], Tensor] | None = None
    shift: Callable[[Tensors], Tensor] | None = None
    frozen: frozenset[str] = frozenset()
    shared: Callable[[int, int, int, int], dict[str, Tensor]] | None = None
    cut: Callable[[Mapping[str, Any], Request], dict[str, Tensor]] | None = None
    reads: bool = False
    linear: bool = True
    scaled: bool = True
    kinds: frozenset[str] | None = None
    excludes: frozenset[str] = frozenset()


class Combined:
    """Several variants as one; what a layer and a merge work with."""

    def __init__(self, parts: tuple[Variant, ...]) -> None:
        self.parts = parts
        self.names = tuple(part.name for part in parts)
        self.frozen = frozenset[str]().union(*(part.frozen for part in parts))
        self.reads = any(part.reads for part in parts)
        self.linear = all(part.linear for part in parts)
        self.scaled = all(part.scaled for part in parts)
        self.shared: Any = self._one("shared", None)
        self.cut: Any = self._one("cut", None)
        self.factors: Any = self._one("factors", _plain_factors)
        self.apply: Any = self._one("apply", _plain_apply)
        self.delta: Any = self._one("delta", _plain_delta)
        self.shift: Any = self._one("shift", None)
        self.factored = all(part.delta is None for part in parts)
        hooks = ("factors", "apply", "delta", "shift", "shared")
        self.plain = not any(getattr(part, hook) is not None for part in parts for hook in hooks)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by names; a copy is the same object."""
        from deltaw.variants import variant_of

        return variant_of, (self.names,)

    def _one(self, hook: str, default: Any) -> Any:
        """The one variant's function for a hook, or the plain one."""
        found = [part for part in self.parts if getattr(part, hook) is not None]
        if len(found) > 1:
            raise _clash(found[0].name, found[1].name, f"both say how the {hook} is made")
        return getattr(found[0], hook) if found else default

    def shapes(self, request: Request) -> dict[str, Shape]:
        """Shapes of all tensors of an update.

        Args:
            request: sizes.

        Returns:
            name -> shape, those that are stored at each site.
        """
        found: dict[str, Shape] = {}
        for part in self.parts:
            if part.shapes is not None:
                found = part.shapes(request, found)
        return found

    def init(self, request: Request, init: str) -> dict[str, Tensor]:
        """First values of all tensors of an update.

        Args:
            request: sizes, seed, and the weight where it is asked for.
            init: name of the initialization.

        Returns:
            name -> values, fp32.
        """
        found: dict[str, Tensor] = {}
        for part in self.parts:
            if part.init is not None:
                found = part.init(request, init, found)
        return found

    def parameters(self, request: Request) -> int:
        """Number of trained values of an update.

        Args:
            request: sizes.

        Returns:
            Their number.
        """
        shapes = self.shapes(request)
        return sum(math.prod(shape) for name, shape in shapes.items() if name not in self.frozen)

    def applies_to(self, kind: str) -> Variant | None:
        """The variant that does not apply to a kind of site, if there is one.

        Args:
            kind: name of the kind.

        Returns:
            The first variant that stands in the way, or None.
        """
        return next((part for part in self.parts if part.kinds is not None and kind not in part.kinds), None)


def _clash(first: str, second: str, why: str) -> ConfigError:
    return ConfigError(
        "these variants do not combine",
        where="LoRAConfig.variant",
        got=f"{first!r} and {second!r}",
        expected="variants that leave each other's part alone",
        hint=f"choose one: {why}.",
    )


def check_combination(parts: tuple[Variant, ...]) -> None:
    """Refuse variants that exclude each other.

    Args:
        parts: the variants.

    Raises:
        ConfigError: naming the two.
    """
    for part in parts:
        for other in parts:
            if other.name in part.excludes:
                raise _clash(part.name, other.name, f"{part.name} leaves no room for {other.name}")


@functools.cache
def combine(parts: tuple[Variant, ...]) -> Combined:
    """Put variants together.

    Args:
        parts: the variants, the first of which brings A and B.

    Returns:
        Their combination; the same object for the same variants.

    Raises:
        ConfigError: if they do not combine.
    """
    check_combination(parts)
    return Combined(parts)
