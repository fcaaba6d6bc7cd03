"""The ledger of counts: what is exact, what the modules say, what the paper prints, which erratum stands between."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from deltaw.errors import ConfigError, FaithError, nearest
from deltaw.paper.labels import agreement
from deltaw.reports import plural, table

__all__ = ["Case", "Ledger", "Line", "settle_counts"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One number that follows from shapes alone.

    Args:
        group: what kind of number it is.
        name: which one, unique in its group.
        formula: how it comes about, with the numbers in it; ``x`` multiplies, ``^`` raises.
        exact: its value in plain units: values, bytes, a share or a ratio.
        unit: "values", "bytes", "share" or "ratio".
        label: what is printed for it, or empty.
        source: where that is printed.
        reads_in: a unit the label is meant in, where it differs from the printed one.
        errata: errata it has to do with.
        note: what else is to be known.
        modules: counts the same on a module tree; None where no module has it.
    """

    group: str
    name: str
    formula: str
    exact: int | Fraction
    unit: str = "values"
    label: str = ""
    source: str = ""
    reads_in: str = ""
    errata: tuple[str, ...] = ()
    note: str = ""
    modules: Callable[[], int] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Group and name."""
        return f"{self.group}/{self.name}"

    @property
    def reads(self) -> str:
        """How the number relates to its label: "rounds", "cut", "differs", or empty without a label."""
        if not self.label:
            return ""
        digits = self.label.rstrip("MGTKiBx%") if self.reads_in else self.label
        return agreement(self.exact, digits + self.reads_in)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A case and what its modules say.

    Args:
        case: the case.
        counted: the count on a module tree; None where there is none.
    """

    case: Case
    counted: int | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether the printed label is what the number rounds to or is cut to; None without a label."""
        return None if not self.case.reads else self.case.reads != "differs"

    def payload(self) -> dict[str, Any]:
        """The line for programs.

        Returns:
            Plain values; ratios and shares as floats.
        """
        case = self.case
        return {
            "id": case.id,
            "group": case.group,
            "case": case.name,
            "formula": case.formula,
            "exact": case.exact if isinstance(case.exact, int) else float(case.exact),
            "unit": case.unit,
            "counted_on_modules": self.counted,
            "label": case.label,
            "label_source": case.source,
            "label_reads": case.reads,
            "agrees": self.agrees,
            "errata": list(case.errata),
            "note": case.note,
        }


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All lines; ``str`` is what ``deltaw paper counts`` prints.

    Args:
        lines: in the order of the cases.
    """

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        """A table for each group, then the errata by name, then one line of totals."""
        from deltaw.paper.tables import erratum

        parts = [self._group(group) for group in dict.fromkeys(line.case.group for line in self.lines)]
        named = sorted({name for line in self.lines for name in line.case.errata}, key=lambda name: int(name[3:]))
        parts.append("\n".join(str(erratum(name)) for name in named))
        return "\n\n".join([*filter(None, parts), self.summary])

    @property
    def summary(self) -> str:
        """How many numbers, how many counted on modules, how many labels agree."""
        counted = sum(line.counted is not None for line in self.lines)
        labels = [line for line in self.lines if line.agrees is not None]
        differ = sum(not line.agrees for line in labels)
        return (
            f"{plural(len(self.lines), 'number')}; {counted} counted on modules as well, equal in every case; "
            f"{plural(len(labels), 'printed label')}, of which {differ} differ"
        )

    def _group(self, group: str) -> str:
        mine = [line for line in self.lines if line.case.group == group]
        header = ("", "formula", "exact", "modules", "printed", "reads", "where", "erratum")
        rows = _aligned([_cells(line) for line in mine])
        kept = [i for i in range(len(header)) if i < 3 or any(row[i].strip() for row in rows)]
        body = table([group.upper() if i == 0 else header[i] for i in kept], [[row[i] for i in kept] for row in rows])
        notes = [f"  {line.case.name}: {line.case.note}" for line in mine if line.case.note]
        return "\n".join([body, *notes])

    def payload(self) -> dict[str, Any]:
        """The ledger for programs.

        Returns:
            Lines, the errata they name, and the summary's numbers.
        """
        from deltaw.paper.tables import erratum

        named = dict.fromkeys(name for line in self.lines for name in line.case.errata)
        return {
            "counts": [line.payload() for line in self.lines],
            "errata": {name: erratum(name) for name in named},
            "labels": sum(line.agrees is not None for line in self.lines),
            "labels_that_differ": sum(line.agrees is False for line in self.lines),
        }

    def to_csv(self) -> str:
        """The lines as comma-separated values with a header.

        Returns:
            Text that ends with a newline.
        """
        buffer = io.StringIO()
        rows = [line.payload() for line in self.lines]
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "errata": " ".join(row["errata"])} for row in rows)
        return buffer.getvalue()


def _aligned(rows: list[list[str]]) -> list[list[str]]:
    """Right-align the numbers, which are text by now."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        [cell.rjust(widths[i]) if i in (2, 3, 4) and widths[i] else cell for i, cell in enumerate(row)] for row in rows
    ]


def _cells(line: Line) -> list[str]:
    case = line.case
    counted = "" if line.counted is None else f"{line.counted:,}"
    return [
        case.name, case.formula, _number(case), counted, case.label, case.reads, case.source, " ".join(case.errata)
    ]  # fmt: skip


def _number(case: Case) -> str:
    if isinstance(case.exact, int):
        return f"{case.exact:,}"
    if case.unit == "share":
        return f"{float(case.exact):+.4%}"
    return f"{float(case.exact):,.4f}"


def settle_counts(cases: Iterable[Case], groups: Sequence[str] = ()) -> Ledger:
    """Count on modules what can be, and hold it against the formulas.

    Args:
        cases: what there is.
        groups: which groups to keep; empty keeps all.

    Returns:
        The ledger.

    Raises:
        ConfigError: if a group does not exist.
        FaithError: if a module tree and a formula disagree; every case that does is named.

    Example:
        >>> case = Case(group="lora", name="GPT-2 M", formula="2 x 48 x 1024 x 4", exact=393216, label="0.35M")
        >>> settle_counts([case]).lines[0].agrees
        False
    """
    every = list(cases)
    names = list(dict.fromkeys(case.group for case in every))
    unknown = [group for group in groups if group not in names]
    if unknown:
        raise ConfigError(
            f"there is no group {unknown[0]!r}",
            where="group",
            got=repr(unknown[0]),
            expected=f"one of {', '.join(names)}",
            hint=f"closest: {nearest(unknown[0], names, 1)}",
        )
    chosen = [case for case in every if not groups or case.group in groups]
    lines = [Line(case=case, counted=None if case.modules is None else case.modules()) for case in chosen]
    wrong = [line for line in lines if line.counted not in (None, line.case.exact)]
    if wrong:
        raise FaithError(
            "modules and formula disagree",
            where=", ".join(line.case.id for line in wrong),
            got=", ".join(f"{line.counted:,}" for line in wrong),
            expected=", ".join(f"{line.case.exact:,} by {line.case.formula}" for line in wrong),
            hint="the installed transformers may build this architecture otherwise; report it with its version",
        )
    return Ledger(lines=tuple(lines))
