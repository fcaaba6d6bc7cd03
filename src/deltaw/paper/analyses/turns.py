"""Timing that a busy machine cannot bend: every contender once a round, in turning order, ratios round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from deltaw.errors import ConfigError
from deltaw.paper.analyses.result import spread

__all__ = ["Timing", "milliseconds", "require_positive", "settle_device", "take_turns", "timings"]

WARM_UPS = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one contender, in milliseconds.

    Args:
        mean: over the rounds.
        deviation: standard deviation over the rounds.
        median: over the rounds.
        ratio: median of the ratios to the base, round by round.
        ratios: their first and last quartile.
        rounds: how many.
    """

    mean: float
    deviation: float
    median: float
    ratio: float
    ratios: tuple[float, float]
    rounds: int


def settle_device(device: torch.device) -> None:
    """Wait until a device has done what it was told.

    Args:
        device: any.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Time a call by the wall clock, the device's work included.

    Args:
        work: the call.
        device: where it runs.

    Returns:
        Milliseconds.
    """
    settle_device(device)
    start = time.perf_counter()
    work()
    settle_device(device)
    return 1e3 * (time.perf_counter() - start)


def take_turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = WARM_UPS
) -> dict[str, list[float]]:
    """Take every measure once a round; the order turns by one each round, the first rounds do not count.

    Args:
        measures: name -> a call that returns its figure.
        rounds: rounds that count.
        warm_ups: rounds before them.

    Returns:
        Name -> one figure for each round.

    Example:
        >>> take_turns({"a": lambda: 1.0, "b": lambda: 2.0}, 2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    names = list(measures)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_ups + rounds):
        # what a measure leaves in the caches is then not always the same neighbor's
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            value = measures[name]()
            if turn >= warm_ups:
                taken[name].append(value)
    return taken


def timings(taken: Mapping[str, list[float]], base: str) -> dict[str, Timing]:
    """Sum up rounds.

    Args:
        taken: name -> milliseconds of each round.
        base: the name that ratios are to.

    Returns:
        Name -> timing.

    Example:
        >>> timings({"base": [1.0, 2.0, 4.0], "x": [1.5, 3.0, 6.0]}, "base")["x"].ratio
        1.5
    """
    found = {}
    for name, values in taken.items():
        mean, deviation = spread(values)
        ratios = sorted(mine / his for mine, his in zip(values, taken[base], strict=True))
        quarter = len(ratios) // 4
        found[name] = Timing(
            mean=mean,
            deviation=deviation,
            median=median(values),
            ratio=median(ratios),
            ratios=(ratios[quarter], ratios[-1 - quarter]),
            rounds=len(values),
        )
    return found


def require_positive(**numbers: int) -> None:
    """Refuse counts that are not at least 1.

    Args:
        **numbers: flag, without its dashes, -> value.

    Raises:
        ConfigError: naming the first one.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                "this is a count",
                where=f"--{name.replace('_', '-')}",
                got=repr(value),
                expected="a whole number of at least 1",
                hint="leave it out for the default.",
            )
