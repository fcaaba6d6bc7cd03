"""The small modules that hold an adapter's tensors beside the weight they adapt.

They are real submodules, so optimizers, ``.to()``, ``state_dict`` and checkpointing see them without help::

    layers.0.q_proj                  the base layer, same object, same path
    layers.0.q_proj.lora             Adapters, one entry per adapter
    layers.0.q_proj.lora.default     WholeLoRA with lora_A (R, I) and lora_B (O, R); see ``factors``
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.factors import Pair, SiteLoRA, WholeLoRA
from deltaw.record import RECORD, Record
from deltaw.routing import Seats
from deltaw.sites import Part
from deltaw.tokens import TokenRows
from deltaw.tree import CONTAINER, set_plain

if TYPE_CHECKING:
    from deltaw.bank import Stack

__all__ = ["Adapters", "Beside", "FullCopy", "Reader", "Slot", "Twin", "note_load", "trained_bias"]


_OTHER = {"lora_A": "lora_B", "lora_B": "lora_A", "start_A": "start_B", "start_B": "start_A"}


class Twin(nn.Module):
    """The same update seen from another user of a shared weight; holds no tensor of its own.

    Args:
        primary: the adapter at the first user.
        flipped: the weight is read the other way round here, so A and B exchange roles.
    """

    def __init__(self, primary: SiteLoRA | Beside, flipped: bool) -> None:
        super().__init__()
        # a list hides the primary from the module tree, where its parameters already have a name
        self.primary = [primary]
        self.flipped = flipped
        self.bias: nn.Parameter | None = None

    @property
    def tokens(self) -> TokenRows | None:
        """Rows that are trained at the first user."""
        return self.primary[0].tokens

    def parts(self) -> Iterator[Pair]:
        """The updates as this user reads them.

        Yields:
            The primary's pairs; where the weight is read the other way round, A and B exchange roles.
        """
        for pair in getattr(self.primary[0], "parts", tuple)():
            yield (
                pair
                if not self.flipped
                else Pair(pair.part, {_OTHER[name]: tensor.t() for name, tensor in pair.tensors.items()}, None)
            )

    def dropped(self, x: Tensor) -> Tensor:
        """The input, without dropout: one mask cannot serve a lookup and a product.

        Args:
            x: input of the layer.

        Returns:
            ``x``.
        """
        return x


class Beside(nn.Module):
    """What an adapter trains at a module without a low-rank update: its bias, or some of its rows.

    Args:
        bias: the base's bias, of which a copy in fp32 is trained; None for none.
        tokens: rows that are trained; None for none.
    """

    def __init__(self, bias: Tensor | None = None, tokens: TokenRows | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else trained_bias(bias)
        self.tokens = tokens


class Reader(nn.Module):
    """The mark of an adapter on a module that reads its children's weights itself; it holds nothing."""


