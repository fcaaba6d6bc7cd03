"""The real files, where they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from formats_for_tests import SHARED


@pytest.fixture(scope="session")
def adapters() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the repository")
    return SHARED
