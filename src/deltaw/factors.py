"""The tensors of one update: A and B of a weight or of a slice of it, and what a variant keeps beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from deltaw.config import LoRAConfig
from deltaw.dropout import Dropping
from deltaw.initialize import Request, seed_for
from deltaw.sites import Part, Site, request_for
from deltaw.tree import set_plain
from deltaw.variants import Tensors
from deltaw.variants.base import joined

__all__ = ["Factors", "Pair", "Shared", "SiteLoRA", "SlicedLoRA", "WholeLoRA", "cut", "site_lora", "slot"]


class Pair(NamedTuple):
    """One update as a forward or a merge reads it.

    Args:
        part: rank, scaling, rows and variant.
        tensors: its tensors by name.
        rows: int64 indices of the output features it speaks of; None means all.
    """

    part: Part
    tensors: Tensors
    rows: Tensor | None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of the whole update, what it started from included."""
        return joined(self.part.update.factors(self.tensors), self.tensors)


def cut(pair: Pair, start: int, stop: int, width: int) -> Pair | None:
    """What an update says about a range of output features.

    Args:
        pair: the update.
        start: first output feature.
        stop: one past the last.
        width: number of output features of the whole weight.

    Returns:
        The pair itself where the range is all of it; None where it says nothing there.
    """
    if (start, stop) == (0, width):
        return pair
    if pair.rows is None:
        tensors = {n: t.narrow(0, start, stop - start) if n in _PER_OUTPUT else t for n, t in pair.tensors.items()}
        device = next(iter(tensors.values())).device
        return Pair(pair.part, tensors, torch.arange(stop - start, device=device))
    own = pair.rows
    chosen = ((own >= start) & (own < stop)).nonzero().view(-1)
    if not len(chosen):
        return None
    tensors = {n: t.index_select(0, chosen) if n in _PER_OUTPUT else t for n, t in pair.tensors.items()}
    return Pair(pair.part, tensors, own[chosen] - start)


_PER_OUTPUT = frozenset({"lora_B", "start_B", "magnitude", "bias_B", "vera_b", "vera_B"})


class Shared(nn.Module):
    """Frozen tensors that all sites of an adapter read; the adapter's first site holds them.

    Args:
        tensors: name -> values.
        device: where they live.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(device))

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take other values, of whatever size covers all sites.

        Args:
            tensors: name -> values.
        """
        for name, tensor in tensors.items():
            own = self._buffers[name]
            assert own is not None
            self.register_buffer(name, tensor.to(own.device, own.dtype, copy=True))


class Factors(nn.Module):
    """The tensors of one weight, or of one slice of it: those that are trained as parameters, the others as buffers.

    Args:
        part: rank, scaling, rows and variant.
        request: sizes and seed of this place, and where its first values come from.
        device: where the tensors live.
        shared: tensors that all sites read, or None.
    """

    part: Part
    request: Request
    shared: list[Shared]
    plain: bool
    lora_A: Tensor
    lora_B: Tensor
    rows: Tensor | None

    def __init__(self, part: Part, request: Request, device: torch.device, shared: Shared | None = None) -> None:
        super().__init__()
        set_plain(
            self,
            part=part,
            # the base's weight is asked for once, here; a copied or pickled adapter must not carry it along
            request=request.bare(),
            # a list hides the shared tensors from the module tree, where they already have a name
            shared=[] if shared is None else [shared],
            plain=part.update.plain and not part.subtract and not part.rows,
        )
        for name, shape in part.update.shapes(request).items():
            tensor = torch.empty(shape, device=device)
            # the names are the variants' own: nothing that registering them one by one would refuse
            if name in part.update.frozen:
                self._buffers[name] = tensor
            else:
                self._parameters[name] = nn.Parameter(tensor)
        self._buffers["rows"] = torch.empty(part.out_features, dtype=torch.long, device=device) if part.rows else None
        self._non_persistent_buffers_set.add("rows")
        self._draw(request)

    def _is_meta(self) -> bool:
        own = (*self._parameters.values(), *self._buffers.values())
        return next(tensor for tensor in own if tensor is not None).is_meta

    def _draw(self, request: Request) -> None:
        if self._is_meta():
            return
        values = self.part.update.init(request, request.init)
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                if name in values:
                    tensor.copy_(values[name].reshape(tensor.shape))
        if self.rows is not None:
            self.rows.copy_(torch.cat([torch.arange(start, stop) for start, stop in self.part.rows]))

    def tensors(self) -> dict[str, Any]:
        """Every tensor of the update by name, this site's cut of shared ones included.

        Returns:
            name -> tensor.
        """
        found: dict[str, Any] = {**self._parameters, **self._buffers}
        found.pop("rows")
        if self.shared:
            device = next(iter(found.values())).device
            cut = self.part.update.cut(self.shared[0]._buffers, self.request)
            found |= {name: tensor.to(device) for name, tensor in cut.items()}
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Factors:
        """Leaving the meta device yields memory without content: fill it as ``attach`` would have."""
        meta = self._is_meta()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if meta and not self._is_meta():
            self._draw(self.request)
        return self


class WholeLoRA(Dropping, Factors):
    """One adapter at one site, over the whole weight: ``lora_A`` and ``lora_B`` themselves."""

    def parts(self) -> Iterator[Pair]:
        """The updates.

        Yields:
            The one pair.
        """
        yield Pair(self.part, self.tensors(), self.rows)

    def tensors(self) -> dict[str, Any]:
        """Every tensor of the update by name, without the trained bias that stands beside it.

        Returns:
            name -> tensor.
        """
        found = super().tensors()
        found.pop("bias", None)
        return found


class SlicedLoRA(Dropping):
    """One adapter at one fused projection: a child with ``lora_A`` and ``lora_B`` for each slice."""

    def parts(self) -> Iterator[Pair]:
        """The updates.

        Yields:
            One pair for each slice.
        """
        for factors in self._modules.values():
            if isinstance(factors, Factors):
                yield Pair(factors.part, factors.tensors(), factors.rows)


SiteLoRA: TypeAlias = WholeLoRA | SlicedLoRA


def slot(name: str) -> str:
    """Child name of a slice: explicit rows such as ``0:64`` are no attribute name as they are.

    Args:
        name: slice name.

    Returns:
        A name a module can have.

    Example:
        >>> slot("q"), slot("0:64")
        ('q', 'rows_0_64')
    """
    return f"rows_{name.replace(':', '_')}" if ":" in name else name


def site_lora(
    site: Site, config: LoRAConfig, device: torch.device, shared: Shared | None = None, data: Tensor | None = None
) -> SiteLoRA:
    """Make the module of one adapter at one site, with its first values drawn.

    Args:
        site: where, and what to hold.
        config: dropout, initialization and seed.
        device: where the tensors live.
        shared: tensors that all sites read, or None.
        data: what was gathered for this site, for initializations that start from data.

    Returns:
        The module, in training mode.
    """
    seed = torch.initial_seed() if config.seed is None else config.seed
    made: SiteLoRA
    if not site.parts[0].name:
        request = request_for(site, site.parts[0], config.init, seed_for(seed, site.path), data)
        made = WholeLoRA(site.parts[0], request, device, shared)
    else:
        made = SlicedLoRA()
        for part in site.parts:
            request = request_for(site, part, config.init, seed_for(seed, site.path, part.name), data)
            made.add_module(slot(part.name), Factors(part, request, device, shared))
    made.start(config, site.kind.droppable, seed, site.path)
    return made
