"""What a model wears: the record that its layers read on every forward.

Attached, active and trainable are three separate facts. *Attached* is the record's list of adapters; *active* is its
mix, or an override in the current context; *trainable* is ``requires_grad`` and nothing else.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from deltaw.config import LoRAConfig
from deltaw.errors import StateError, nearest
from deltaw.pages import Room
from deltaw.routing import Route, Seats
from deltaw.tree import base_modules, require_model

if TYPE_CHECKING:
    from deltaw.bank import AdapterBank
    from deltaw.keep import Kept

__all__ = ["RECORD", "Mix", "Record", "Worn", "find_record", "record_of"]

Mix: TypeAlias = tuple[tuple[str, float], ...]
"""Active adapters and their weights; empty means the base alone."""

RECORD = "_deltaw_record"
# keyed by id(record): a copied model has a record of its own and is not touched by an override of the original
_OVERRIDES: ContextVar[Mapping[int, _Override]] = ContextVar("deltaw_overrides", default=MappingProxyType({}))
_COUNTING = threading.Lock()


Traced: TypeAlias = tuple[tuple[str, "float | Tensor"], ...]
"""A mix as a compiled graph reads it: a weight other than 1 is a tensor, so that changing it compiles nothing."""


class _Here(threading.local):
    """What compiled graphs read instead of the context variable, which cannot be traced: this thread's override."""

    def __init__(self) -> None:
        # runs once in every thread; an attribute of the class would not be guarded by compiled graphs
        self.traced: Traced | None = None
        self.slots: Slots | None = None
        self.seats: Seats | None = None
        self.unseen = 0
        """Open blocks of tasks, which take turns in one thread, so that graphs cannot read them. While there are any,
        layers read the context variable, which ends a graph there and is right."""

    def __reduce__(self) -> tuple[type[_Here], tuple[()]]:
        """A copy starts without an override, as a new thread does."""
        return _Here, ()


def _in_task() -> bool:
    """Whether this runs in an event loop, where other tasks may run before a block ends."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _traced(mix: Mix) -> Traced:
    return tuple((name, 1.0 if weight == 1.0 else torch.tensor(weight)) for name, weight in mix)


Slots: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""A mix as a compiled graph for inference reads it: (place among the attached adapters, weight), both as tensors, so
that choosing another adapter compiles nothing."""


def _slots(mix: Mix, names: Iterable[str]) -> Slots:
    places = {name: place for place, name in enumerate(names)}
    return tuple((torch.tensor([places.get(name, 0)]), torch.tensor(weight)) for name, weight in mix)


@dataclass(eq=False)
class _Override:
    """One block's choice; a task that was started in the block and outlives it finds it closed."""

    mix: Mix
    outer: _Override | None
    open: bool = True


@dataclass
class Worn:
    """One attached adapter.

    Args:
        config: its configuration; patterns that are no strings are replaced by the paths they chose.
        foreign: fields of the adapter's own configuration file that deltaw does not interpret.
        metadata: what its file said about itself.
        linear: whether it is a plain update that can be mixed; copies, biases, trained rows and DoRA cannot.
    """

    config: LoRAConfig
    foreign: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    linear: bool = True


