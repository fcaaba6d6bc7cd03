"""What a state dict of an attached model carries, so that any trainer's checkpoint resumes exactly.

Tensors of adapters are in it by themselves. Two things are not, and hooks on the model add them::

    layers.0.q_proj.lora.default.draws    how many dropout masks the site has drawn, where it has dropout
    (a checkpoint of the adapters alone)  is complete: what it does not speak of is the frozen base

The second lets a trainer keep megabytes instead of gigabytes and still load strictly. ``guarded`` marks such a file, so
that a model without the adapters refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import CheckpointError
from deltaw.layer import container_of
from deltaw.record import RECORD, Record
from deltaw.tree import CONTAINER
from deltaw.worn import note_load

__all__ = ["Hooks", "guarded", "is_adapter_key", "listen"]

_DRAWS = ".draws"


class Hooks:
    """The handles of one model's hooks.

    Args:
        handles: what the registrations returned.
    """

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles
        # the list of missing keys of a load whose state dict holds adapters only; it identifies the call
        self.alone: tuple[Any, str] = (None, "")

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self.handles:
            handle.remove()


def is_adapter_key(key: str) -> bool:
    """Whether a state-dict key names something that an adapter holds.

    Args:
        key: a key, with or without a wrapper's prefix.

    Returns:
        True for an adapter's.

    Example:
        >>> is_adapter_key("fc.lora.default.lora_A"), is_adapter_key("fc.weight")
        (True, False)
    """
    return f".{CONTAINER}." in f".{key}"


def guarded(state: Mapping[str, Tensor], root: nn.Module) -> dict[str, Tensor]:
    """A state dict of adapters that a model without them cannot load by mistake.

    The base's first parameter is named in it with no value: torch and transformers then report a size mismatch, also
    where they are lenient about what is missing. An attached model's hook takes the guard out.

    Args:
        state: key -> tensor of the adapters.
        root: the attached model.

    Returns:
        The state dict with its guard.
    """
    first = next((key for key, _ in root.named_parameters() if not is_adapter_key(key)), None)
    return dict(state) if first is None else {**state, first: torch.empty(0)}


def listen(root: nn.Module) -> Hooks:
    """Put the hooks on a model that gets its first adapter.

    Args:
        root: the model.

    Returns:
        What takes them off again.
    """
    return Hooks(
        [
            root.register_load_state_dict_pre_hook(note_load),  # type: ignore[no-untyped-call]
            root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
            root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
            root.register_state_dict_post_hook(_add_draws),  # type: ignore[no-untyped-call]
        ]
    )


def _dropping(record: Record) -> Iterator[tuple[str, Any]]:
    """(key of its counter, adapter module) of every site with dropout."""
    for path, module in record.modules.items():
        for name, entry in container_of(module)._modules.items():
            if getattr(entry, "dropout", 0.0):
                yield f"{path}.{CONTAINER}.{name}{_DRAWS}".removeprefix("."), entry


def _unmerged(root: nn.Module) -> Record | None:
    record = root.__dict__.get(RECORD)
    return record if isinstance(record, Record) and record.merged is None else None


def _add_draws(root: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Hook: write the counters down."""
    record = _unmerged(root)
    if record is not None:
        state_dict.update({prefix + key: torch.tensor(entry.draws) for key, entry in _dropping(record)})


def _before_load(
    root: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *_: Any
) -> None:
    """Hook: take the counters out of what is loaded, and note whether the rest is adapters only."""
    record = _unmerged(root)
    if record is None:
        return
    own = [key for key in state_dict if key.startswith(prefix)]
    others = [key for key in own if not is_adapter_key(key)]
    alone = len(others) < len(own) and all(tuple(state_dict[key].shape) == (0,) for key in others)
    for key in others if alone else ():
        del state_dict[key]
    entries = dict(_dropping(record))
    for key in [key for key in own if key.endswith(_DRAWS) and is_adapter_key(key)]:
        value = state_dict.pop(key)
        if (entry := entries.get(key.removeprefix(prefix))) is not None:
            entry.draws = int(value)
    record.hook.alone = (missing if alone else None, prefix)


def _after_load(root: nn.Module, incompatible: Any) -> None:
    """Hook: adapters alone are a complete checkpoint, if they are exactly the model's."""
    record = _unmerged(root)
    if record is None or record.hook.alone[0] is not incompatible.missing_keys:
        return
    prefix = record.hook.alone[1]
    record.hook.alone = (None, "")
    lost = [key for key in incompatible.missing_keys if is_adapter_key(key)]
    odd = [key for key in incompatible.unexpected_keys if is_adapter_key(key)]
    if lost or odd:
        raise CheckpointError(
            "a checkpoint of adapters does not fit the attached ones",
            where=f"{len(lost) + len(odd)} tensors, first '{(lost or odd)[0]}'",
            got=f"{len(lost)} tensors missing in it, {len(odd)} that land nowhere",
            expected=f"the tensors of {', '.join(map(repr, record.adapters))}",
            hint="attach with the names and the configuration of the run that wrote it.",
        )
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]
