"""Labels: class names by position, and scores."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.errors import DataError, nearest
from deltaw.train.data.formats.base import Label
from deltaw.train.data.formats.labelled import number_of
from deltaw.train.data.rows import Rows
from deltaw.train.data.sources.base import RowProblem

__all__ = ["UNKNOWN_LABEL", "ClassNames", "score"]

UNKNOWN_LABEL = "does not occur in the training data"
"""What is said of a label that is none of the names given."""


def _name(label: Label) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


class ClassNames:
    """Positions of class names, given or collected.

    Args:
        given: names by position; None to collect them in order of appearance and sort them at the end.
    """

    def __init__(self, given: Sequence[str] | None) -> None:
        self.given = given is not None
        self.found = {str(name): place for place, name in enumerate(given or ())}
        self.counts = [0] * len(self.found)

    def position(self, label: Label) -> int:
        """Look up a label, and count it.

        Args:
            label: as it stands in the row.

        Returns:
            Its position, provisional where names are collected.

        Raises:
            RowProblem: if names were given and it is none of them.
        """
        name = _name(label)
        if name not in self.found:
            if self.given:
                known = nearest(name, self.found)
                raise RowProblem(f"label {name!r} {UNKNOWN_LABEL}; closest: {known}")
            self.found[name] = len(self.found)
            self.counts.append(0)
        place = self.found[name]
        self.counts[place] += 1
        return place

    def settle(self, rows: Rows) -> tuple[tuple[str, ...], list[int], list[int]]:
        """Fix the order: numbers by value, other names by alphabet.

        Args:
            rows: the file, for the error.

        Returns:
            The names, the final position by provisional one, and the number of rows by final position.

        Raises:
            DataError: if collected labels are all the same.
        """
        if not self.given and len(self.found) < 2:
            raise DataError(
                "all rows have the same label",
                where=str(rows.path),
                got=f"label {next(iter(self.found), '')!r} in every row",
                expected="at least two classes",
                hint="check that this is the labelled part of the data, and that --column label=NAME is right.",
            )
        names = list(self.found)
        if not self.given:
            numbers = [number_of(name) for name in names]
            if all(number is not None for number in numbers):
                names.sort(key=lambda name: (number_of(name) or 0, name))
            else:
                names.sort()
        final = {name: place for place, name in enumerate(names)}
        counts = [self.counts[self.found[name]] for name in names]
        return tuple(names), [final[name] for name in self.found], counts


def score(label: Label) -> float:
    """Read a label as a score.

    Args:
        label: as it stands in the row.

    Returns:
        Its value.

    Raises:
        RowProblem: if it is no number.
    """
    number = number_of(label)
    if number is None:
        raise RowProblem(f"label {label!r} is not a number")
    return float(number)