@dataclass(kw_only=True)
class Record:
    """What one model wears.

    Args:
        mix: the lasting choice of active adapters.
        adapters: attached adapters by name.
        modules: path -> every module whose class was exchanged.
        flags: parameter name -> requires_grad before the first attach.
        merged: what an unmerge needs, while merged.
        room: memory for what a merge keeps.
        overrides: number of contexts that override the mix; lets the forward skip the context variable.
        hook: handle of the model's hook on loading state dicts.
        loading: the missing keys of the last load, and whether its state dict spoke of adapters.
        here: the override that compiled graphs of this thread see.
        bank: the stacked slots of its adapters, where there are any.
    """

    mix: Mix = ()
    adapters: dict[str, Worn] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    merged: Kept | None = None
    room: Room = field(default_factory=Room)
    overrides: int = 0
    hook: Any = None
    loading: tuple[list[str], bool] = field(default_factory=lambda: ([], False))
    here: _Here = field(default_factory=_Here)
    bank: AdapterBank | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep what compiled graphs read of the mix beside it."""
        object.__setattr__(self, name, value)
        if name == "mix":
            object.__setattr__(self, "lasting", _traced(value))
            object.__setattr__(self, "lasting_slots", _slots(value, self.__dict__.get("adapters", ())))

    def traced(self) -> Traced:
        """The mix in force for the compiled graph that is being traced or guarded.

        Returns:
            Names and weights.
        """
        lasting: Traced = self.__dict__["lasting"]
        return lasting if self.here.traced is None else self.here.traced

    def slots(self) -> Slots:
        """The mix in force for a compiled graph that only infers.

        Returns:
            Places among the attached adapters, and weights.
        """
        lasting: Slots = self.__dict__["lasting_slots"]
        return lasting if self.here.slots is None else self.here.slots

    def route(self) -> Route | Seats | None:
        """The route in force here, if it is one.

        Returns:
            The route, in a compiled graph its tensors; None where the whole batch has one choice.
        """
        if torch.compiler.is_compiling() and not self.here.unseen:
            return self.here.seats
        if not self.overrides:
            return None
        mix = self.current()
        return mix if isinstance(mix, Route) else None

    def current(self) -> Mix:
        """The mix in force here: the context's override, or the lasting one.

        Returns:
            Names and weights.
        """
        if self.overrides:
            found = _OVERRIDES.get().get(id(self))
            while found is not None and not found.open:
                found = found.outer
            return self.mix if found is None else found.mix
        return self.mix

    @contextmanager
    def override(self, mix: Mix) -> Iterator[None]:
        """Put a mix in force for this thread or task only.

        Args:
            mix: the mix.

        Yields:
            Nothing.
        """
        present = _OVERRIDES.get()
        here = _Override(mix, present.get(id(self)))
        token = _OVERRIDES.set({**present, id(self): here})
        outer, unseen = (self.here.traced, self.here.slots, self.here.seats), _in_task()
        if unseen:
            self.here.unseen += 1
        elif isinstance(mix, Route):
            self.here.seats = mix.seats
        else:
            self.here.traced, self.here.slots, self.here.seats = _traced(mix), _slots(mix, self.adapters), None
        with _COUNTING:
            self.overrides += 1
        try:
            yield
        finally:
            here.open = False
            if unseen:
                self.here.unseen -= 1
            else:
                self.here.traced, self.here.slots, self.here.seats = outer
            with _COUNTING:
                self.overrides -= 1
            _OVERRIDES.reset(token)

    def resolve(self, choice: str | Mapping[str, float] | None) -> Mix:
        """Validate a choice of active adapters.

        Args:
            choice: a name, name -> weight, or None for the base alone.

        Returns:
            The mix; zero weights are left out.

        Raises:
            StateError: if a name is unknown, a weight is not finite, or an adapter cannot be mixed.
        """
        if not (choice is None or isinstance(choice, str | Mapping)):
            raise StateError(
                "this chooses no adapter",
                where="the choice of adapters",
                got=repr(choice),
                expected="a name, a mapping of names to weights, or None",
                hint='for several adapters give weights: {"a": 0.5, "b": 0.5}.',
            )
        weights = {} if choice is None else {choice: 1.0} if isinstance(choice, str) else dict(choice)
        for name, weight in weights.items():
            if name not in self.adapters:
                raise StateError(
                    "no such adapter",
                    where=f"adapter {name!r}",
                    got=repr(name),
                    expected=", ".join(map(repr, self.adapters)) or "an attached adapter",
                    hint=f"nearest: {nearest(str(name), self.adapters)}.",
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
                raise StateError(
                    "the weight of an adapter is a finite number",
                    where=f"adapter {name!r}",
                    got=repr(weight),
                    expected="a number such as 0.7",
                    hint='pass {"name": weight}.',
                )
        mix = tuple((name, float(weight)) for name, weight in weights.items() if weight)
        for name, weight in mix:
            if not self.adapters[name].linear and (len(mix) > 1 or weight != 1.0):
                raise StateError(
                    "an adapter that is more than a plain low-rank update cannot be mixed or weighted",
                    where=f"adapter {name!r}",
                    got=f"weights {dict(mix)}",
                    expected="that adapter alone, at weight 1",
                    hint=f"use active(model, {name!r}).",
                )
        return mix

    def require_in_place(self, model: nn.Module, verb: str) -> None:
        """Refuse a verb when an adapted module was replaced, as by a resize of the vocabulary.

        Args:
            model: the model, unwrapped.
            verb: what was asked for.

        Raises:
            StateError: if another module stands at the place of an adapted one.
        """
        present = dict(base_modules(model))
        gone = next((path for path, module in self.modules.items() if present.get(path) is not module), None)
        if gone is not None:
            raise StateError(
                f"cannot {verb}: an adapted module was replaced since the attach",
                where=f"module '{gone}'",
                got=f"another {type(present.get(gone)).__name__} stands there, without the adapter",
                expected="the module that was adapted",
                hint="put the old module back; resize or replace modules before attach.",
            )

    def require_unmerged(self, verb: str) -> None:
        """Refuse a verb while adapters are merged into the weights.

        Args:
            verb: what was asked for.

        Raises:
            StateError: if the model is merged.
        """
        if self.merged is not None:
            raise StateError(
                f"cannot {verb} while adapters are merged into the base",
                where=f"merged: {', '.join(f'{name} x {weight:g}' for name, weight in self.merged.mix)}",
                got="a merged model",
                expected="the base beside its adapters",
                hint="call deltaw.unmerge(model) first.",
            )


def find_record(model: nn.Module) -> Record | None:
    """The record of a model, if it wears anything.

    Args:
        model: the model given to ``attach``, or a wrapper of it.

    Returns:
        The record or None.

    Raises:
        ModelError: if it is no model.
    """
    found = require_model(model).__dict__.get(RECORD)
    return found if isinstance(found, Record) else None


def record_of(model: nn.Module, verb: str) -> Record:
    """The record of a model that must wear something.

    Args:
        model: the model given to ``attach``, or a wrapper of it.
        verb: what is to be done, for the message.

    Returns:
        The record.

    Raises:
        StateError: if no adapter is attached.
    """
    record = find_record(model)
    if record is None:
        raise StateError(
            f"cannot {verb}: the model has no adapter",
            where=type(model).__name__,
            got="a plain model",
            expected="a model that attach or load was called on",
            hint="pass the same model object that was given to deltaw.attach.",
        )
    return record
