"""The small modules that hold an adapter's tensors beside the weight they adapt.

They are real submodules, so optimizers, ``.to()``, ``state_dict`` and checkpointing see them without help::

    layers.0.q_proj                  the base layer, same object, same path
    layers.0.q_proj.lora             Adapters, one entry per adapter
    layers.0.q_proj.lora.default     WholeLoRA with lora_A (R, I) and lora_B (O, R)
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from deltaw.config import LoRAConfig
from deltaw.errors import StateError
from deltaw.functional import drop
from deltaw.initialize import Request, seed_for, swapped
from deltaw.layers.kind import Kind
from deltaw.record import RECORD, Record
from deltaw.sites import Part
from deltaw.tree import CONTAINER
from deltaw.variants import VARIANTS

__all__ = [
    "Adapters",
    "BiasOnly",
    "Factors",
    "FullCopy",
    "SiteLoRA",
    "SlicedLoRA",
    "Twin",
    "WholeLoRA",
    "note_load",
    "site_lora",
    "slot",
]


class Factors(nn.Module):
    """A and B of one weight, or of one slice of it.

    Args:
        part: rank, scaling and rows.
        in_features: I.
        zero: which factor starts at zero.
        init: name of the initialization.
        seed: seed of this place.
        device: where the tensors live.
    """

    lora_A: Tensor
    lora_B: Tensor
    rows: Tensor | None

    def __init__(self, part: Part, in_features: int, zero: str, init: str, seed: int, device: torch.device) -> None:
        super().__init__()
        self.part, self.in_features, self.zero, self.init, self.seed = part, in_features, zero, init, seed
        self.lora_A = nn.Parameter(torch.empty(part.rank, in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(part.out_features, part.rank, device=device))
        rows = torch.empty(part.out_features, dtype=torch.long, device=device) if part.rows else None
        self.register_buffer("rows", rows, persistent=False)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the first values again, from the seed."""
        if self.lora_A.is_meta:
            return
        size = self.part.out_features
        request = Request(in_features=self.in_features, out_features=size, rank=self.part.rank, seed=self.seed)
        lora_A, lora_B = swapped(request) if self.zero == "A" else VARIANTS["lora"].init(request, self.init)
        self.lora_A.copy_(lora_A)
        self.lora_B.copy_(lora_B)
        if self.rows is not None:
            self.rows.copy_(torch.cat([torch.arange(start, stop) for start, stop in self.part.rows]))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Factors:
        """Leaving the meta device yields memory without content: fill it as ``attach`` would have."""
        meta = self.lora_A.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if meta and not self.lora_A.is_meta:
            self.reset()
        return self


class _Open:
    """A forward whose backward is still to come; it ends with the backward, or when its graph is thrown away."""

    def __init__(self, among: set[int], draw: int) -> None:
        self.among, self.draw = among, draw
        among.add(draw)

    def close(self) -> None:
        """Count it no longer."""
        self.among.discard(self.draw)

    __del__ = close


class _Drop(torch.autograd.Function):
    """Inverted dropout that draws its mask again in the backward instead of keeping it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, probability: float, seed: int, here: _Open | None
    ) -> Tensor:
        ctx.probability, ctx.seed, ctx.here = probability, seed, here
        return drop(x, probability, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if ctx.here is not None:
            ctx.here.close()
        wanted = ctx.needs_input_grad[0]
        return drop(grad, ctx.probability, ctx.seed) if wanted else None, None, None, None, None


class _Dropping(nn.Module):
    """Dropout on the term's input, shared by whole and sliced sites."""

    draws: int
    open: set[int]
    loose: list[int]

    def start(self, config: LoRAConfig, droppable: bool, seed: int, path: str) -> None:
        """Set the dropout's state.

        Args:
            config: its dropout applies.
            droppable: whether the site's kind takes dropout at all.
            seed: seed of the run.
            path: path of the site.
        """
        self.dropout = config.dropout if droppable else 0.0
        self.drop_seed = seed_for(seed, path, "dropout")
        self.draws, self.open, self.loose = 0, set(), []
        self.bias: nn.Parameter | None = None

    def dropped(self, x: Tensor) -> Tensor:
        """The term's input under dropout while training, ``x`` itself otherwise.

        The masks come from this site's own counter, so the global random state is left alone. Activation
        checkpointing runs the forward again inside the backward; the same mask is then drawn again.

        Args:
            x: input of the layer.

        Returns:
            Tensor like ``x``.

        Raises:
            StateError: if several forwards are open and it cannot be told which one is being recomputed.
        """
        if not (self.training and self.dropout):
            return x
        # the anchor makes the backward come by even where x needs no gradient, as in a first block
        anchor = next((p for p in self.parameters() if p.requires_grad), None)
        here: _Open | None = None
        if torch._C._current_graph_task_id() != -1:
            draw = self._recomputed()
        else:
            self.draws = draw = self.draws + 1
            if torch.is_grad_enabled() and anchor is not None:
                here = _Open(self.open, draw)
            else:
                self.loose = [*self.loose[-1:], draw]
        seed = seed_for(self.drop_seed, str(draw))
        out: Tensor = _Drop.apply(x, anchor, self.dropout, seed, here)  # type: ignore[no-untyped-call]
        return out

    def _recomputed(self) -> int:
        """The draw that a forward inside a backward repeats: the only one that is open.

        Reentrant checkpointing runs its first forward without gradients; such a forward is loose instead.
        """
        candidates = self.open or self.loose
        if len(candidates) != 1:
            raise StateError(
                "adapter dropout cannot be recomputed: it is not clear which forward is meant",
                where=f"a layer with dropout={self.dropout} under activation checkpointing",
                got=f"{len(candidates)} open forwards",
                expected="one forward, then its backward",
                hint="run backward after each forward, or set dropout=0 or turn checkpointing off.",
            )
        if not self.open:
            self.loose = []
            return candidates[0]  # type: ignore[index]
        return next(iter(self.open))


