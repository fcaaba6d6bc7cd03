"""The real files, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def adapters(shared: Path) -> Path:
    return shared / "adapters"
