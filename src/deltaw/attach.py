"""The verbs that put adapters on and take them off: attach, detach, active, activate, disabled, freeze, unfreeze.

Merging is in ``merge``. No verb here writes to a base weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltaw.carry import listen
from deltaw.config import LoRAConfig
from deltaw.errors import ConfigError
from deltaw.gather import gather
from deltaw.layer import container_of, is_lora, refuse_shadowed, take_off
from deltaw.place import place, touched
from deltaw.pretrained import stand_down, stand_in
from deltaw.record import RECORD, Record, Worn, find_record, record_of
from deltaw.refuse import refuse_foreign, refuse_meta, refuse_name, refuse_order, refuse_two_ways, seat
from deltaw.reports import count, plural
from deltaw.routing import Names
from deltaw.sites import Plan, Site
from deltaw.targets import plan
from deltaw.tree import base_modules, require_model

__all__ = [
    "AttachReport", "DetachReport", "activate", "active", "attach", "attach_plan", "attached", "detach", "disabled",
    "draws", "freeze", "route", "set_draws", "trainable", "unfreeze",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AttachReport:
    """What ``attach`` did.

    Args:
        name: the adapter's name.
        plan: the plan that was carried out.
        parameters: number of trainable values added.
    """

    name: str
    plan: Plan
    parameters: int

    @property
    def sites(self) -> tuple[Site, ...]:
        """The adapted sites."""
        return self.plan.sites

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return self.plan.notes

    def __str__(self) -> str:
        """The plan's table under a line that names the adapter."""
        return f"attached {self.name!r} to {plural(len(self.sites), 'module')}\n{self.plan}"


@dataclass(frozen=True, kw_only=True)
class DetachReport:
    """What ``detach`` did.

    Args:
        names: adapters taken off.
        left: adapters still attached.
        restored: modules whose class was given back.
    """

    names: tuple[str, ...]
    left: tuple[str, ...]
    restored: int

    def __str__(self) -> str:
        """One line."""
        left = f"; still attached: {', '.join(self.left)}" if self.left else "; the base is as it was"
        return f"detached {', '.join(self.names)}, {plural(self.restored, 'module')} restored{left}"


def _recorded(config: LoRAConfig, made: Plan) -> LoRAConfig:
    """The configuration as it can be stored: types and predicates become the paths they chose."""

    def strings(patterns: Any, paths: list[str]) -> tuple[str, ...]:
        if all(isinstance(pattern, str) for pattern in patterns):
            return tuple(patterns)
        return tuple(sorted(paths))

    sites = [
        site.path + (f"[{','.join(p.name for p in site.parts)}]" if site.parts[0].name else "") for site in made.sites
    ]
    exclude = () if not all(isinstance(p, str) for p in config.exclude) else config.exclude  # type: ignore[union-attr]
    also = strings(config.train_also, [path for path, _ in made.copies])
    return config.replace(targets=strings(config.targets, sites) or ("all-linear",), exclude=exclude, train_also=also)


def refuse_before(model: nn.Module, made: Plan, name: str, loading: bool = False) -> None:
    """Refuse what can be known before anything is touched.

    Args:
        model: what the user passed.
        made: the plan.
        name: name of the new adapter.
        loading: whether an adapter's file is to be filled in.

    Raises:
        StateError: if the name is taken, or the model is merged, sharded or compiled.
        TargetError: if a module's forward is shadowed.
    """
    root = require_model(model)
    record = find_record(root)
    if record is not None:
        record.require_unmerged("attach")
    refuse_name(record, name)
    modules = list(base_modules(root))
    refuse_order(modules, model)
    refuse_foreign(modules, record)
    refuse_meta(made, loading)
    for path, module in touched(made):
        refuse_shadowed(path, module)
    refuse_two_ways(made)


