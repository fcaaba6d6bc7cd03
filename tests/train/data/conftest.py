"""Tokenizers, files and a cache of its own for each test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tokenizers_for_tests import byte_tokenizer, piece_tokenizer


@pytest.fixture(scope="session")
def byte_base() -> Any:
    return byte_tokenizer(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def piece_base() -> Any:
    return piece_tokenizer(bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["byte", "piece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_base")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as jsonl."""

    def writer(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return writer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