class WholeLoRA(_Dropping, Factors):
    """One adapter at one site, over the whole weight: ``lora_A`` and ``lora_B`` themselves."""

    def parts(self) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None]]:
        """The factor pairs.

        Yields:
            (part, A, B, rows).
        """
        yield self.part, self.lora_A, self.lora_B, self.rows


class SlicedLoRA(_Dropping):
    """One adapter at one fused projection: a child with ``lora_A`` and ``lora_B`` for each slice."""

    def parts(self) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None]]:
        """The factor pairs.

        Yields:
            (part, A, B, rows).
        """
        for factors in self._modules.values():
            assert isinstance(factors, Factors)
            yield factors.part, factors.lora_A, factors.lora_B, factors.rows


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
    parts: tuple[Part, ...], kind: Kind, in_features: int, config: LoRAConfig, path: str, device: torch.device
) -> SiteLoRA:
    """Make the module of one adapter at one site, with its first values drawn.

    Args:
        parts: what to hold; rows make a slice.
        kind: the site's kind.
        in_features: I.
        config: dropout, initialization and seed.
        path: the site's path, for the seed.
        device: where the tensors live.

    Returns:
        The module, in training mode.
    """
    seed = torch.initial_seed() if config.seed is None else config.seed
    site: SiteLoRA
    if not parts[0].name:
        site = WholeLoRA(parts[0], in_features, kind.zero, config.init, seed_for(seed, path), device)
    else:
        site = SlicedLoRA()
        for part in parts:
            seed_here = seed_for(seed, path, part.name)
            site.add_module(slot(part.name), Factors(part, in_features, kind.zero, config.init, seed_here, device))
    site.start(config, kind.droppable, seed, path)
    return site


class Twin(nn.Module):
    """The same update seen from another user of a shared weight; holds no tensor of its own.

    Args:
        primary: the adapter at the first user.
        flipped: the weight is read the other way round here, so A and B exchange roles.
    """

    def __init__(self, primary: SiteLoRA, flipped: bool) -> None:
        super().__init__()
        # a list hides the primary from the module tree, where its parameters already have a name
        self.primary = [primary]
        self.flipped = flipped
        self.bias: nn.Parameter | None = None

    def parts(self) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None]]:
        """The factor pairs as this user reads them.

        Yields:
            (part, A, B, None).
        """
        for part, lora_A, lora_B, _ in self.primary[0].parts():
            yield (part, lora_B.t(), lora_A.t(), None) if self.flipped else (part, lora_A, lora_B, None)

    def dropped(self, x: Tensor) -> Tensor:
        """The input, without dropout: one mask cannot serve a lookup and a product.

        Args:
            x: input of the layer.

        Returns:
            ``x``.
        """
        return x


class BiasOnly(nn.Module):
    """A trained bias beside the base's own.

    Args:
        bias: the base's bias; its value is copied in fp32.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().to(torch.float32, copy=True))


class FullCopy(nn.Module):
    """A module trained in full, as a copy that belongs to the adapter.

    Args:
        module: the base module; the copy keeps its dtype.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = _plain_copy(module).requires_grad_(True)


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy of the base's module alone: adapters that it wears already stay behind."""
    twin = copy.deepcopy(module, {id(part): None for part in module.modules() if isinstance(part, Adapters)})
    for part in twin.modules():
        if "_deltaw_base" in type(part).__dict__:
            del part._modules[CONTAINER]
            part.__class__ = getattr(type(part), "_deltaw_base")  # noqa: B009
            if "_old_forward" in part.__dict__:
                part._old_forward = types.MethodType(type(part).forward, part)  # type: ignore[assignment]
    return twin


class Adapters(nn.Module):
    """All adapters at one module.

    Args:
        record: the model's record.
        path: the module's path.
    """

    _deltaw_container = True

    def __init__(self, record: Record, path: str) -> None:
        super().__init__()
        self.record = record
        self.path = path
        self.loaded: tuple[str, bool] = ("", False)
        self.register_load_state_dict_post_hook(_forgive)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Note whether the checkpoint speaks of adapters at all; the hook below needs to know.

        Only the model itself sees the whole checkpoint; where a part of it is loaded alone, its own keys must do.
        """
        missing, spoken = self.record.loading
        if missing is not args[2]:
            spoken = any(f".{CONTAINER}." in f".{key}" for key in state_dict)
        self.loaded = (prefix, spoken)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def worn(self) -> list[tuple[nn.Module, float]]:
        """Active adapters that have something to say here.

        Returns:
            (adapter module, weight), in the order of the mix.
        """
        entries = self._modules
        return [(entries[name], weight) for name, weight in self.record.current() if name in entries]  # type: ignore[misc]


def note_load(
    root: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *_: Any
) -> None:
    """Hook of the model itself: whether the whole checkpoint speaks of adapters.

    Args:
        root: the model.
        state_dict: what is being loaded.
        prefix: of the model's keys.
        metadata: unused.
        strict: unused.
        missing: the list of missing keys, which identifies this call.
    """
    record = root.__dict__.get(RECORD)
    if isinstance(record, Record):
        record.loading = (missing, any(f".{CONTAINER}." in f".{key}" for key in state_dict))


def _forgive(container: nn.Module, incompatible: Any) -> None:
    """Let a checkpoint of the base alone load strictly: adapters that it does not speak of stay as they are."""
    assert isinstance(container, Adapters)
    prefix, spoken = container.loaded
    if not spoken:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]