def attach(
    model: nn.Module,
    config: LoRAConfig | None = None,
    name: str = "default",
    *,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> AttachReport:
    """Put a new adapter on a model: frozen base, trainable adapter, output unchanged.

    The base's parameters are frozen (their flags come back on ``detach``), the adapter is trainable and becomes the
    active one. A refused call leaves the model as it was.

    Args:
        model: any model.
        config: what to adapt; None means the defaults.
        name: name of the adapter.
        batches: inputs of the model (mappings, tuples or tensors) for an initialization that starts from data.
        loss: output of the model -> scalar, for one that needs gradients; None takes ``output.loss``.

    Returns:
        A report that prints as a table.

    Raises:
        ConfigError: if the initialization needs batches and there are none, or the other way round.
        TargetError: if a pattern matches nothing or something that cannot be adapted.
        TieError: if a target's weight is shared and the policy refuses it.
        StateError: if the name is taken, or the model is merged, sharded or compiled.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> attach(net, LoRAConfig(targets=["1"], rank=2)).parameters
        12
    """
    made = plan(model, config)
    refuse_before(model, made, name)
    return _carry_out(model, made, name, True, None, gather(model, made, batches, loss))


def attach_plan(
    model: nn.Module,
    made: Plan,
    name: str = "default",
    *,
    trainable: bool = True,
    worn: Worn | None = None,
    data: Mapping[str, Tensor] | None = None,
) -> AttachReport:
    """Carry out a plan.

    Args:
        model: the model it was made for.
        made: the plan.
        name: name of the adapter.
        trainable: whether the adapter's parameters require gradients.
        worn: what the record keeps about the adapter; None for a new one.
        data: path -> what was gathered for an initialization that starts from data.

    Returns:
        The report.

    Raises:
        StateError: as ``attach``.
        TargetError: if a module's forward is shadowed.
    """
    refuse_before(model, made, name, loading=worn is not None)
    return _carry_out(model, made, name, trainable, worn, data)


def _carry_out(
    model: nn.Module, made: Plan, name: str, trainable: bool, worn: Worn | None, data: Mapping[str, Tensor] | None
) -> AttachReport:
    """Carry out a plan that nothing stands against."""
    root = require_model(model)
    record = find_record(root)
    if record is None:
        record = Record()
        root.__dict__[RECORD] = record
        record.hook = listen(root)
        for key, parameter in root.named_parameters():
            record.flags[key] = parameter.requires_grad
            parameter.requires_grad_(False)
        stand_in(root)
    try:
        place(made, name, record, data or {})
        if record.bank is not None:
            record.bank.adopt(name)
    except BaseException:
        _remove(root, record, [name])
        raise
    linear = not made.copies and not made.biases and not made.tokens
    linear = linear and all(part.update.linear for site in made.sites for part in site.parts)
    record.adapters[name] = worn or Worn(_recorded(made.config, made))
    record.adapters[name].linear = linear
    record.mix = ((name, 1.0),)
    if not trainable:
        _set_flags(record, name, False)
    return AttachReport(name=name, plan=made, parameters=made.parameters)


def _entries(record: Record, name: str) -> Iterator[tuple[str, nn.Module]]:
    """(path, adapter module) of one adapter."""
    for path, module in record.modules.items():
        entry = container_of(module)._modules.get(name)
        if entry is not None:
            yield path, entry


def _set_flags(record: Record, name: str, flag: bool) -> None:
    for _, entry in _entries(record, name):
        entry.requires_grad_(flag)


def detach(model: nn.Module, name: str | None = None) -> DetachReport:
    """Take adapters off; after the last one the model is exactly what it was.

    Args:
        model: an attached model.
        name: the adapter to take off; None means all.

    Returns:
        A report.

    Raises:
        StateError: if nothing is attached, the name is unknown, or the model is merged.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = attach(net, LoRAConfig(rank=1)); print(detach(net))
        detached default, 1 module restored; the base is as it was
    """
    root = require_model(model)
    record = record_of(root, "detach")
    record.require_unmerged("detach")
    if name is not None:
        record.resolve(name)
    names = list(record.adapters) if name is None else [name]
    left = [other for other in record.adapters if other not in names]
    foreign = [path for path, module in record.modules.items() if not is_lora(module)]
    if foreign:
        take_off(foreign[0], record.modules[foreign[0]])
    restored = _remove(root, record, names)
    return DetachReport(names=tuple(names), left=tuple(left), restored=restored)


def _remove(root: nn.Module, record: Record, names: list[str]) -> int:
    """Take adapters off every module; returns how many modules got their class back."""
    restored = 0
    for gone in names if record.bank is not None else ():
        record.bank.release(gone)  # type: ignore[union-attr]
    for path, module in list(record.modules.items()):
        container = container_of(module)
        for gone in names:
            container._modules.pop(gone, None)
        if not container._modules:
            take_off(path, module)
            del record.modules[path]
            restored += 1
    for gone in names:
        record.adapters.pop(gone, None)
    record.mix = tuple(pair for pair in record.mix if pair[0] in record.adapters)
    if not record.adapters:
        if record.bank is not None:
            record.bank.close()
        root.__dict__.pop(RECORD)
        record.hook.remove()
        stand_down(root)
        for key, parameter in root.named_parameters():
            parameter.requires_grad_(record.flags.get(key, parameter.requires_grad))
    return restored


@contextmanager
def active(model: nn.Module, choice: str | Mapping[str, float]) -> Iterator[None]:
    """Use an adapter, or a weighted mix, inside a ``with`` block; other threads keep theirs.

    A mix is the sum of the adapters' updates: sum of weight * scaling * B A.

    Args:
        model: an attached model.
        choice: a name, or name -> weight.

    Yields:
        Nothing.

    Raises:
        StateError: if a name is unknown, an adapter cannot be mixed, or the model is merged.
    """
    record = record_of(model, "choose an adapter")
    record.require_unmerged("choose an adapter")
    with record.override(record.resolve(choice)):
        yield


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Use the base alone inside a ``with`` block; other threads keep their adapters.

    Args:
        model: an attached model.

    Yields:
        Nothing.

    Raises:
        StateError: if nothing is attached or the model is merged.
    """
    record = record_of(model, "disable adapters")
    record.require_unmerged("disable adapters")
    with record.override(()):
        yield


@contextmanager
def route(model: nn.Module, names: Names) -> Iterator[None]:
    """Use one adapter for each row of a batch, or for each token, inside a ``with`` block; other threads keep theirs.

    The batch is the first axis of every adapted layer's input, tokens the second. What is named None gets the base
    alone, bit for bit. Adapters may differ in rank, targets and variant, and may be trained so. Plain updates are
    stacked and applied in one product, whatever their number, out of the model's ``AdapterBank`` where it has one;
    other variants and layers are run rows by rows. A compiled model has one graph for all routings of a batch's shape.

    Args:
        model: an attached model.
        names: the adapter of each row, or a list of these for the tokens of each row; or integers of shape (rows) or
            (rows, tokens): slots of the bank, without one positions in ``attached(model)``, -1 for the base.

    Yields:
        Nothing.

    Raises:
        StateError: if a name or place is unknown, rows have different numbers of tokens, the model is merged, or an
            adapter is worn by a layer that cannot be routed.
    """
    record = record_of(model, "route a batch")
    record.require_unmerged("route a batch")
    with record.override(seat(record, names)):
        yield


def activate(model: nn.Module, choice: str | Mapping[str, float] | None) -> None:
    """Choose the active adapters lastingly; the counterpart of ``active`` without a block.

    Args:
        model: an attached model.
        choice: a name, name -> weight, or None for the base alone.

    Raises:
        StateError: as ``active``.
    """
    record = record_of(model, "choose an adapter")
    record.require_unmerged("choose an adapter")
    record.mix = record.resolve(choice)


def attached(model: nn.Module) -> tuple[str, ...]:
    """Names of the attached adapters, in the order they were attached.

    Args:
        model: any model.

    Returns:
        Names; empty for a plain model.
    """
    record = find_record(model)
    return () if record is None else tuple(record.adapters)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Exactly the parameters that require gradients, each once.

    Args:
        model: any model.

    Returns:
        (name, parameter), in module order; give the parameters to the optimizer.

    Raises:
        StateError: if the model is merged.
    """
    record = find_record(model)
    if record is not None:
        record.require_unmerged("train")
    return [(key, p) for key, p in require_model(model).named_parameters() if p.requires_grad]


def freeze(model: nn.Module, name: str) -> None:
    """Stop training an adapter; whether it is active does not change.

    Args:
        model: an attached model.
        name: the adapter.

    Raises:
        StateError: if the name is unknown or the model is merged.
    """
    _flag(model, name, False)


def unfreeze(model: nn.Module, name: str) -> None:
    """Train an adapter; whether it is active does not change.

    Args:
        model: an attached model.
        name: the adapter.

    Raises:
        StateError: if the name is unknown or the model is merged.
    """
    _flag(model, name, True)


def _flag(model: nn.Module, name: str, flag: bool) -> None:
    record = record_of(model, "freeze" if not flag else "unfreeze")
    record.require_unmerged("change what is trained")
    record.resolve(name)
    _set_flags(record, name, flag)


def draws(model: nn.Module) -> dict[str, int]:
    """Counters of the adapters' dropout masks: part of the state a resume needs.

    Args:
        model: an attached model.

    Returns:
        ``path.name`` -> number of masks drawn so far.
    """
    record = record_of(model, "read the dropout state")
    record.require_unmerged("read the dropout state")
    return {
        f"{path}.{name}": entry.draws  # type: ignore[misc]
        for name in record.adapters
        for path, entry in _entries(record, name)
        if hasattr(entry, "draws")
    }


def set_draws(model: nn.Module, state: Mapping[str, int]) -> None:
    """Restore what ``draws`` returned.

    Args:
        model: an attached model.
        state: every counter of the model, no more and no less.

    Raises:
        ConfigError: if the counters are those of other sites.
    """
    record = record_of(model, "restore the dropout state")
    present = draws(model)
    if set(present) != set(state):
        odd = sorted(set(present) ^ set(state))
        raise ConfigError(
            "a dropout state of other sites",
            where=f"{len(odd)} counters, first '{odd[0]}'",
            got=f"{count(len(state))} counters",
            expected=f"{count(len(present))} counters",
            hint="restore the state of the same adapter configuration.",
        )
    for name in record.adapters:
        for path, entry in _entries(record, name):
            if hasattr(entry, "draws"):
                entry.draws = state[f"{path}.{name}"]  # type: ignore[assignment]
