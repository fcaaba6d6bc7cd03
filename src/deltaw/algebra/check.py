"""What must hold before adapters are added: one base, one shape, nothing in them that a sum cannot carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deltaw.adapter import Adapter
from deltaw.algebra.parts import Parts, named
from deltaw.errors import CheckpointError, ConfigError
from deltaw.fingerprint import differences

__all__ = ["check_bases", "check_shapes", "check_summable", "check_weights", "owner_of_whole", "shared_entries"]

_SHOWN = 5


def check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    """Refuse weights that do not go with the adapters.

    Args:
        adapters: the adapters.
        weights: one for each.

    Raises:
        ConfigError: if there is no adapter, the numbers differ, or a weight is no finite number.
    """
    if not adapters:
        raise ConfigError(
            "there is nothing to combine",
            where="adapters",
            got="no adapter",
            expected="at least one",
            hint="pass adapters, such as combine([a, b], [0.7, -0.3]).",
        )
    if len(adapters) != len(weights):
        raise ConfigError(
            "every adapter needs a weight",
            where="weights",
            got=f"{len(weights)} weights for {len(adapters)} adapters",
            expected="as many of one as of the other",
            hint="leave weights out to add the adapters as they are.",
        )
    for adapter, weight in zip(adapters, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(
                "a weight is a finite number",
                where=f"the weight of {adapter.where}",
                got=repr(weight),
                expected="a number such as 0.7 or -1",
                hint="check where the weight comes from.",
            )
    if not any(weights):
        raise ConfigError(
            "all weights are zero",
            where="weights",
            got=", ".join(f"{weight:g}" for weight in weights),
            expected="at least one weight other than zero",
            hint="the sum would be the base itself; use no adapter instead.",
        )


def check_bases(adapters: Sequence[Adapter], allow: bool) -> list[str]:
    """Refuse adapters of different bases, as far as their fingerprints tell.

    Args:
        adapters: the adapters.
        allow: accept different bases.

    Returns:
        Notes: what was accepted, or could not be checked.

    Raises:
        CheckpointError: if the bases differ.
    """
    notes = []
    prints = [(adapter.where, adapter.own.get("fingerprint")) for adapter in adapters]
    known = [(where, found) for where, found in prints if isinstance(found, dict) and found.get("sites")]
    missing = [where for where, found in prints if not (isinstance(found, dict) and found.get("sites"))]
    if missing and len(adapters) > 1:
        notes.append(
            f"no base fingerprint, so that the base is the same was not checked: {', '.join(missing[:_SHOWN])}"
        )
    for where, other in known[1:]:
        lines = differences(known[0][1], other)
        if lines and not allow:
            raise CheckpointError(
                "the adapters belong to different bases",
                where=f"{known[0][0]} and {where}",
                got="; ".join(lines[:2]) + (f"; and {len(lines) - 2} more" if len(lines) > 2 else ""),
                expected="one base",
                hint="an update means something on its own base alone; if you know better: allow_other_base=True "
                "(--allow-other-base).",
            )
        if lines:
            notes.append(f"another base: {len(lines)} weights under {where} differ from {known[0][0]}'s, as allowed")
    return notes


def check_shapes(adapters: Sequence[Adapter], parts: Sequence[Parts]) -> None:
    """Refuse updates of one path that are not of one shape.

    Args:
        adapters: the adapters.
        parts: their parts.

    Raises:
        CheckpointError: naming the first such modules.
    """
    seen: dict[str, tuple[str, object]] = {}
    wrong = []
    for adapter, part in zip(adapters, parts, strict=True):
        for path, update in part.updates.items():
            shape = (update.suffixes, update.shape)
            where, first = seen.setdefault(path, (adapter.where, shape))
            if first != shape:
                wrong.append(f"'{path}': {_sized(shape)} in {adapter.where}, {_sized(first)} in {where}")
    if wrong:
        raise CheckpointError(
            "the adapters' updates of one module have different shapes",
            where=f"{len(wrong)} modules",
            got="; ".join(wrong[:2]) + (f"; and {len(wrong) - 2} more" if len(wrong) > 2 else ""),
            expected="one shape for one module",
            hint="these adapters belong to different models.",
        )


def _sized(shape: object) -> str:
    assert isinstance(shape, tuple)
    (inner, out, groups), kind = shape[1], shape[0][0]
    return f"{'x'.join(map(str, inner))} -> {out}" + (f" in {groups} groups" if groups > 1 else "") + f" ({kind})"


def check_summable(adapters: Sequence[Adapter], parts: Sequence[Parts], weights: Sequence[float]) -> None:
    """Refuse what is not linear: DoRA in any sum, and trained values that two adapters have or one has scaled.

    Args:
        adapters: the adapters, more than one or with a weight other than 1.
        parts: their parts.
        weights: their weights.

    Raises:
        CheckpointError: naming it.
    """
    for adapter, part in zip(adapters, parts, strict=True):
        if part.magnitudes:
            raise CheckpointError(
                "DoRA adapters cannot be scaled or added",
                where=adapter.where,
                got=f"a magnitude vector in {len(part.magnitudes)} modules, {named(part.magnitudes, 2)}",
                expected="plain low-rank updates",
                hint="not linear in B A; merge it into a copy of the base, then deltaw extract gives a LoRA.",
            )
    owners = [(a, p, w) for a, p, w in zip(adapters, parts, weights, strict=True) if p.whole]
    if len(owners) > 1 or (owners and owners[0][2] != 1):
        adapter, part, weight = owners[-1]
        raise CheckpointError(
            "values that are trained in full cannot be scaled or added",
            where=" and ".join(owner.where for owner, _, _ in owners[:3]),
            got=f"{named(part.whole, 3)} in {adapter.where}" + (f" with weight {weight:g}" if len(owners) == 1 else ""),
            expected="full copies, biases of the base and token rows in one adapter at most, of weight 1",
            hint="they are values, not updates: give the adapter that has them weight 1, or train without.",
        )


def owner_of_whole(parts: Sequence[Parts]) -> int | None:
    """Which adapter brings the values that are trained in full.

    Args:
        parts: parts of the adapters.

    Returns:
        Its index, or None.
    """
    return next((index for index, part in enumerate(parts) if part.whole), None)


def shared_entries(dictionaries: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Entries that all dictionaries have alike.

    Args:
        dictionaries: at least one.

    Returns:
        The common entries.

    Example:
        >>> shared_entries([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
        {'a': 1}
    """
    first, *others = dictionaries
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}
