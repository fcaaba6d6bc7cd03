"""deltaw against every row of the table; one test for each row, by its id.

``docs/conformance.md`` must say of deltaw exactly what its checks give.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from drivers import Deltaw
from page import PAGE, read
from rows import Row, load, outcome

ROWS = load()
SAID = read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}


def _test(row: Row) -> Callable[[], None]:
    def test() -> None:
        end = outcome(Deltaw, row)
        assert (end.status, end.remark) == SAID.get(row.id), "run scripts/conformance.py, and read what changed"

    return pytest.mark.slow(test) if row.slow else test


for _id, _row in ROWS.items():
    _name = "_".join(re.findall(r"[a-z0-9]+", _row.title.lower())[:6])
    globals()[f"test_{_id}_{_name}"] = _test(_row)


def test_the_page_has_every_row() -> None:
    assert list(SAID) and set(SAID) == set(ROWS)


def test_no_row_fails_but_those_known() -> None:
    """A failing row would be shown as such; today there is none."""
    assert not {id for id, (status, _) in SAID.items() if status.startswith("fails")}
