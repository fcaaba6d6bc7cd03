"""Printed figures: what a label such as ``354.92M`` says, and whether an exact number reads so.

A label agrees where the number rounds to it at the label's own digits, or where the digits beyond are cut off, which
the paper does in some of its tables (erratum ERR6).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

from deltaw.errors import DataError

__all__ = ["UNITS", "agreement", "read_label"]

UNITS: dict[str, Fraction] = {
    "": Fraction(1),
    "x": Fraction(1),
    "%": Fraction(1, 100),
    "K": Fraction(10**3),
    "M": Fraction(10**6),
    "MB": Fraction(10**6),
    "GB": Fraction(10**9),
    "TB": Fraction(10**12),
    "MiB": Fraction(2**20),
}
_LABEL = re.compile(r"(?P<digits>[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?) ?(?P<unit>[A-Za-z%]*)")


def read_label(label: str) -> tuple[Decimal, Fraction]:
    """Read a printed figure.

    Args:
        label: digits, with thousands separators or without, and a unit of ``UNITS``.

    Returns:
        The figure with its printed decimals, and the size of its unit.

    Raises:
        DataError: if it is none.

    Example:
        >>> read_label("175,255.8M")
        (Decimal('175255.8'), Fraction(1000000, 1))
    """
    found = _LABEL.fullmatch(label)
    if found is None or found["unit"] not in UNITS:
        raise DataError(
            "this is no printed figure",
            where="label",
            got=repr(label),
            expected=f"digits and one of the units {', '.join(filter(None, UNITS))}, or none",
            hint="write it as the paper prints it, such as 0.35M or 27.1 MiB",
        )
    return Decimal(found["digits"].replace(",", "").lstrip("+")), UNITS[found["unit"]]


def agreement(value: int | Fraction, label: str) -> str:
    """Say how an exact number relates to the label printed for it.

    Args:
        value: the exact number, in plain units: values, bytes, or a share (0.022 for 2.2%).
        label: as printed.

    Returns:
        "rounds", "cut" (the digits beyond the label's are left off), or "differs".

    Raises:
        DataError: if the label cannot be read.

    Example:
        >>> agreement(37_748_736, "37.7M"), agreement(18_874_368, "18.8M"), agreement(393_216, "0.35M")
        ('rounds', 'cut', 'differs')
    """
    printed, unit = read_label(label)
    exact = Fraction(value) / unit
    # Whole numbers of the label's last digit, in exact arithmetic: no division decides a rounding.
    steps = abs(exact) * 10 ** -int(printed.as_tuple().exponent)
    digits = int(abs(printed).scaleb(-int(printed.as_tuple().exponent)))
    if printed and (printed < 0) != (exact < 0):
        return "differs"
    if math.floor(steps + Fraction(1, 2)) == digits:
        return "rounds"
    return "cut" if math.floor(steps) == digits else "differs"
