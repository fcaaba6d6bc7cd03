"""The rows of the conformance table, the checks behind them, and what a check's end means.

A row has one or more cases. A case is a function of a driver's class and an empty directory: it returns a short remark
or nothing where it passes, raises ``AssertionError`` where it fails, and lets the library's own error through where the
library refuses. Where a row says that refusing is right, a refusal is no failure.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from drivers import Driver, Later
from torch import Tensor
from torch._dynamo.exc import Unsupported

Check = Callable[[type[Driver], Path], str | None]

GROUPS = ("files", "words", "merging", "state", "training")
"""Modules ``checks_*`` that fill the table."""


@dataclass
class Row:
    """One line of the table.

    Args:
        id: as in the plan of the suite.
        title: what is checked.
        tolerance: how closely.
        cases: name -> check.
        refusable: cases that a library may refuse, or all of them.
        only: the driver that the row makes sense for, or None for every one.
        later: title of a driver -> what it does not have yet.
        slow: takes more than a second.
    """

    id: str
    title: str
    tolerance: str
    cases: dict[str, Check] = field(default_factory=dict)
    refusable: bool = False
    only: str | None = None
    later: dict[str, str] = field(default_factory=dict)
    slow: bool = False


ROWS: dict[str, Row] = {}


def row(id: str, title: str, tolerance: str, **fields: Any) -> Row:
    """Add a row to the table."""
    ROWS[id] = Row(id=id, title=title, tolerance=tolerance, **fields)
    return ROWS[id]


def case(id: str, names: Iterable[Any] = ("",)) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Add a check to a row: once, or once for each name, which is then its third argument."""

    def add(check: Callable[..., str | None]) -> Callable[..., str | None]:
        for name in names:
            label = str(name).removeprefix("torch.") or check.__name__.replace("_", " ")
            assert label not in ROWS[id].cases, label
            ROWS[id].cases[label] = check if name == "" else _bound(check, name)
        return check

    return add


def _bound(check: Callable[..., str | None], name: Any) -> Check:
    return lambda driver, directory: check(driver, directory, name)


@dataclass(frozen=True)
class Outcome:
    """How a case, or a whole row, ended ("pass", "refused", "fails", "later", "not run", "n/a"), and what to say."""

    status: str
    remark: str = ""


def end_of(driver: type[Driver], row: Row, name: str) -> Outcome:
    """Run one case in a directory of its own."""
    state = torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return Outcome("pass", row.cases[name](driver, Path(directory)) or "")
    except Later as error:
        return Outcome("later", str(error))
    except AssertionError as error:
        return Outcome("fails", (str(error).splitlines() or ["assertion"])[0])
    except driver.errors as error:
        first = (str(error).splitlines() or [""])[0]
        said = first if driver.title == "deltaw" else f"{type(error).__name__}: {first}"
        return Outcome("refused" if row.refusable else "fails", said)
    except Unsupported as error:
        return Outcome("fails", f"graph break: {str(error).strip().splitlines()[0]}")
    finally:
        torch.set_rng_state(state)


def outcome(driver: type[Driver], row: Row) -> Outcome:
    """Run a row for one library: its worst case decides, and the remark names the cases that are not a plain pass."""
    if row.only is not None and row.only != driver.title:
        return Outcome("n/a")
    if driver.title in row.later and not row.cases:
        later = row.later[driver.title]
        return Outcome("not run" if later.startswith("not run") else "later", later.removeprefix("not run: "))
    ends = {name: end_of(driver, row, name) for name in row.cases}
    order = ("fails", "pass", "refused", "later")
    status = next(status for status in order if status in {end.status for end in ends.values()})
    if status == "pass" and any(end.status == "refused" for end in ends.values()):
        status = "pass or refused"
    if status == "fails" and any(end.status != "fails" for end in ends.values()):
        status = "fails in part"
    remarks: dict[tuple[str, str], list[str]] = {}
    for name, end in ends.items():
        if end.remark or end.status != "pass":
            remarks.setdefault((end.status, end.remark), []).append(name)
    lines = [_line(len(ends), names, *key) for key, names in remarks.items()]
    if driver.title in row.later:
        later = row.later[driver.title]
        lines.append(later if later.startswith("not run") else f"later: {later}")
    return Outcome(status, "; ".join(lines))


def _line(count: int, names: list[str], status: str, remark: str) -> str:
    where = "" if count == len(names) else ", ".join(names)
    word = "" if status in ("pass", "fails") or not where else status
    head = " ".join(part for part in (where, word) if part)
    return f"{head}: {remark}" if head and remark else head or remark


def load() -> dict[str, Row]:
    """The whole table."""
    for group in GROUPS:
        importlib.import_module(f"checks_{group}")
    return ROWS


def far(got: Tensor, want: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((got.detach().double() - want.detach().double()).abs().max() / want.detach().double().abs().max())


def near(got: Tensor, want: Tensor, tolerance: float, what: str = "off by") -> None:
    """Fail with one digit of the relative difference, which is the same on every machine."""
    distance = far(got, want)
    assert distance <= tolerance, f"{what} {distance:.0e}"


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    """Tensors as raw bytes."""
    return {k: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for k, t in state.items()}


def told(driver: Driver, act: Callable[[], Any]) -> str:
    """Everything a library says when it is asked for something: its error, its warnings, its report."""
    before = len(driver.told)
    try:
        act()
    except driver.errors as error:
        return f"{error}\n" + "\n".join(driver.told[before:])
    return "\n".join(driver.told[before:])


def refuses(driver: Driver, act: Callable[[], Any], what: str) -> None:
    """Fail unless the library raises an error of its own."""
    try:
        act()
    except driver.errors:
        return
    raise AssertionError(f"{what} goes through in silence")