def trained_bias(bias: Tensor) -> nn.Parameter:
    """A bias that is trained beside the base's own.

    Args:
        bias: the base's.

    Returns:
        A copy in fp32.
    """
    return nn.Parameter(bias.detach().to(torch.float32, copy=True))


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
        raw: the weight's attribute is adapted instead of the forward.
    """

    _deltaw_container = True

    record: Record
    path: str
    raw: bool
    loaded: tuple[str, bool]
    stack: Stack | None

    def __init__(self, record: Record, path: str, raw: bool = False) -> None:
        super().__init__()
        set_plain(self, record=record, path=path, raw=raw, loaded=("", False), stack=None)
        self.register_load_state_dict_post_hook(_forgive)  # type: ignore[no-untyped-call]
        self.register_state_dict_post_hook(_dense)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Adapters:
        """What was moved or cast leaves its slot; take it in again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.stack is not None:
            self.stack.relink(self._modules)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Note whether the checkpoint speaks of adapters at all; the hook below needs to know.

        Only the model itself sees the whole checkpoint; where a part of it is loaded alone, its own keys must do.
        """
        missing, spoken = self.record.loading
        if missing is not args[2]:
            spoken = any(f".{CONTAINER}." in f".{key}" for key in state_dict)
        self.loaded = (prefix, spoken)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _alike(self) -> bool:
        """Whether every adapter here is one plain update of a whole weight, so that they stack."""
        return all(
            isinstance(entry, WholeLoRA)
            and entry.part.variant == ("lora",)
            and not entry.part.subtract
            and entry.lora_A.dim() == 2
            and entry.tokens is None
            and entry.bias is None
            for entry in self._modules.values()
        )

    def serves(self, seats: Seats) -> bool:
        """Whether a compiled graph takes its factors from the bank alone, so that it survives attach and detach.

        Args:
            seats: the route.

        Returns:
            True in inference, where all adapters of the model are in the bank.
        """
        return seats.banked and self.stack is not None and not self.training and not torch.is_grad_enabled()

    def worn(self) -> list[tuple[Any, Any]]:
        """Active adapters that have something to say here.

        Returns:
            (adapter module, weight), in the order of the mix.
        """
        entries = self._modules
        if torch.compiler.is_compiling() and not self.record.here.unseen:
            if self.record.here.seats is not None:
                # one graph serves every routing, so every adapter is in it; what others read is never routed
                if self.serves(self.record.here.seats):
                    return [(self.stack, 1.0)]
                return [] if self.raw else [(entry, 1.0) for entry in entries.values()]
            if not torch.is_grad_enabled() and not self.training and self._alike():
                names = list(self.record.adapters)
                return [(Slot(self, names, place), weight) for place, weight in self.record.slots()]
            return [(entries[name], weight) for name, weight in self.record.traced() if name in entries]
        return [(entries[name], weight) for name, weight in self.record.current() if name in entries]


class Slot:
    """Whichever of the attached adapters a tensor names, for compiled graphs that only infer.

    All adapters of the module are stacked, shorter ranks padded with zeros, and one is taken out by its place; those
    that leave the module alone are zeros.

    Args:
        container: the module's adapters.
        names: attached adapters, in order.
        place: which one, shape (1,).
    """

    tokens = None
    bias = None

    def __init__(self, container: Adapters, names: list[str], place: Tensor) -> None:
        self.container, self.names, self.place = container, names, place

    def dropped(self, x: Tensor) -> Tensor:
        """The input: nothing is dropped in inference.

        Args:
            x: input of the layer.

        Returns:
            ``x``.
        """
        return x

    def parts(self) -> Iterator[Pair]:
        """The one update, its scaling in B.

        Yields:
            The pair.
        """
        entries: list[Any] = [self.container._modules.get(name) for name in self.names]
        known = [entry for entry in entries if entry is not None]
        rank = max(entry.part.rank for entry in known)
        first, place = known[0], self.place.to(known[0].lora_A.device)
        zeros = first.lora_A.new_zeros(rank, first.lora_A.shape[1]), first.lora_B.new_zeros(len(first.lora_B), rank)
        stacks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for entry in entries:
            if entry is None:
                pair = zeros
            else:
                missing = rank - entry.part.rank
                wide = F.pad(entry.lora_A, (0, 0, 0, missing)), F.pad(entry.lora_B, (0, missing))
                pair = (wide[0], wide[1] * entry.part.scaling)
            stacks[0].append(pair[0])
            stacks[1].append(pair[1])
        chosen = [torch.stack(stack).index_select(0, place).squeeze(0) for stack in stacks]
        yield Pair(_ALONE, {"lora_A": chosen[0], "lora_B": chosen[1]}, None)


_ALONE = Part(name="", rank=1, alpha=1.0, scaling=1.0, out_features=1)
"""What a slot says of itself: nothing but the plain update, its scaling in B."""


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
    if container.stack is not None:
        container.stack.relink(container._modules)
    prefix, spoken = container.loaded
    if not spoken:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]


def _dense(container: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Write what is a transposed view of a bank in the usual layout: other formats take nothing else."""
    assert isinstance(container, Adapters)
    for key in [key for key in state if key.startswith(prefix)] if container.stack is not None else ():
        if not isinstance(state[key], nn.Parameter):
            state[key] = state[key].contiguous()
